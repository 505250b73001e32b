"""Conversations -> tokens, labels and images, by a model's own chat template and processor.

A row is rendered by the template and cut at its answers. What is given goes through the processor, which puts image
tokens where the template has its places for images; every answer and the token that ends a turn go through the
tokenizer alone. So the tokens of a prompt are exactly the first tokens of the row it belongs to, whatever the answer
begins with. Turns are stripped of the white space around them, as the templates of some families do themselves.

Imports no model: the loader's process makes rows. Refuses, with the row's name: a row longer than `max_tokens`
(nothing is cut off), a row in which nothing would be learned, images that are missing or that no turn shows, a template
without a place for images, a text that spells a special token, and a template that changes a turn when another follows
it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from la4vla.types import NOT_COUNTED, TextBatch, TextRow, Turn, UserError, answer_places

ONE_VALUE_A_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""What processors return with the shape of the tokens; all else is concatenated over images."""

HOW_IT_WAS_READ = ("is_local", "local_files_only", "model_specific_special_tokens")
"""What a tokenizer that was read from a folder would write into its config beside what the folder says: without these
a checkpoint of a resumed run holds the same files as one before."""

ONE_TILE: dict[str, dict[str, Any]] = {"InternVLProcessor": {"crop_to_patches": False}}
"""Processor class -> options of its image processor: an image is one tile, as the policy sees it. By default InternVL
cuts large images into up to 12 tiles of 256 tokens each. The other families do not cut unless they are told to."""


@dataclass(frozen=True)
class EncodedText:
    """One row on its way to a TextBatch.

    key       names the row in messages, and its random numbers where the model writes on
    ids_L     int64
    labels_L  int64, NOT_COUNTED where nothing is learned; everywhere in a prompt
    inputs    what the model takes beside them: int64 [L] by the names in ONE_VALUE_A_TOKEN, else one entry an image or
              image patch on dimension 0
    """

    key: str
    ids_L: Tensor
    labels_L: Tensor
    inputs: Mapping[str, Tensor]

    @property
    def tokens(self) -> int:
        return self.ids_L.numel()


