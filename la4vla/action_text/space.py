"""Between a robot's raw numbers and displacements in its own words: `MotionSpace`.

Refused with a UserError: a robot whose units are not known as numbers, one whose commands are in the tool's frame, and
one without a position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.action_text.config import ActionTextConfig
from la4vla.action_text.motion import Motion
from la4vla.types import ROTATION, TRANSLATION, Embodiment, UserError, VectorSpec

HALF_OPEN, OPEN_FROM = 0.5, 1e-3
"""An opening this near to the middle is a command to hold; LIBERO's 0."""


@dataclass(frozen=True)
class Steps:
    """Control steps as displacements, and what of them is not said.

    motion   one row a step
    dropped  what displacements cannot hold -> in how many steps there was some of it
    """

    motion: Motion
    dropped: Mapping[str, int]


class MotionSpace:
    """The robot of an embodiment, and which of its axes are forward, left and up."""

    def __init__(self, embodiment: Embodiment, config: ActionTextConfig) -> None:
        self.embodiment, self.config = embodiment, config
        self._state, self._action = embodiment.state, embodiment.action
        for what, spec in (("action", self._action), ("state", self._state)):
            if what == "action" or config.motion == "reached":
                _check(embodiment, what, spec)
        if config.motion == "reached" and len(self._state.dims(*TRANSLATION)) < len(self._action.dims(*TRANSLATION)):
            raise UserError(
                f"action text: {embodiment.name}'s state has no position to read reached motion from; set motion: "
                "commanded."
            )
        self._to_words_33 = np.zeros((3, 3))
        for row, axis in enumerate((config.forward, config.left, config.up)):
            self._to_words_33[row, "xyz".index(axis[1])] = -1.0 if axis[0] == "-" else 1.0

    @property
    def gripper(self) -> bool:
        return bool(self._action.dims("gripper"))

    @property
    def turns(self) -> bool:
        """Whether the robot's commands turn its hand."""
        return bool(self._action.dims(*ROTATION))

    def steps(self, state_NS: np.ndarray, action_TA: np.ndarray) -> Steps:
        """The displacements of control steps, by config.motion.

        action_TA  raw commands
        state_NS   raw states; N is T, or T + 1 with the state behind the last command. With T, reached motion says
                   nothing of the last step.
        """
        assert len(state_NS) in (len(action_TA), len(action_TA) + 1), (state_NS.shape, action_TA.shape)
        states, actions = state_NS.astype(np.float64), action_TA.astype(np.float64)
        motion, between = self._commanded(states, actions)
        if self.config.motion == "reached":
            poses = [*states, *states[-1:]][: len(actions) + 1]
            move_T3, turn_T3 = _differences(np.array(poses).reshape(-1, states.shape[1]), self._state)
            motion = Motion(move_T3 @ self._to_words_33.T, turn_T3 @ self._to_words_33.T, motion.open_R)
        known = {*TRANSLATION, *ROTATION, "gripper"}
        dropped = {
            name: int((np.abs(actions[:, column]) > 0).sum())
            for column, name in enumerate(self._action.names)
            if name not in known
        }
        dropped["gripper between open and closed"] = between
        return Steps(motion, {name: count for name, count in dropped.items() if count})

    def commanded(self, state_1S: np.ndarray, action_TA: np.ndarray) -> Motion:
        """What raw commands tell the hand to do, whatever config.motion is. state_1S: raw state before the first."""
        return self._commanded(state_1S.astype(np.float64), action_TA.astype(np.float64))[0]

    def place(self, state_S: np.ndarray) -> np.ndarray:
        """[3] m, (forward, left, up) of the hand in the base frame; zeros for what the state does not tell."""
        place_3 = _columns(state_S[None].astype(np.float64), self._state, TRANSLATION)[0]
        return self._to_words_33 @ place_3 * (self._state.metres_per_unit or 1.0)

    def commands(self, steps: Motion, state_S: np.ndarray) -> np.ndarray:
        """float32 [T, A] raw commands of control steps. state_S: raw state before the first. Dimensions that
        displacements do not hold are 0 in a delta command and the state's in an absolute one."""
        spec = self._action
        move_T3, turn_T3 = steps.move_R3 @ self._to_words_33, steps.turn_R3 @ self._to_words_33
        raw_TA = np.zeros((len(steps), len(spec.names)))
        if spec.reference == "delta":
            _put(raw_TA, spec, TRANSLATION, move_T3 / (spec.metres_per_unit or 1.0))
            _put(raw_TA, spec, ROTATION, turn_T3 / (spec.radians_per_unit or 1.0))
        else:
            start_1A = _as_action(state_S[None].astype(np.float64), self._state, spec)
            raw_TA += start_1A
            moved_T3 = np.cumsum(move_T3, axis=0) / (spec.metres_per_unit or 1.0)
            _put(raw_TA, spec, TRANSLATION, _columns(start_1A, spec, TRANSLATION) + moved_T3)
            _put(raw_TA, spec, ROTATION, _turned(start_1A, spec, turn_T3))
        if self.gripper:
            opening_T = steps.open_R
            raw_TA[:, spec.dims("gripper")[0]] = spec.gripper_closed + opening_T * (
                spec.gripper_open - spec.gripper_closed
            )
        return raw_TA.astype(np.float32)

    def opening(self, state_S: np.ndarray) -> float:
        """1.0 where the gripper is more open than closed, or where the state does not tell; else 0.0."""
        measured_1 = self._state.opening(state_S[None])
        return 1.0 if measured_1 is None or measured_1[0] > HALF_OPEN else 0.0

    def limits(self) -> tuple[float, float]:
        """m and rad that one control step may move and turn along one axis. Raises UserError where config does not say
        it and the robot's commands are plain metres."""
        play, spec = self.config.play, self._action
        if (play.step_m is None or (self.turns and play.step_rad is None)) and spec.unit == "m":
            raise UserError(
                f"action text: {self.embodiment.name}'s commands are metres, so nothing says how far one control step "
                "may go; set play.step_m, and play.step_rad where it turns."
            )
        step_m = play.step_m or play.speed * (spec.metres_per_unit or 1.0)
        return step_m, play.step_rad or play.speed * (spec.radians_per_unit or 1.0)

    def _commanded(self, states: np.ndarray, actions: np.ndarray) -> tuple[Motion, int]:
        """The commanded motion, and how many commands left the gripper between open and closed."""
        if self._action.reference == "delta":
            move_T3 = _columns(actions, self._action, TRANSLATION) * (self._action.metres_per_unit or 1.0)
            turn_T3 = _columns(actions, self._action, ROTATION) * (self._action.radians_per_unit or 1.0)
        else:
            start = _as_action(states[:1], self._state, self._action)
            move_T3, turn_T3 = _differences(np.concatenate([start, actions]), self._action)
        open_T, between = self._openings(states, actions)
        return Motion(move_T3 @ self._to_words_33.T, turn_T3 @ self._to_words_33.T, open_T), between

    def _openings(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, int]:
        """Commanded opening of each step, 1 or 0, and how many commands were neither. A command to hold is what was
        before it."""
        opening_T = self._action.opening(actions)
        if opening_T is None:
            return np.ones(len(actions)), 0
        open_T = np.empty(len(actions))
        present = self.opening(states[0]) if len(actions) else 1.0
        for step, opening in enumerate(opening_T):
            if abs(opening - HALF_OPEN) > OPEN_FROM:
                present = float(opening > HALF_OPEN)
            open_T[step] = present
        return open_T, int((np.abs(opening_T - open_T) > OPEN_FROM).sum())


