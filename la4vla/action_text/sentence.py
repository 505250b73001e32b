"""`sentence`: direction words, whole centimetres and degrees (LAP's kind; FACTS 2.2).

    move forward 3 cm, move left 2 cm, tilt left 10 degrees, open gripper; move up 4 cm; close gripper

A row is a list of clauses, rows are parted by semicolons, a row that says nothing else is `stay`. The gripper is
said in the first row and where it changes. Tilting left and right is about forward, tilting forward and backward about
left, and turning left and right about up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from la4vla.action_text.codec import FARTHEST, check_whole, too_long
from la4vla.action_text.motion import MANY, Motion, Parsed, Written, on_grid, refused

MOVES = (("forward", "backward"), ("left", "right"), ("up", "down"))
"""Words of the positive and the negative end of (forward, left, up)."""

TURNS = (("tilt", "right", "left"), ("tilt", "forward", "backward"), ("turn", "left", "right"))
"""Verb, and words of the positive and the negative turn about (forward, left, up), by the right hand's rule."""

_CLAUSE = re.compile(r"(move|tilt|turn) ([a-z]+) ([0-9]{1,3}) (cm|degrees)")
_GRIPPER = {"open gripper": 1.0, "close gripper": 0.0}
_SAID = {
    **{("move", word, "cm"): (axis, 1 - 2 * end) for axis, ends in enumerate(MOVES) for end, word in enumerate(ends)},
    **{
        (verb, word, "degrees"): (3 + axis, 1 - 2 * end)
        for axis, (verb, *ends) in enumerate(TURNS)
        for end, word in enumerate(ends)
    },
}
"""(verb, word, unit) -> (place among three moves and three turns, sign)."""


@dataclass(frozen=True)
class Sentence:
    """cm, degrees: steps of the grid, whole numbers."""

    gripper: bool = True
    turns: bool = True
    cm: int = 1
    degrees: int = 10
    name: str = field(default="sentence", init=False)
    version: int = field(default=1, init=False)
    merged: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_whole("cm", self.cm, 1, 10)
        check_whole("degrees", self.degrees, 1, 90)

    @property
    def tokens(self) -> tuple[str, ...]:
        return ()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"cm": self.cm, "degrees": self.degrees}

    def encode(self, motion: Motion) -> Written:
        cells_R3 = on_grid(motion.move_R3, 0.01 * self.cm) * self.cm
        turns_R3 = on_grid(motion.turn_R3, math.radians(self.degrees)) * self.degrees
        rows, present = [], None
        for cells, turns, opening in zip(cells_R3.tolist(), turns_R3.tolist(), motion.open_R > 0.5, strict=True):
            clauses = [f"move {MOVES[axis][cell < 0]} {abs(cell)} cm" for axis, cell in enumerate(cells) if cell]
            clauses += [
                f"{TURNS[axis][0]} {TURNS[axis][1 + (turn < 0)]} {abs(turn)} degrees"
                for axis, turn in enumerate(turns)
                if turn
            ]
            if self.gripper and opening != present:
                clauses.append("open gripper" if opening else "close gripper")
            present = opening
            rows.append(", ".join(clauses) or "stay")
        return Written("; ".join(rows))

    def decode(self, text: str) -> Parsed:
        if reason := too_long(text):
            return refused(reason)
        moves, opens, present = [], [], None if self.gripper else 1.0
        rows = " ".join(text.lower().split()).removesuffix(".").split(";")
        if len(rows) > MANY:
            return refused(f"the text has more than {MANY} rows")
        for number, row in enumerate(rows, start=1):
            said = self._row(row.strip())
            if isinstance(said, str):
                return refused(f"row {number} {said}")
            values_6, opening = said
            present = present if opening is None else opening
            if present is None:
                return refused("the first row does not say whether the gripper is open or closed")
            moves.append(values_6)
            opens.append(present)
        values_R6 = np.array(moves, np.float64)
        if (np.abs(values_R6[:, :3]) > 100 * FARTHEST).any() or (np.abs(values_R6[:, 3:]) > 180).any():
            return refused(f"a row moves further than {FARTHEST} m or turns further than 180 degrees")
        return Parsed(Motion.of(values_R6[:, :3] / 100, opens, np.radians(values_R6[:, 3:])))

    def _row(self, row: str) -> tuple[list[int], float | None] | str:
        """Three moves and three turns in whole cm and degrees, and the gripper if it is said; or what is wrong."""
        values, opening = [0] * 6, None
        said: set[object] = set()
        for clause in [] if row == "stay" else row.split(","):
            clause = clause.strip()
            if self.gripper and clause in _GRIPPER:
                place: object = "gripper"
                opening = _GRIPPER[clause]
            else:
                found = _CLAUSE.fullmatch(clause)
                meant = _SAID.get((found[1], found[2], found[4])) if found else None
                if found is None or meant is None or (meant[0] > 2 and not self.turns):
                    return f"says `{clause[:40]}`, which is no motion"
                place = meant[0]
                values[meant[0]] = meant[1] * int(found[3])
            if place in said:
                return f"says two things of one direction: `{clause[:40]}`"
            said.add(place)
        return values, opening
