"""What every codec between displacements and text offers, and what several of them share.

A codec has a grid: `decode(encode(motion))` is the motion on it, and a motion on the grid comes back to the bit.
Reading is total: every string gives a motion or a reason, and no motion that the string does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from la4vla.action_text.motion import Motion, Parsed, Written
from la4vla.types import UserError

FARTHEST = 0.5  # m along one axis; a row that moves further is a slip of the model, not a motion of an arm
LONGEST = 20_000  # characters; more is not read


class Codec(Protocol):
    """Displacements <-> text."""

    @property
    def name(self) -> str:
        """Of CODECS."""
        ...

    @property
    def version(self) -> int:
        """Raised when the same motion would become another text."""
        ...

    @property
    def merged(self) -> bool:
        """Whether its rows are merged steps; else every row is one control step."""
        ...

    @property
    def tokens(self) -> tuple[str, ...]:
        """Strings that the model's tokenizer must have as single tokens, which it takes from its rare ones."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What rebuilds it, as JSON."""
        ...

    def encode(self, motion: Motion) -> Written:
        """The motion on the codec's grid as text, and what of it the text does not say."""
        ...

    def decode(self, text: str) -> Parsed:
        """What any text says."""
        ...


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raises UserError unless a setting is a whole number within these bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"action text: `{name}` is {value}; give a whole number from {least} to {most}.")


def rows_that_turn(motion: Motion) -> int:
    return int((np.abs(motion.turn_R3) > 1e-9).any(axis=1).sum())


def too_long(text: str) -> str:
    """Why a text is not read at all; empty if it is."""
    if len(text) > LONGEST:
        return f"the text has {len(text)} characters, more than {LONGEST}"
    return "" if text.strip() else "the text is empty"
