"""`decimals`: `[[dx, dy, dz, gripper], ...]`, metres, as the paper writes actions (B.2).

dx is forward, dy left, dz up, the gripper 1.0 open and 0.0 closed. Turns are not said. Without a gripper rows have
three numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from la4vla.action_text.codec import FARTHEST, check_whole, rows_that_turn, too_long
from la4vla.action_text.motion import MANY, Motion, Parsed, Written, on_grid, refused

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,4}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})")
_FENCE = re.compile(r"```(?:python|json)?\s*\n(.*)\n\s*```", re.DOTALL)


@dataclass(frozen=True)
class Decimals:
    """places: digits behind the point, of metres; the grid."""

    gripper: bool = True
    places: int = 3
    name: str = field(default="decimals", init=False)
    version: int = field(default=1, init=False)
    merged: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_whole("places", self.places, 1, 6)

    @property
    def tokens(self) -> tuple[str, ...]:
        return ()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"places": self.places}

    def encode(self, motion: Motion) -> Written:
        cells_R3 = on_grid(motion.move_R3, 10.0**-self.places)
        rows = [
            [cell / 10**self.places for cell in cells.tolist()] + ([float(opening > 0.5)] if self.gripper else [])
            for cells, opening in zip(cells_R3, motion.open_R, strict=True)
        ]
        turned = rows_that_turn(motion)
        return Written(f"[{', '.join(map(str, rows))}]", {"rotation": turned} if turned else {})

    def decode(self, text: str) -> Parsed:
        if reason := too_long(text):
            return refused(reason)
        fenced = _FENCE.fullmatch(text.strip())
        return self.parse((fenced[1] if fenced else text).strip())

    def parse(self, text: str) -> Parsed:
        """A list of lists and nothing around it."""
        if not (text.startswith("[") and text.endswith("]")):
            return refused("the text is not a list of lists")
        inner = text[1:-1].strip().removesuffix(",").strip()
        if not (inner.startswith("[") and inner.endswith("]")):
            return refused("the text is not a list of lists")
        width, rows = 4 if self.gripper else 3, []
        for number, row in enumerate(re.split(r"\]\s*,\s*\[", inner[1:-1]), start=1):
            cells = [cell.strip() for cell in row.split(",")]
            if number > MANY:
                return refused(f"the text has more than {MANY} rows")
            if len(cells) != width:
                return refused(f"row {number} has {len(cells)} numbers, not {width}")
            if wrong := [cell for cell in cells if not _NUMBER.fullmatch(cell)]:
                return refused(f"row {number} has `{wrong[0][:20]}`, which is no number")
            rows.append([float(cell) for cell in cells])
        values_RD = np.array(rows)
        if (np.abs(values_RD[:, :3]) > FARTHEST).any():
            return refused(f"a row moves further than {FARTHEST} m")
        opens_R = values_RD[:, 3] if self.gripper else np.ones(len(rows))
        if not np.isin(opens_R, (0.0, 1.0)).all():
            return refused("a gripper is neither 1 nor 0")
        return Parsed(Motion.of(values_RD[:, :3] + 0.0, opens_R))
