"""`fast`: cosine coefficients of a chunk's control steps, joined to pieces by a byte-pair vocabulary fitted on data.

A chunk is `horizon` steps. Every column (three moves, three turns where the robot turns, the gripper) is scaled,
transformed (DCT-II) and rounded; the numbers are read frequency by frequency, each is one character, and the vocabulary
joins the frequent runs. A piece is written as a token's name, `<fast_17>`. Steps that do not fill the last chunk are
filled with stillness.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.fft import dct, idct
from tokenizers import Tokenizer, models, trainers

from la4vla.action_text.codec import FARTHEST, too_long
from la4vla.action_text.motion import MANY, Motion, Parsed, Written, refused
from la4vla.types import UserError

FIRST_LETTER = 0x4E00  # of the characters that stand for numbers: none of them means anything to a tokenizer


@dataclass(frozen=True)
class FastSettings:
    """What a fitted vocabulary is made of.

    horizon     steps of a chunk
    scale       steps of the grid that a coefficient of 1.0 has; more is finer and longer
    limit       largest number on the grid; what is beyond is cut
    move_unit   m, what 1.0 of a move is
    turn_unit   rad, what 1.0 of a turn is
    token       name of a piece, with {} for its number
    first       number of the first piece
    """

    horizon: int = 16
    scale: float = 10.0
    limit: int = 80
    move_unit: float = 0.01
    turn_unit: float = 0.05
    token: str = "<fast_{}>"
    first: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.horizon < self.scale**2 and self.limit * 2 < 0x5000 and self.token.count("{}") == 1):
            raise UserError(
                "action text: fast needs a horizon below scale squared (or the gripper is lost in rounding), a limit "
                "below 10240 and a token with one {}."
            )
        if self.scale * math.sqrt(self.horizon) / 2 > self.limit or min(self.move_unit, self.turn_unit) <= 0:
            raise UserError(
                "action text: fast needs a limit of at least scale * sqrt(horizon) / 2, which is what the gripper "
                "takes, and units above 0."
            )


@dataclass(frozen=True)
class Fast:
    """Make one with `fit`, or from the settings of one that was fitted.

    vocabulary  the byte-pair vocabulary as the tokenizers library writes it
    """

    vocabulary: str
    gripper: bool = True
    turns: bool = True
    of: FastSettings = field(default_factory=FastSettings)
    name: str = field(default="fast", init=False)
    version: int = field(default=1, init=False)
    merged: bool = field(default=False, init=False)
    _pieces: Tokenizer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pieces", Tokenizer.from_str(self.vocabulary))

    @staticmethod
    def fit(motions: Iterable[Motion], size: int, gripper: bool, turns: bool, of: FastSettings) -> Fast:
        """A vocabulary of at most `size` pieces, fitted on control steps. Raises UserError where `size` has no room for
        a piece for every number."""
        letters = [chr(FIRST_LETTER + number) for number in range(2 * of.limit + 1)]
        if size < len(letters):
            raise UserError(f"action text: a vocabulary of {size} is too small; give at least {len(letters)}.")
        pieces = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=letters, min_frequency=2, show_progress=False, max_token_length=64
        )
        blank = Fast(pieces.to_str(), gripper, turns, of)
        pieces.train_from_iterator(
            (blank._letters(chunk) for motion in motions for chunk in blank._chunks(motion)[0]), trainer
        )
        return Fast(pieces.to_str(), gripper, turns, of)

    @property
    def size(self) -> int:
        return self._pieces.get_vocab_size()

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(self.of.token.format(self.of.first + number) for number in range(self.size))

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**vars(self.of), "vocabulary": json.loads(self.vocabulary)}

    def encode(self, motion: Motion) -> Written:
        chunks, cut = self._chunks(motion)
        numbers = [piece for chunk in chunks for piece in self._pieces.encode(self._letters(chunk)).ids]
        text = "".join(self.of.token.format(self.of.first + number) for number in numbers)
        return Written(text, {"coefficients beyond the limit": cut} if cut else {})

    def decode(self, text: str) -> Parsed:
        if reason := too_long(text):
            return refused(reason)
        before, after = map(re.escape, self.of.token.split("{}"))
        rest = "".join(text.split())
        if not re.fullmatch(f"(?:{before}[0-9]{{1,6}}{after})+", rest):
            return refused("the text has something that is none of the codec's tokens")
        numbers = [int(found) - self.of.first for found in re.findall(f"{before}([0-9]{{1,6}}){after}", rest)]
        if wrong := [number for number in numbers if not 0 <= number < self.size]:
            return refused(f"the text has the token {wrong[0] + self.of.first}, which the vocabulary lacks")
        letters = "".join(self._pieces.id_to_token(number) or "" for number in numbers)
        wide = self.of.horizon * self._width
        if len(letters) % wide:
            return refused(f"the text has {len(letters)} coefficients, and a chunk has {wide}")
        if len(letters) // self._width > MANY:
            return refused(f"the text has more than {MANY} steps")
        values = np.array([ord(letter) - FIRST_LETTER - self.of.limit for letter in letters], np.float64)
        return self._motion(values.reshape(-1, self.of.horizon, self._width) / self.of.scale)

    @property
    def _width(self) -> int:
        return 3 + 3 * self.turns + self.gripper

    def _chunks(self, motion: Motion) -> tuple[list[np.ndarray], int]:
        """int64 [horizon, columns] each, coefficients by frequency; and how many were cut at the limit."""
        columns: list[np.ndarray] = [motion.move_R3 / self.of.move_unit]
        if self.turns:
            columns.append(motion.turn_R3 / self.of.turn_unit)
        if self.gripper:
            columns.append(((motion.open_R > 0.5) - 0.5)[:, None])
        values_RD = np.concatenate(columns, axis=1)
        missing = -len(values_RD) % self.of.horizon
        if missing:
            still = np.zeros((missing, values_RD.shape[1]))
            still[:, -1] = values_RD[-1, -1] if self.gripper else 0.0
            values_RD = np.concatenate([values_RD, still])
        chunks_NHD = values_RD.reshape(-1, self.of.horizon, values_RD.shape[1])
        exact = np.rint(np.round(np.asarray(dct(chunks_NHD, axis=1, norm="ortho")) * self.of.scale, 6))
        return [*np.clip(exact, -self.of.limit, self.of.limit).astype(np.int64)], int(
            (np.abs(exact) > self.of.limit).sum()
        )

    def _letters(self, chunk_HD: np.ndarray) -> str:
        return "".join(chr(FIRST_LETTER + self.of.limit + number) for number in chunk_HD.ravel().tolist())

    def _motion(self, chunks_NHD: np.ndarray) -> Parsed:
        values_RD = np.asarray(idct(chunks_NHD, axis=1, norm="ortho")).reshape(-1, self._width)
        move_R3 = values_RD[:, :3] * self.of.move_unit
        turn_R3 = values_RD[:, 3:6] * self.of.turn_unit if self.turns else np.zeros_like(move_R3)
        if (np.abs(move_R3) > FARTHEST).any() or (np.abs(turn_R3) > math.pi).any():
            return refused(f"a step moves further than {FARTHEST} m or turns further than half a turn")
        open_R = (values_RD[:, -1] > 0).astype(np.float64) if self.gripper else np.ones(len(move_R3))
        return Parsed(Motion(move_R3, turn_R3, open_R))
