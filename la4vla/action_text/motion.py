"""Displacements of a robot's hand, and what reading a text of them gives.

Axes are the robot's words: forward, left, up. R is the number of rows; a row is one control step, or several merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

MANY = 1000  # rows; a longer text is not played


@dataclass(frozen=True, eq=False)
class Motion:
    """What a hand does, row by row.

    move_R3  float64, m, (forward, left, up)
    turn_R3  float64, rad, rotation vectors about (forward, left, up); zeros where nothing turns
    open_R   float64, the gripper's commanded opening, 1 open, 0 closed; ones for a robot without a gripper
    """

    move_R3: np.ndarray
    turn_R3: np.ndarray
    open_R: np.ndarray

    def __len__(self) -> int:
        return len(self.move_R3)

    def __getitem__(self, rows: slice) -> Motion:
        return Motion(self.move_R3[rows], self.turn_R3[rows], self.open_R[rows])

    def equals(self, other: Motion, within: float = 0.0) -> bool:
        """Whether both have the same rows, each number within `within` of the other's."""
        return len(self) == len(other) and all(
            bool((np.abs(mine - theirs) <= within).all())
            for mine, theirs in (
                (self.move_R3, other.move_R3),
                (self.turn_R3, other.turn_R3),
                (self.open_R, other.open_R),
            )
        )

    @staticmethod
    def of(moves: object, opens: object, turns: object = None) -> Motion:
        """A motion from rows of numbers. turns: None for none."""
        move_R3 = np.asarray(moves, np.float64).reshape(-1, 3)
        turn_R3 = np.zeros_like(move_R3) if turns is None else np.asarray(turns, np.float64).reshape(-1, 3)
        return Motion(move_R3, turn_R3, np.asarray(opens, np.float64).reshape(-1))


@dataclass(frozen=True)
class Written:
    """A motion as text.

    text     that the codec wrote
    dropped  what the codec cannot say -> in how many rows (of the motion it was given) there was some of it
    """

    text: str
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Parsed:
    """What a text says: a motion, or the reason why it is none. Never both.

    motion  None where the text is no action text
    reason  the beginning of a sentence; empty where there is a motion
    """

    motion: Motion | None
    reason: str = ""


def refused(reason: str) -> Parsed:
    return Parsed(None, reason)


def on_grid(values_RD: np.ndarray, step: float) -> np.ndarray:
    """int64 [R, D]: the rows in whole steps of a grid. What rounding leaves over is carried to the next row, so that
    sums stay within half a step; rows that are on the grid stay as they are."""
    reached = np.cumsum(values_RD, axis=0) / step
    # A hair's breadth beyond a half must round alike wherever the sum was computed.
    return np.diff(np.rint(np.round(reached, 6)), axis=0, prepend=0.0).astype(np.int64)
