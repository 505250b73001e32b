"""Conversations -> tokens, labels and images for a policy with a language head: InternVL's chat template with the
policy's own tokenizer and image tokens (la4vla.types.TextEncoder).

    <|im_start|>user
    <img>P x <IMG_CONTEXT></img>
    what comes next?<|im_end|>
    <|im_start|>assistant
    push the puck<|im_end|>

Every answer and the token that ends it is learned, and nothing else. Only this file places special tokens: a text that
spells one is text. Refuses, with the row's name: a row longer than the model takes (nothing is cut off), one without an
answer, and images that are missing or that no turn shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from tokenizers import AddedToken, Tokenizer

from la4vla.model.backbone import IMAGE_INDEX, IMAGES
from la4vla.model.tokenizer import IMAGE_CLOSE, IMAGE_OPEN, Prompter
from la4vla.types import NOT_COUNTED, InputSpec, TextBatch, TextRow, UserError, answer_places

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

Resize = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB [H, W, 3] -> the same at the model's image size. Must pickle."""


@dataclass(frozen=True)
class PreparedConversation:
    """One row on its way to a TextBatch.

    ids     tokens
    labels  of each token, NOT_COUNTED where nothing is learned
    images  uint8 RGB [3, S, S] each, in the order of their tokens
    """

    key: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    images: tuple[torch.Tensor, ...]


class ConversationEncoder:
    """Pickles; its methods are pure functions."""

    def __init__(self, prompter: Prompter, vocab: int, resize: Resize) -> None:
        """prompter: its tokenizer gets the two tokens around a turn where it lacks them, as checkpoints then have it.
        vocab: rows of the model's embeddings. Raises UserError where they leave no room for these tokens."""
        tokenizer = prompter.tokenizer
        missing = [token for token in (TURN_START, TURN_END) if tokenizer.token_to_id(token) is None]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in missing])
        self._start, self._end = prompter.token_id(TURN_START), prompter.token_id(TURN_END)
        if max(self._start, self._end) >= vocab:
            raise UserError(
                f"the tokenizer has no {TURN_START}, and the model's {vocab} embeddings leave no room for it; use the "
                "tokenizer of an instruction-tuned model (model.tokenizer)."
            )
        self._prompter, self._vocab, self._resize = prompter, vocab, resize
        spec = prompter.spec
        image = [prompter.token_id(IMAGE_OPEN), *[spec.image_token_id] * spec.image_tokens]
        self._image = [*image, prompter.token_id(IMAGE_CLOSE)]

    @property
    def spec(self) -> InputSpec:
        return self._prompter.spec

    def prepare(self, row: TextRow) -> PreparedConversation:
        """Raises UserError as the file says."""
        ids: list[int] = []
        labels: list[int] = []

        def add(tokens: Sequence[int], learned: bool = False) -> None:
            ids.extend(tokens)
            labels.extend(tokens if learned else [NOT_COUNTED] * len(tokens))

        for number, turn in enumerate(row.turns):
            answers = turn.role == "assistant"
            add([*(self._text("\n") if number else ()), self._start])
            text = f"{turn.role}\n"
            for image in turn.images:
                add([*self._text(text), *self._image_at(row, image)])
                text = "\n"
            add(self._text(text if answers else text + turn.text.strip()))
            add([*(self._text(turn.text.strip()) if answers else ()), self._end], learned=answers)
        shown = [number for turn in row.turns for number in turn.images]
        self._check(row, len(ids), labels, shown)
        images = tuple(rearrange(torch.from_numpy(self._resize(row.images[n])), "h w c -> c h w") for n in shown)
        return PreparedConversation(row.key, tuple(ids), tuple(labels), images)

    def batch(self, prepared: Sequence[PreparedConversation]) -> TextBatch:
        """Rows that `prepare` gave, right-padded. `images` has the uint8 pixels [N, 3, S, S] and the places of their
        tokens, as in Batch, where a row shows one."""
        longest = max(len(row.ids) for row in prepared)
        ids_BL = torch.full((len(prepared), longest), self.spec.pad_token_id)
        labels_BL = torch.full_like(ids_BL, NOT_COUNTED)
        mask_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
        for number, row in enumerate(prepared):
            ids_BL[number, : len(row.ids)] = torch.tensor(row.ids)
            labels_BL[number, : len(row.ids)] = torch.tensor(row.labels)
            mask_BL[number, : len(row.ids)] = True
        images = [image for row in prepared for image in row.images]
        places = (ids_BL.flatten() == self.spec.image_token_id).nonzero().flatten()
        return TextBatch(
            kind="text",
            input_ids_BL=ids_BL,
            text_mask_BL=mask_BL,
            labels_BL=labels_BL,
            answer_index=answer_places(labels_BL),
            images={IMAGES: torch.stack(images), IMAGE_INDEX: places} if images else {},
            keys=tuple(row.key for row in prepared),
        )

    def _check(self, row: TextRow, tokens: int, labels: Sequence[int], shown: Sequence[int]) -> None:
        if row.turns[-1].role != "assistant" or not all(t.text.strip() for t in row.turns if t.role == "assistant"):
            raise UserError(f"{row.key}: it does not end with an answer, or one is empty; leave the row out.")
        if hidden := sorted(set(range(len(row.images))) - set(shown)):
            raise UserError(f"{row.key}: no turn shows image {hidden[0] + 1}; name it in a turn or leave it out.")
        if tokens > self.spec.max_tokens:
            raise UserError(
                f"{row.key}: {tokens} tokens, the model takes {self.spec.max_tokens}; shorten its texts or show fewer "
                "images."
            )

    def _image_at(self, row: TextRow, number: int) -> list[int]:
        if not 0 <= number < len(row.images):
            raise UserError(
                f"{row.key}: image {number + 1} is missing, the row has {len(row.images)}; bring it or leave the row "
                "out."
            )
        return self._image

    def _text(self, text: str) -> list[int]:
        return self._prompter.tokenizer.encode(text, add_special_tokens=False).ids

    def __reduce__(self) -> tuple[type[ConversationEncoder], tuple[Prompter, int, Resize]]:
        return ConversationEncoder, (self._prompter, self._vocab, self._resize)


def as_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What tokens spell, special ones too; for pages that people read."""
    return tokenizer.decode(list(ids), skip_special_tokens=False)
