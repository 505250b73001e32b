"""Merging: the displacements of many control steps become few rows that are long enough to learn.

Steps join the present row until a dimension changes its sign, the gripper changes, or the row would move further than
`cap` along one axis. This reproduces the worked example of the paper (VLM2VLA, appendix B.2: ten rows become four),
which stopping at 2.5 cm does not; that is `stop_at`.
"""

from __future__ import annotations

import numpy as np

from la4vla.action_text.config import MergeConfig
from la4vla.action_text.motion import Motion

_HAIR = 1e-6  # m; sums of decimals and differences of float32 states miss the cap by their rounding


def merge(steps: Motion, config: MergeConfig) -> Motion:
    """The rows of these steps. Nothing is lost: displacements and turns are summed. No steps give no rows."""
    starts = [0] if len(steps) else []
    moved_3, sign_3 = np.zeros(3), np.zeros(3)
    for number in range(len(steps)):
        step_3 = steps.move_R3[number]
        step_sign_3 = np.where(np.abs(step_3) >= config.least, np.sign(step_3), 0.0)
        turns_back = bool((sign_3 * step_sign_3 < 0).any())
        too_far = bool((np.abs(moved_3 + step_3) > config.cap + _HAIR).any())
        far_enough = config.stop_at is not None and bool((np.abs(moved_3) >= config.stop_at - _HAIR).any())
        other_grip = number > 0 and (steps.open_R[number] > 0.5) != (steps.open_R[number - 1] > 0.5)
        if number > 0 and (turns_back or too_far or far_enough or other_grip):
            starts.append(number)
            moved_3, sign_3 = np.zeros(3), np.zeros(3)
        moved_3 = moved_3 + step_3
        sign_3 = np.where(sign_3 == 0, step_sign_3, sign_3)
    if not starts:
        return steps
    return Motion(np.add.reduceat(steps.move_R3, starts), np.add.reduceat(steps.turn_R3, starts), steps.open_R[starts])