class ChatEncoder:
    """A model's processor with its chat template; la4vla.types.TextEncoder. Pickles; its methods are pure functions."""

    def __init__(self, processor: ProcessorMixin, max_tokens: int) -> None:
        """processor: of a model family in la4vla/vlm/model.py. max_tokens: the longest row that is taken.

        Raises UserError for a processor without a chat template, and for a template that ends an answer with no token
        of its own.
        """
        tokenizer = processor.tokenizer
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        if not (processor.chat_template or tokenizer.chat_template):
            raise UserError(
                "the processor has no chat template; use an instruction-tuned model, or put a chat_template.jinja "
                "beside its tokenizer."
            )
        for name in HOW_IT_WAS_READ:
            tokenizer.init_kwargs.pop(name, None)
        # Calls with other settings would change the tokenizer while other threads use it.
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        self.processor = processor
        self.tokenizer: PreTrainedTokenizerFast = tokenizer
        self.max_tokens = max_tokens
        self._options = ONE_TILE.get(type(processor).__name__, {})
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = sorted({*special, self._image_token}, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in longest_first))
        self._end = self._end_of_turn()

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens at which the model has finished its turn, that of the template first."""
        ids = [*self._ids(self._end), self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys(number for number in ids if isinstance(number, int)))

    @property
    def never_written(self) -> tuple[int, ...]:
        """Special tokens that no answer holds, such as those of images: all but the ends of a turn."""
        special = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return tuple(sorted((special | {self._image_token_id}) - set(self.end_token_ids)))

    @property
    def pad_token_id(self) -> int:
        number = self.tokenizer.pad_token_id
        return number if isinstance(number, int) else self.end_token_ids[0]

    def prepare(self, row: TextRow, answers: Literal["all", "last"] = "all") -> EncodedText:
        """answers: which are learned, every assistant turn or the last one only. Raises UserError as the file says."""
        turns = _stripped(row.turns)
        if not turns or turns[-1].role != "assistant":
            raise UserError(f"{row.key}: the last turn is no answer, so there is nothing to learn; end it with one.")
        numbers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        return self._encode(row.key, turns, row.images, numbers if answers == "all" else numbers[-1:])

    def prompt(self, key: str, turns: Sequence[Turn], images: Sequence[np.ndarray]) -> EncodedText:
        """What the model answers to: `turns` end with the user's; images uint8 RGB [H, W, 3]. No label counts. The
        tokens are the first ones of the row that goes on with an answer. Raises UserError as the file says."""
        turns = _stripped(turns)
        if not turns or turns[-1].role != "user":
            raise UserError(f"{key}: the last turn is not the user's, so there is nothing to answer; end with one.")
        return self._encode(key, turns, images, ())

    def question(self, row: TextRow) -> EncodedText:
        """The prompt of a row's last answer."""
        return self.prompt(row.key, row.turns[:-1], row.images)

    def batch(self, prepared: Sequence[EncodedText], side: Literal["right", "left"] = "right") -> TextBatch:
        """Rows padded to the longest, on `side`."""
        longest = max(row.tokens for row in prepared)
        places = [slice(0, row.tokens) if side == "right" else slice(longest - row.tokens, longest) for row in prepared]

        def padded(tensors: Sequence[Tensor | None], value: int, dtype: torch.dtype) -> Tensor:
            table = torch.full((len(prepared), longest), value, dtype=dtype)
            for line, place, tensor in zip(table, places, tensors, strict=True):
                if tensor is not None:
                    line[place] = tensor
            return table

        names = dict.fromkeys(name for row in prepared for name in row.inputs)
        inputs = {
            name: padded([row.inputs.get(name) for row in prepared], 0, torch.int64)
            if name in ONE_VALUE_A_TOKEN
            else torch.cat([row.inputs[name] for row in prepared if name in row.inputs])
            for name in names
        }
        labels_BL = padded([row.labels_L for row in prepared], NOT_COUNTED, torch.int64)
        return TextBatch(
            kind="text",
            input_ids_BL=padded([row.ids_L for row in prepared], self.pad_token_id, torch.int64),
            text_mask_BL=padded([torch.ones_like(row.ids_L) for row in prepared], 0, torch.bool),
            labels_BL=labels_BL,
            answer_index=answer_places(labels_BL),
            images=inputs,
            keys=tuple(row.key for row in prepared),
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens and surrounding white space."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()

    def files(self) -> dict[str, bytes]:
        """File name -> content: all that `load` needs, the chat template among it."""
        with tempfile.TemporaryDirectory() as folder:
            self.processor.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}

    def save(self, folder: str | Path) -> None:
        """Writes `files`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (Path(folder) / name).write_bytes(content)

    @staticmethod
    def load(folder: str | Path, max_tokens: int) -> ChatEncoder:
        """From a checkpoint's tokenizer folder or a model's own. Raises UserError for one that cannot be read."""
        try:
            processor = AutoProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{folder}: no processor in it that can be read ({reason}); fetch its files again."
            ) from error
        if not isinstance(processor, ProcessorMixin):
            raise UserError(f"{folder}: its processor takes no images; give a model for images and text.")
        return ChatEncoder(processor, max_tokens)

    def _encode(
        self, key: str, turns: Sequence[Turn], images: Sequence[np.ndarray], counted: Sequence[int]
    ) -> EncodedText:
        """counted: numbers of the turns that are learned."""
        whole = self._render(key, turns, prompt=turns[-1].role == "user")
        pieces: list[EncodedText] = []
        done, first = 0, 0  # what of the text is encoded, and the first turn whose images are not
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            if not turn.text:
                raise UserError(f"{key}: an answer is empty, so there is nothing to learn; leave the row out.")
            given, answer = self._render(key, turns[:index], prompt=True), turn.text + self._end
            if not (whole.startswith(given) and whole.startswith(answer, len(given))):
                raise UserError(
                    f"{key}: the chat template writes turn {index + 1} otherwise than it asks for it; give a row one "
                    "question and one answer, or use another template."
                )
            pieces.append(self._given(key, whole[done : len(given)], turns[first:index], images))
            pieces.append(self._answer(answer, index in counted))
            done, first = len(given) + len(answer), index + 1
        if first < len(turns):
            pieces.append(self._given(key, whole[done:], turns[first:], images))
        shown = {number for turn in turns for number in turn.images}
        if hidden := sorted(set(range(len(images))) - shown):
            raise UserError(f"{key}: no turn shows image {hidden[0] + 1}; name it in a turn or leave it out.")
        return self._joined(key, pieces)

    def _render(self, key: str, turns: Sequence[Turn], prompt: bool) -> str:
        messages = []
        for turn in turns:
            if odd := self._special.search(turn.text):
                raise UserError(f"{key}: a text spells the special token `{odd.group()}`; take it out of the text.")
            content: list[dict[str, str]] = [{"type": "image"} for _ in turn.images]
            messages.append({"role": turn.role, "content": [*content, {"type": "text", "text": turn.text}]})
        try:
            return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            raise UserError(
                f"{key}: the chat template refuses the conversation ({error}); change its turns."
            ) from error

    def _given(self, key: str, text: str, turns: Sequence[Turn], images: Sequence[np.ndarray]) -> EncodedText:
        """Text that is not learned, and the images that its turns show."""
        numbers = [number for turn in turns for number in turn.images]
        if missing := [number for number in numbers if not 0 <= number < len(images)]:
            raise UserError(
                f"{key}: image {missing[0] + 1} is missing, the row has {len(images)}; bring it or leave the row out."
            )
        places = text.count(self._image_token)
        if places != len(numbers):
            raise UserError(
                f"{key}: the chat template has places for {places} of {len(numbers)} images; use a model whose "
                "template shows images."
            )
        shown = [Image.fromarray(images[number]) for number in numbers] or None
        options = self._options if shown else {}
        processor: Any = self.processor  # its arguments are those of its class
        encoded: BatchFeature = processor(
            images=shown, text=[text], add_special_tokens=False, return_tensors="pt", **options
        )
        ids_L = encoded["input_ids"][0]
        inputs = {
            name: tensor[0] if name in ONE_VALUE_A_TOKEN else tensor
            for name, tensor in encoded.items()
            if name not in ("input_ids", "attention_mask")
        }
        return EncodedText(key, ids_L, torch.full_like(ids_L, NOT_COUNTED), inputs)

    def _answer(self, text: str, counts: bool) -> EncodedText:
        ids_L = torch.tensor(self._ids(text))
        return EncodedText("", ids_L, ids_L if counts else torch.full_like(ids_L, NOT_COUNTED), {})

    def _joined(self, key: str, pieces: Sequence[EncodedText]) -> EncodedText:
        names = dict.fromkeys(name for piece in pieces for name in piece.inputs)
        joined = EncodedText(
            key=key,
            ids_L=torch.cat([piece.ids_L for piece in pieces]),
            labels_L=torch.cat([piece.labels_L for piece in pieces]),
            inputs={
                name: torch.cat([piece.inputs.get(name, torch.zeros_like(piece.ids_L)) for piece in pieces])
                if name in ONE_VALUE_A_TOKEN
                else torch.cat([piece.inputs[name] for piece in pieces if name in piece.inputs])
                for name in names
            },
        )
        if joined.tokens > self.max_tokens:
            raise UserError(
                f"{key}: {joined.tokens} tokens, the model takes {self.max_tokens}; shorten its texts, show fewer or "
                "smaller images, or raise max_tokens."
            )
        return joined

    def _end_of_turn(self) -> str:
        """The token behind an answer, as text."""
        question, answer = Turn("user", "u"), Turn("assistant", "a")
        given = self._render("the chat template", [question], prompt=True)
        whole = self._render("the chat template", [question, answer], prompt=False)
        behind = whole[len(given) + 1 :]
        end = self._special.match(behind)
        if not (whole.startswith(given + answer.text) and end):
            raise UserError(
                f"the chat template ends an answer with `{behind[:20]}`, which is no special token; use a template "
                "whose turns end with one."
            )
        return end.group()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    @property
    def _image_token_id(self) -> int:
        number = self.tokenizer.convert_tokens_to_ids(self._image_token)
        assert isinstance(number, int)
        return number

    @property
    def _image_token(self) -> str:
        return self.processor.image_token  # pyright: ignore[reportAttributeAccessIssue]


def answered(prompt: EncodedText, ids: Sequence[int]) -> EncodedText:
    """A prompt with an answer of these very tokens, which are learned: what was written, not what its text would be
    split into."""
    ids_L = torch.tensor(ids, dtype=torch.int64)
    inputs = {
        name: torch.cat([tensor, torch.zeros_like(ids_L)]) if name in ONE_VALUE_A_TOKEN else tensor
        for name, tensor in prompt.inputs.items()
    }
    return EncodedText(prompt.key, torch.cat([prompt.ids_L, ids_L]), torch.cat([prompt.labels_L, ids_L]), inputs)


def without_images(row: TextRow) -> TextRow:
    """The same conversation blind: what a model answers from the words alone."""
    return replace(row, turns=tuple(replace(turn, images=()) for turn in row.turns), images=())


def _stripped(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    return tuple(replace(turn, text=turn.text.strip()) for turn in turns)
