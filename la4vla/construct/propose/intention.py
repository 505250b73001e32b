"""What a motion that is only intended would be called: the kinematic labeller's words for the straight way there.

A simulator's scripted expert knows where it is going. The way there is laid out as frames, with the gripper's motion if
it is told one, and the labeller names it as it names a recorded clip. So a policy that was trained on clips is told
sentences that it knows.
"""

from __future__ import annotations

import numpy as np

from la4vla.config import ProposeConfig
from la4vla.construct.propose.keyframes import Keyframe, KeyframeKind
from la4vla.construct.propose.kinematic import propose
from la4vla.construct.robots.robot import Robot
from la4vla.types import TRANSLATION, VectorSpec

FRAMES = 32  # of the way; its words do not depend on it
BEFORE, FINGERS = 6, 10  # frames until the gripper begins to move, and in which it closes or opens
CHANGED = 0.1  # of the span from open to closed; a gripper that is told less stays as it is


def instruction_of(
    state_S: np.ndarray,
    target_3: np.ndarray,
    opening: float | None,
    holds: bool,
    still: bool,
    robot: Robot,
    config: ProposeConfig,
    generator: np.random.Generator,
) -> str:
    """A low-level instruction for going from a state to a target; empty for a wait.

    state_S: float [S], units of the embodiment. target_3: m, base frame. opening: that is commanded, 1 open, 0 closed;
    None: the gripper is left as it is. holds: whether something is or will be between the fingers. still: whether the
    gripper is at rest; one that is closing on nothing holds nothing yet. generator: chooses among phrasings.

    Raises UserError for a robot without a position in its state.
    """
    spec, embodiment = robot.embodiment.state, robot.embodiment
    state_TS = np.repeat(np.asarray(state_S, np.float64)[None], FRAMES, axis=0)
    position = spec.dims(*TRANSLATION)
    state_TS[:, position] = np.linspace(state_S[position], target_3, FRAMES)
    open_T = _openings(state_TS, opening, holds, still, robot)
    commanded_T = np.full(FRAMES, 0.5 if opening is None else opening)
    if holds and opening is not None and opening > 0.5:
        commanded_T[:BEFORE] = 0.0  # it was held until now
    keyframes: list[Keyframe] = []
    if open_T is not None:
        _fill(state_TS, spec, open_T)
        change = float(open_T[-1] - open_T[0])
        if abs(change) > CHANGED:
            kind: KeyframeKind = "gripper_open" if change > 0 else "gripper_close"
            keyframes.append(Keyframe(BEFORE + FINGERS // 2, kind))
    action_TA = np.zeros((FRAMES, len(embodiment.action.names)))
    steps = np.gradient(state_TS[:, position], axis=0)
    moved = embodiment.action.dims(*TRANSLATION)
    if len(moved) == len(position):
        action_TA[:, moved] = steps if embodiment.action.reference == "delta" else state_TS[:, position]
    _fill(action_TA, embodiment.action, commanded_T)
    proposals = propose(state_TS, action_TA, robot, keyframes, config, 1, generator)
    return proposals[0].instruction if proposals else ""


def _openings(state_TS: np.ndarray, opening: float | None, holds: bool, still: bool, robot: Robot) -> np.ndarray | None:
    """The gripper's opening [T] on the way; None where the state has none."""
    measured_T = robot.embodiment.state.opening(state_TS)
    if measured_T is None:
        return None
    frame = robot.frame
    now = end = float(measured_T[0])
    if opening is not None and opening > 0.5:
        end = max(now, 1.0)
    elif opening is not None and not (holds or still):
        now, end = max(now, frame.open_from), frame.closed_on_nothing  # half closed, it would seem to hold something
    elif opening is not None and now >= frame.open_from:
        end = min(now, frame.closed_on_nothing + (2 * frame.hold_margin if holds else 0.0))
    ramp_T = np.clip((np.arange(FRAMES) - BEFORE) / FINGERS, 0.0, 1.0)
    return now + (end - now) * ramp_T


def _fill(values_TD: np.ndarray, spec: VectorSpec, open_T: np.ndarray) -> None:
    """Writes openings into the gripper's dimension, if there is one, in its own numbers."""
    for dim in spec.dims("gripper"):
        values_TD[:, dim] = spec.gripper_closed + open_T * (spec.gripper_open - spec.gripper_closed)
