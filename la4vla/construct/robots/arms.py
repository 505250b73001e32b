"""An arm of an episode, as if it were the only one: what keyframes, labeller, judge and report look at.

A robot with one arm and the hand's pose in its state is seen as it is. Of two arms each is seen alone, its dims without
the arm's name in front of theirs. Where kinematics says where the hand is, that pose stands for the joints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from la4vla.construct.robots.robot import Arm, Robot
from la4vla.types import ROTATION, TRANSLATION, Embodiment, VectorSpec


@dataclass(frozen=True)
class ArmView:
    """One arm of an episode.

    name      left or right; empty: the only one
    state     float [T, S], in the units of robot.embodiment, which has one arm
    action    float [T, A], likewise
    robot     what the numbers mean
    """

    name: str
    state: np.ndarray
    action: np.ndarray
    robot: Robot

    @property
    def opening_T(self) -> np.ndarray | None:
        """The gripper's opening, 1 open, 0 closed: measured, or commanded if the state has no gripper.

        None if neither state nor action has one.
        """
        measured_T = self.robot.embodiment.state.opening(self.state)
        return self.robot.embodiment.action.opening(self.action) if measured_T is None else measured_T


def arm_views(state_TS: np.ndarray, action_TA: np.ndarray, robot: Robot) -> tuple[ArmView, ...]:
    """The robot's arms: one, or left and right. state_TS, action_TA: units of the embodiment."""
    if not robot.arms and robot.kinematics is None:
        return (ArmView("", state_TS, action_TA, robot),)
    return tuple(
        _view(state_TS, action_TA, robot, arm) for arm in robot.arms or (Arm("", robot.frame, robot.kinematics),)
    )


def joint_faults(state_TS: np.ndarray, robot: Robot) -> list[str]:
    """A sentence for each arm one of whose joints lies where its model does not let it."""
    arms = robot.arms or (Arm("", robot.frame, robot.kinematics),)
    spec = robot.embodiment.state
    found = [arm.kinematics.fault(_columns(state_TS, spec, arm)) for arm in arms if arm.kinematics is not None]
    return [sentence for sentence in found if sentence]


def joint_doubts(state_TS: np.ndarray, robot: Robot) -> list[str]:
    """A sentence for each arm whose joints are called degrees, and hardly move if they are."""
    arms = robot.arms or (Arm("", robot.frame, robot.kinematics),)
    spec = robot.embodiment.state
    found = [arm.kinematics.doubt(_columns(state_TS, spec, arm)) for arm in arms if arm.kinematics is not None]
    return [sentence for sentence in found if sentence]


def _view(state_TS: np.ndarray, action_TA: np.ndarray, robot: Robot, arm: Arm) -> ArmView:
    embodiment = robot.embodiment
    state, state_spec = _seen(state_TS, embodiment.state, arm)
    action, action_spec = _seen(action_TA, embodiment.action, arm)
    alone = Embodiment(embodiment.name, embodiment.control_hz, state_spec, action_spec)
    return ArmView(arm.name, state, action, Robot(alone, arm.frame, robot.same_arm))


def _seen(values_TD: np.ndarray, spec: VectorSpec, arm: Arm) -> tuple[np.ndarray, VectorSpec]:
    """An arm's part of a state or an action. Joints that are no absolute ones stay joints."""
    names, own = spec.names_of(arm.name), spec.of_arm(arm.name)
    part_TD = values_TD[:, spec.dims(*names)]
    kinematics = arm.kinematics
    if kinematics is None or spec.reference != "absolute" or set(kinematics.columns) - set(spec.names):
        return part_TD, own
    position_T3, turn_T = kinematics.poses(_columns(values_TD, spec, arm))
    others = [dim for dim, name in enumerate(names) if name not in kinematics.columns]
    pose = replace(
        own,
        names=(*TRANSLATION, *ROTATION, *(own.names[dim] for dim in others)),
        frame="base",
        rotation="axis_angle",
        unit="m",
        rotation_near=(0.0, 0.0, 0.0),
        metres_per_unit=1.0,
        radians_per_unit=1.0,
    )
    return np.concatenate([position_T3, turn_T.as_rotvec(), part_TD[:, others]], axis=1), pose


def _columns(values_TD: np.ndarray, spec: VectorSpec, arm: Arm) -> dict[str, np.ndarray]:
    """The columns of an arm's joints."""
    assert arm.kinematics is not None
    return {name: values_TD[:, spec.dims(name)[0]] for name in arm.kinematics.columns}
