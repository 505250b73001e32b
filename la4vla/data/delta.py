"""Absolute actions as differences: from the state of their own frame, from the chunk's first state, from the action
before.

Positions are subtracted. Euler angles are subtracted and wrapped one by one; axis-angle vectors are composed as
rotations. Grippers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.data.rotation import rotation_vectors, wrapped
from la4vla.types import ARMS, GRIPPERS, ROTATION, Embodiment, Sample

Reference = Literal["own_state", "first_state", "previous_action"]
RECORDED, DELTA_TO_STATE = "recorded", "delta_to_state"
DELTAS: dict[str, Reference] = {
    DELTA_TO_STATE: "own_state",
    "delta_to_first_state": "first_state",
    "delta_to_previous_action": "previous_action",
}
"""Value of `data.action` -> what actions are counted from."""
WINDOWED = ("delta_to_first_state", "delta_to_previous_action")
"""Forms in which a frame's action depends on where its chunk begins."""


@dataclass(frozen=True)
class DeltaAction:
    """Absolute actions, counted from what `reference` says, on `action_dims` (`state_dims` in the state).

    rotation_dims  positions *in the action* of rx ry rz, or (). Euler angles are subtracted and wrapped into (-pi, pi]
                   one by one; axis-angle vectors are composed as rotations, in the base frame or the tool's.
    rotation_near  of the absolute action (VectorSpec), for the way back
    reference      own_state: the state of the action's own frame (FACTS 4.4); first_state: that of the chunk's first
                   frame; previous_action: the action before, which for the first is the state
    """

    action_dims: tuple[int, ...]
    state_dims: tuple[int, ...]
    rotation_dims: tuple[int, ...]
    rotation: Literal["none", "axis_angle", "euler_xyz"]
    frame: Literal["base", "tool"]
    rotation_near: tuple[float, float, float]
    reference: Reference

    def __call__(self, sample: Sample) -> Sample:
        if sample.action is None:
            return sample
        assert sample.action_states is not None, "a training sample carries the states of its actions' frames"
        action = self.forward(sample.action, sample.action_states)
        action[~sample.action_valid] = 0.0
        return sample.but(action=action)

    @cached_property
    def _plain(self) -> tuple[list[int], list[int]]:
        pairs = [
            pair for pair in zip(self.action_dims, self.state_dims, strict=True) if pair[0] not in self.rotation_dims
        ]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    @cached_property
    def _turn(self) -> tuple[list[int], list[int]]:
        at = dict(zip(self.action_dims, self.state_dims, strict=True))
        return list(self.rotation_dims), [at[dim] for dim in self.rotation_dims]

    def forward(self, action_TA: np.ndarray, states_TS: np.ndarray) -> np.ndarray:
        """Absolute -> delta, float32 [T, A]. states_TS: float32, of each action's frame."""
        delta = action_TA.astype(np.float64)
        (plain, of_state), (turn, turn_of_state) = self._plain, self._turn
        delta[:, plain] -= self._from(action_TA[:, plain], states_TS[:, of_state])
        if turn:
            delta[:, turn] = self._minus(delta[:, turn], self._from(action_TA[:, turn], states_TS[:, turn_of_state]))
        return delta.astype(np.float32)

    def _from(self, action_TD: np.ndarray, states_TD: np.ndarray) -> np.ndarray:
        """What each action is counted from, in the same dims."""
        if self.reference == "own_state":
            return states_TD
        if self.reference == "first_state":
            return np.broadcast_to(states_TD[:1], states_TD.shape)
        return np.concatenate([states_TD[:1], action_TD[:-1]])

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Delta -> absolute, float32 [T, A].

        With `state` [T, S], or unless it counts from own states, this is the exact inverse. With `state` [S], when only
        the present state is known, a row that counts from its own state is added to what the row before commanded,
        which is where the robot is by then if it tracks its commands.
        """
        absolute = action_TA.astype(np.float64)
        present = np.array(state if state.ndim == 1 else state[0], dtype=np.float64)
        for t in range(len(absolute)):
            if state.ndim == 2 and self.reference == "own_state":
                present = state[t].astype(np.float64)
            (plain, of_state), (turn, turn_of_state) = self._plain, self._turn
            absolute[t, plain] += present[of_state]
            if turn:
                absolute[t, turn] = self._plus(absolute[t, turn], present[turn_of_state])
            if self.reference != "first_state":
                present[turn_of_state], present[of_state] = absolute[t, turn], absolute[t, plain]
        return absolute.astype(np.float32)

    def _minus(self, target_T3: np.ndarray, present_T3: np.ndarray) -> np.ndarray:
        if self.rotation == "euler_xyz":
            return wrapped(target_T3 - present_T3)
        target, present = Rotation.from_rotvec(target_T3), Rotation.from_rotvec(present_T3)
        turn = target * present.inv() if self.frame == "base" else present.inv() * target
        return turn.as_rotvec()

    def _plus(self, delta_3: np.ndarray, present_3: np.ndarray) -> np.ndarray:
        if self.rotation == "euler_xyz":
            return wrapped(delta_3 + present_3, self.rotation_near)
        delta, present = Rotation.from_rotvec(delta_3), Rotation.from_rotvec(present_3)
        return rotation_vectors(delta * present if self.frame == "base" else present * delta, self.rotation_near)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def delta_action(embodiment: Embodiment, form: str) -> DeltaAction | None:
    """The transform that makes this form of DELTAS for an embodiment, or None where its action dims do not line up with
    its state dims.

    Grippers stay absolute (FACTS 4.4). Both vectors must be absolute and every other action dim be in the state. The
    turns of two arms do not line up: one transform has one rotation.
    """
    state, action = embodiment.state, embodiment.action
    moved = tuple(name for name in action.names if name not in GRIPPERS)
    turns = tuple(name for name in moved if name in ROTATION)
    lines_up = (
        bool(moved)
        and not {f"{arm}_{name}" for arm in ARMS for name in ROTATION} & set(moved)
        and set(moved) <= set(state.names)
        and (action.reference, state.reference, action.frame) == ("absolute", "absolute", state.frame)
        and (not turns or (turns == ROTATION and action.rotation == state.rotation != "none"))
    )
    if not lines_up:
        return None
    return DeltaAction(
        action_dims=tuple(action.dims(*moved)),
        state_dims=tuple(state.dims(*moved)),
        rotation_dims=tuple(action.dims(*turns)),
        rotation=action.rotation if turns else "none",
        frame=action.frame,
        rotation_near=action.rotation_near,
        reference=DELTAS[form],
    )


def stored_as(form: str, horizon: int) -> str:
    """The name in stats.json of a form of chunks of `horizon` steps."""
    return f"{form}/{horizon}" if form in WINDOWED else form


def action_forms(embodiment: Embodiment, state_FS: np.ndarray, action_FA: np.ndarray) -> dict[str, np.ndarray]:
    """Every form of single actions that `data.action` can ask of this embodiment -> float32 [F, A]; F frames."""
    delta = delta_action(embodiment, DELTA_TO_STATE)
    recorded = {RECORDED: action_FA}
    return recorded if delta is None else {**recorded, DELTA_TO_STATE: delta.forward(action_FA, state_FS)}


def windowed(
    delta: DeltaAction, state_TS: np.ndarray, action_TA: np.ndarray, horizon: int, starts: Iterable[int]
) -> Iterator[np.ndarray]:
    """The chunks of a clip in a form that depends on where a chunk begins: float32 [up to horizon, A] each, one for
    each sample. state_TS, action_TA: the clip's, in raw units. starts: the samples' first frames."""
    for start in starts:
        yield delta.forward(action_TA[start : start + horizon], state_TS[start : start + horizon])
