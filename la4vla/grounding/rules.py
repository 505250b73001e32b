"""The rule: direction words against the motion, as the judge of `construct` holds them against each other.

Of a sentence's direction words the one that fits worst counts: the part of the motion along it, as a cosine. Without a
direction word, or without motion, the rule has nothing to say and the score is 0. Of two arms those count that the
sentence names, by their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from la4vla.directions import DIRECTION_SPELLINGS, arms_named, words_of
from la4vla.types import Deed, Embodiment, UserError


@dataclass(frozen=True)
class RulesScorer:
    """embodiment: of the motions. axes: forward, left and up as signed axes of its base frame, such as `+y`."""

    embodiment: Embodiment
    axes: tuple[str, str, str]
    name: str = "rules"

    def scores(self, deeds: Sequence[Deed]) -> np.ndarray:
        """float32 [deeds], cosines in [-1, 1]."""
        return np.array([self._score(deed) for deed in deeds], np.float32)

    def _score(self, deed: Deed) -> float:
        action, (steps, *width) = self.embodiment.action, deed.actions.shape
        if not steps or width != [len(action.names)]:
            raise UserError(f"{deed.key}: its actions are {deed.actions.shape}, not those of {self.embodiment.name}.")
        arms = arms_named(deed.sentence) if action.arms else ("",)
        if not arms:
            return 0.0
        ways = [action.of_arm(arm).translation(deed.actions[:, action.dims(*action.names_of(arm))]) for arm in arms]
        moved_T3 = np.mean(ways, axis=0)
        moved_3 = moved_T3.sum(axis=0) if action.reference == "delta" else moved_T3[-1] - moved_T3[0]
        signed = [(-1.0 if axis[0] == "-" else 1.0) * moved_3["xyz".index(axis[1])] for axis in self.axes]
        length = float(np.linalg.norm(moved_3))
        named = [DIRECTION_SPELLINGS[word] for word in words_of(deed.sentence) if word in DIRECTION_SPELLINGS]
        return min((sign * signed[axis] / length for axis, sign in named), default=0.0) if length else 0.0
