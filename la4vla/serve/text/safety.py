"""The paper's safety filter (VLM2VLA, appendix D.2): downward and forward commands are zeroed while the hand is in
contact.

A state with a `contact` dimension says whether it is. Without one, a hand that was told to go down or forward and
hardly went is taken to be in contact on that side. A task whose point is to push or press cannot be done with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from la4vla.action_text.space import MotionSpace

FORWARD, UP = 0, 2  # places among (forward, left, up)
TOLD = 0.01  # m; who was told less is not judged
WENT = 0.2  # of the way; who went less was stopped


def filtered(
    space: MotionSpace, commands_TA: np.ndarray, state: np.ndarray, last: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, int]:
    """The commands without what drives into what is touched, and how many of them were changed.

    state: raw, now. last: the commands before these, and the state at which they were given.
    """
    forward, down = _contact(space, state, last)
    if not (forward or down):
        return commands_TA, 0
    motion = space.commanded(state[None], commands_TA)
    move_T3 = motion.move_R3.copy()
    if forward:
        move_T3[:, FORWARD] = np.minimum(move_T3[:, FORWARD], 0.0)
    if down:
        move_T3[:, UP] = np.maximum(move_T3[:, UP], 0.0)
    changed = int((move_T3 != motion.move_R3).any(axis=1).sum())
    if not changed:
        return commands_TA, 0
    return space.commands(replace(motion, move_R3=move_T3), state), changed


def _contact(space: MotionSpace, state: np.ndarray, last: tuple[np.ndarray, np.ndarray] | None) -> tuple[bool, bool]:
    """Whether something is ahead, and below."""
    if contact := space.embodiment.state.dims("contact"):
        touches = bool(state[contact[0]] > 0.5)
        return touches, touches
    if last is None:
        return False, False
    commands_TA, before = last
    told_3 = space.commanded(before[None], commands_TA).move_R3.sum(0)
    went_3 = space.place(state) - space.place(before)
    return (
        bool(told_3[FORWARD] > TOLD and went_3[FORWARD] < WENT * told_3[FORWARD]),
        bool(-told_3[UP] > TOLD and -went_3[UP] < WENT * -told_3[UP]),
    )
