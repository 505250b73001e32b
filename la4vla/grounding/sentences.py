"""Sentences -> token ids of one length, as SigLIP's text tower was trained: padded to its longest row, without a mask.

Needed in the loader's process: imports nothing of ours but the ground floor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from la4vla.types import UserError

TINY_LENGTH = 48  # tokens; LanguageTable's sentences have up to 36 of the tiny tokenizer's
TINY_TOKENIZER = Path(__file__).parents[1] / "model" / "assets" / "tokenizer.json"
TINY_PAD = "<|endoftext|>"


class SentenceEncoder:
    """Picklable; `encode` is a pure function.

    length  tokens of every row
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        self._tokenizer: Any = tokenizer  # transformers types its ids and texts as any of several forms
        self.length = length

    @property
    def vocab(self) -> int:
        return len(self._tokenizer)

    @property
    def pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    def encode(self, sentence: str, slots: Sequence[int] = ()) -> list[int]:
        """Token ids. Images have no place in it: `slots` is what a policy's tokenizer is told. Raises UserError for a
        sentence that is longer than the model takes: nothing is cut off."""
        ids = self._tokenizer(sentence, padding="max_length", max_length=self.length)["input_ids"]
        if len(ids) > self.length:
            raise UserError(
                f"`{sentence}` has {len(ids)} tokens, and the model takes {self.length}; shorten the instruction."
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """For people: without padding."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def files(self) -> dict[str, bytes]:
        """File name -> content: all that `load` needs."""
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer.save_pretrained(folder)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}

    @staticmethod
    def load(folder: str | Path, length: int) -> SentenceEncoder:
        """From a checkpoint's tokenizer folder or a model's own. Raises UserError for one that cannot be read."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{folder}: no tokenizer in it that can be read ({reason}); fetch it again.") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.pad_token_id is None:
            raise UserError(f"{folder}: its tokenizer is no fast one with a pad token; fetch the folder again.")
        return SentenceEncoder(tokenizer, length)


def tiny_encoder() -> SentenceEncoder:
    """The preset's own, with the words of the tiny policy."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(TINY_TOKENIZER)),
        pad_token=TINY_PAD,
        eos_token=TINY_PAD,
        model_max_length=TINY_LENGTH,
    )
    return SentenceEncoder(tokenizer, TINY_LENGTH)
