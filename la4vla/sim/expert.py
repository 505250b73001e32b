"""What a MetaWorld scripted policy decides, and in which of its phases: the truth that the labeller is measured by.

A policy picks a target by an if/else chain (`_desired_pos`, or `get_action` itself) and steers at it in proportion to
the distance. It does not return which branch it took, so the call is traced with `sys.settrace`. Tracing does not
change the action.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

CHAIN, STEER = "_desired_pos", "move"
"""Functions of metaworld.policies: which target, and the command towards it."""


@dataclass(frozen=True)
class Decision:
    """What a scripted policy does at a state, and why.

    action   float32 [4] in [-1, 1]
    phase    source line of the branch that chose the target, one number a branch
    target   float32 [3], m, base frame
    object   float32 [3], m, base frame: where the object is that the task is about
    """

    action: np.ndarray
    phase: int
    target: np.ndarray
    object: np.ndarray


@dataclass(frozen=True)
class Intent:
    """What a scripted expert is about at a state.

    phase    another one means that it goes elsewhere, or tells the gripper something else
    target   float32 [3], m, base frame: where the hand shall be
    opening  that is commanded, 1 open and 0 closed; None: the gripper is left as it is
    grasps   whether closing is to take an object
    """

    phase: tuple[int, ...]
    target: np.ndarray
    opening: float | None
    grasps: bool


def decide(policy: Any, observation: np.ndarray) -> Decision:
    """Calls the policy once. observation: [39]; some policies write into it, traced or not."""
    lines: dict[str, int] = {}
    targets: list[np.ndarray] = []
    object_3 = observation[4:7].astype(np.float32)

    def at_return(frame: FrameType, event: str, _: Any) -> Any:
        if event == "return":
            lines[CHAIN] = frame.f_lineno
        return at_return

    def at_call(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_name
        if name == STEER and frame.f_back is not None:
            lines[STEER] = frame.f_back.f_lineno
            targets.append(np.broadcast_to(frame.f_locals["to_xyz"], 3).astype(np.float32))
        return at_return if name == CHAIN else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        action = policy.get_action(observation)
    finally:
        sys.settrace(before)
    phase = lines[CHAIN] if CHAIN in lines else lines[STEER]
    return Decision(np.clip(action, -1.0, 1.0).astype(np.float32), phase, targets[-1], object_3)
