"""Which samples a folder leaves out because nothing is commanded in them.

A sample is the chunk of actions that begins at its start. It stays where the command is larger than a threshold in any
of the named dimensions, at any frame of the chunk or at its first one. GPLA's paper says "0.1 in any action dimension";
its release takes the first frame of the chunk, normalised by minimum and maximum (FACTS 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from la4vla.data.delta import DELTA_TO_STATE, action_forms
from la4vla.data.normalize import Stats
from la4vla.types import GRIPPERS, Embodiment, UserError


@dataclass(frozen=True)
class Idle:
    """The rule.

    threshold  of the absolute value of a command, in `unit`
    unit       raw: the embodiment's own; an absolute command counts from the state of its frame, a gripper's from the
               command before. normalized: the folder's minimum is -1 and its maximum 1, of delta commands
    dims       names of action dims that count; empty: all
    frames     of a chunk, counted from the sample's start; a clip's end cuts it
    which      any: a frame of the chunk is enough; first: the first one decides
    """

    threshold: float
    unit: Literal["raw", "normalized"]
    dims: tuple[str, ...]
    frames: int
    which: Literal["any", "first"]

    def check(self, embodiment: Embodiment) -> None:
        """Raises UserError where the rule says nothing of this robot's commands."""
        if missing := [name for name in self.dims if name not in embodiment.action.names]:
            raise UserError(
                f"idle: {embodiment.name} has no action dim `{missing[0]}`; name some of "
                f"{', '.join(embodiment.action.names)}, or none for all."
            )
        if self.unit == "normalized" and embodiment.action.reference != "delta":
            raise UserError(
                f"idle: {embodiment.name}'s commands are absolute, so their normalised size says nothing of a motion; "
                "use unit: raw."
            )

    def starts(
        self, state_TS: np.ndarray, action_TA: np.ndarray, stride: int, embodiment: Embodiment, stats: Stats
    ) -> tuple[int, ...]:
        """The frames of a clip, of 0, stride, 2 * stride ..., at which a sample stays.

        state_TS, action_TA: raw units. stats: of the folder's recorded actions.
        """
        moves_T = self._moves(state_TS, action_TA, embodiment, stats)
        last = len(moves_T)
        reach = 1 if self.which == "first" else self.frames
        return tuple(start for start in range(0, last, stride) if moves_T[start : start + reach].any())

    def _moves(self, state_TS: np.ndarray, action_TA: np.ndarray, embodiment: Embodiment, stats: Stats) -> np.ndarray:
        """bool [T], whether a frame's command is larger than the threshold."""
        names = embodiment.action.names
        if self.unit == "normalized":
            low, high = np.array(stats.min), np.array(stats.max)
            width = np.where(high > low, high - low, np.inf)  # a dim that never changes moves nothing
            size_TA = np.where(high > low, 2 * (action_TA - low) / width - 1, 0.0)
        else:
            forms = action_forms(embodiment, state_TS, action_TA)
            size_TA = forms.get(DELTA_TO_STATE, action_TA).astype(np.float64)
            for dim in embodiment.action.dims(*GRIPPERS):
                size_TA[:, dim] = np.diff(action_TA[:, dim], prepend=action_TA[:1, dim])
        wanted: Sequence[str] = self.dims or names
        large_TA = np.abs(size_TA[:, embodiment.action.dims(*wanted)]) > self.threshold
        return np.any(large_TA, axis=1)
