"""Instruction and image slots -> token ids, as the released model was prompted (FACTS 4.1).

A row is `Image-{slot}: <img>` + P x `<IMG_CONTEXT>` + `</img>\\n` for each view that exists, then the instruction. No
chat template, no system prompt, no BOS. An `la` row is the instruction alone. With `context` eager or flash (compat,
config/compat.py) every row has the released SLOTS, and pads mark the image of a view that does not exist. Refuses:
rows over `max_tokens` (never truncated).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import AddedToken, Tokenizer

from la4vla.config import CompatConfig, ModelConfig
from la4vla.model.presets import size_of
from la4vla.model.released_context import SLOTS
from la4vla.types import InputSpec, UserError

PAD, IMAGE_OPEN, IMAGE_CLOSE, IMAGE_CONTEXT = "<|endoftext|>", "<img>", "</img>", "<IMG_CONTEXT>"
TINY_TOKENIZER = Path(__file__).parent / "assets"
TINY_TOKENIZER_PRESETS = ("tiny", "small")
FILE = "tokenizer.json"


class Prompter:
    """A fast tokenizer that knows the images' place in a row. Picklable; `encode` is a pure function."""

    def __init__(self, tokenizer: Tokenizer, spec: InputSpec, slots: int = 0) -> None:
        """tokenizer: gets the four special tokens it lacks. slots: image slots of every row (`slots_of`); 0: as many as
        there are views. Raises UserError when their ids are not the model's."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        missing = [
            token for token in (PAD, IMAGE_OPEN, IMAGE_CLOSE, IMAGE_CONTEXT) if tokenizer.token_to_id(token) is None
        ]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in missing])
        # An instruction that contains `<IMG_CONTEXT>` is spelled out as text; only `encode` places special tokens.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.spec = spec
        self.slots = slots
        ids = (self.token_id(PAD), self.token_id(IMAGE_CONTEXT))
        if ids != (spec.pad_token_id, spec.image_token_id):
            raise UserError(
                f"the tokenizer gives {PAD} and {IMAGE_CONTEXT} the ids {ids}, the model has "
                f"{(spec.pad_token_id, spec.image_token_id)}; set model.tokenizer to the one of the weights."
            )
        self._image, self._absent = (
            [self.token_id(IMAGE_OPEN), *[token] * spec.image_tokens, self.token_id(IMAGE_CLOSE)]
            for token in (spec.image_token_id, spec.pad_token_id)
        )

    def encode(self, instruction: str, slots: Sequence[int] = ()) -> list[int]:
        """Token ids of one row. slots: the numbers, from 0, of the views that exist, in order; empty for kind `la`.

        An empty instruction is the single end-of-text token: "nothing was said" has one meaning and a row has tokens.
        Raises UserError when the row is longer than the model takes, or has more views than slots.
        """
        ids: list[int] = []
        before = ""
        if self.slots and not set(slots) <= set(range(self.slots)):
            raise UserError(f"this model's rows have {self.slots} image slots; show no more views.")
        for slot in range(self.slots) if self.slots else slots:
            ids += [*self._text(f"{before}Image-{slot + 1}: "), *(self._image if slot in slots else self._absent)]
            before = "\n"
        text = instruction.strip()
        ids += self._text(before + text)
        if not text and not self.slots:
            ids.append(self.spec.pad_token_id)
        if len(ids) > self.spec.max_tokens:
            raise UserError(
                f"{len(slots)} images and the instruction `{text[:40]}` make {len(ids)} tokens, the model takes "
                f"{self.spec.max_tokens}; shorten the instruction or show fewer views."
            )
        return ids

    def files(self) -> dict[str, bytes]:
        """File name -> content: all that `load` needs beside the checkpoint's input spec."""
        return {FILE: self.tokenizer.to_str(pretty=True).encode()}

    def save(self, folder: str | Path) -> None:
        """Writes `files`. Not by the library, whose writer tells a full disk by a bare Exception."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (Path(folder) / name).write_bytes(content)

    @staticmethod
    def load(folder: str | Path, spec: InputSpec, slots: int = 0) -> Prompter:
        """Raises UserError for a file that is missing or damaged."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(f"{folder}: no {FILE} in it; point model.tokenizer at a folder that has one.")
        try:
            # From memory: of a damaged file the library makes a bare Exception.
            return Prompter(Tokenizer.from_buffer(path.read_bytes()), spec, slots)
        except ValueError as error:
            raise UserError(f"{path}: no tokenizer ({error}); fetch the file again.") from error

    def __reduce__(self) -> tuple[type[Prompter], tuple[Tokenizer, InputSpec, int]]:
        return Prompter, (
            self.tokenizer,
            self.spec,
            self.slots,
        )  # the tokenizer's own pickle forgets encode_special_tokens

    def _text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def token_id(self, token: str) -> int:
        """Of a token that is there."""
        number = self.tokenizer.token_to_id(token)
        assert number is not None
        return number


def slots_of(compat: CompatConfig) -> int:
    """Image slots of every row; 0: those of the views that exist."""
    return 0 if compat.context == "own" else SLOTS


def build_prompter(config: ModelConfig) -> Prompter:
    """The tokenizer of `config.tokenizer`, else the one beside `config.weights`, else the one that ships.

    Raises UserError for one that is missing, damaged or not of this model.
    """
    size, slots = size_of(config), slots_of(config.compat)
    where = config.tokenizer or config.weights
    if where:
        prompter = Prompter.load(local_folder(where, [FILE]), size.spec, slots)
        last = _last_of_text(prompter.tokenizer)
        if last >= size.vocab:
            raise UserError(
                f"{where}: the tokenizer has ids up to {last}, preset {config.preset} takes {size.vocab}; give the one "
                "of the weights."
            )
        return prompter
    if config.preset not in TINY_TOKENIZER_PRESETS:
        raise UserError(f"preset {config.preset} has no tokenizer of its own; set model.tokenizer or model.weights.")
    return Prompter.load(TINY_TOKENIZER, size.spec, slots)


def _last_of_text(tokenizer: Tokenizer) -> int:
    """The largest id that `encode` can give. Special tokens stay out: a native InternVL folder has `<video>`, one past
    the last row of the embeddings."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return max(set(tokenizer.get_vocab(with_added_tokens=True).values()) - special)


def local_folder(where: str, patterns: Sequence[str]) -> Path:
    """A local folder as it is, or the files of a hub repository that match `patterns`, fetched to the hub's cache."""
    if Path(where).is_dir():
        return Path(where)
    try:
        return Path(huggingface_hub.snapshot_download(where, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{where}: neither a folder nor a hub repository that can be reached ({type(error).__name__}); "
            "check the path, or download it first and give the folder."
        ) from error