def _check(embodiment: Embodiment, what: str, spec: VectorSpec) -> None:
    """Raises UserError where displacements cannot be read from vectors of this spec."""
    if spec.frame != "base":
        raise UserError(
            f"action text: {embodiment.name}'s {what} is in the tool's frame, and texts speak of the base's axes; use "
            "data whose commands are in the base frame."
        )
    if not spec.dims(*TRANSLATION):
        raise UserError(f"action text: {embodiment.name}'s {what} has no x, y or z; use a robot with a hand position.")
    turns = spec.dims(*ROTATION)
    for unit, needed in ((spec.metres_per_unit, True), (spec.radians_per_unit, bool(turns))):
        if needed and unit is None:
            raise UserError(
                f"action text: how far 1.0 of {embodiment.name}'s {what} is (`{spec.unit}`) is not known as a number; "
                "set metres_per_unit, and radians_per_unit where it turns, in the robot's file and construct again."
            )


def _columns(values_TD: np.ndarray, spec: VectorSpec, names: tuple[str, ...]) -> np.ndarray:
    """The named dimensions [T, 3]; zeros for those that the spec lacks."""
    columns_T3 = np.zeros((len(values_TD), 3))
    for place, name in enumerate(names):
        for column in spec.dims(name):
            columns_T3[:, place] = values_TD[:, column]
    return columns_T3


def _put(values_TD: np.ndarray, spec: VectorSpec, names: tuple[str, ...], columns_T3: np.ndarray) -> None:
    for place, name in enumerate(names):
        for column in spec.dims(name):
            values_TD[:, column] = columns_T3[:, place]


def _rotation(angles_T3: np.ndarray, spec: VectorSpec) -> Rotation:
    angles_T3 = angles_T3 * (spec.radians_per_unit or 1.0)
    return Rotation.from_euler("xyz", angles_T3) if spec.rotation == "euler_xyz" else Rotation.from_rotvec(angles_T3)


def _differences(pose_ND: np.ndarray, spec: VectorSpec) -> tuple[np.ndarray, np.ndarray]:
    """Displacements m and turns rad, float64 [N - 1, 3] each, between absolute poses, in the base frame."""
    move_T3 = np.diff(_columns(pose_ND, spec, TRANSLATION), axis=0) * (spec.metres_per_unit or 1.0)
    if not spec.dims(*ROTATION) or len(pose_ND) < 2:
        return move_T3, np.zeros_like(move_T3)
    turned = _rotation(_columns(pose_ND, spec, ROTATION), spec)
    return move_T3, (turned[1:] * turned[:-1].inv()).as_rotvec()


def _turned(start_1A: np.ndarray, spec: VectorSpec, turn_T3: np.ndarray) -> np.ndarray:
    """The angles [T, 3], in the spec's own numbers, after each of these turns."""
    angles_T3 = np.zeros_like(turn_T3)
    if not spec.dims(*ROTATION):
        return angles_T3
    present = _rotation(_columns(start_1A, spec, ROTATION), spec)[0]
    for step, turn_3 in enumerate(turn_T3):
        present = Rotation.from_rotvec(turn_3) * present
        angles_T3[step] = present.as_euler("xyz") if spec.rotation == "euler_xyz" else present.as_rotvec()
    return angles_T3 / (spec.radians_per_unit or 1.0)


def _as_action(state_NS: np.ndarray, state: VectorSpec, action: VectorSpec) -> np.ndarray:
    """States as absolute actions [N, A]: the dimensions that both have, zeros else."""
    values_NA = np.zeros((len(state_NS), len(action.names)))
    for column, name in enumerate(action.names):
        for there in state.dims(name):
            values_NA[:, column] = state_NS[:, there]
    return values_NA
