"""Where commands take the hand that a case is about: of one arm or of two, by positions or by joints.

Commands of positions need nothing but the embodiment. Of commands of joints the robot's file says where the hand is
(`kinematics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from la4vla.construct.arm_words import BOTH
from la4vla.construct.robots.arms import arm_views
from la4vla.construct.robots.robot import Robot, robot_of_embodiment
from la4vla.probe_cases.motion import check_translation, translates, travel
from la4vla.types import Embodiment


@dataclass(frozen=True)
class HandWay:
    """embodiment: of the commands. robot: whose kinematics they need; None: they are positions."""

    embodiment: Embodiment
    robot: Robot | None

    @property
    def arms(self) -> bool:
        """Whether there are two."""
        return bool(self.embodiment.action.arms or (self.robot is not None and self.robot.arms))

    def travel(self, action_TA: np.ndarray, state_S: np.ndarray, arm: str) -> np.ndarray:
        """float64 [T, 3], as probe_cases.motion.travel gives it."""
        if self.robot is None:
            return travel(action_TA, state_S, self.embodiment, arm)
        views = arm_views(np.repeat(state_S[None], len(action_TA), axis=0), action_TA, self.robot)
        ways = [
            travel(view.action, view.state[0], view.robot.embodiment)
            for view in views
            if not view.name or arm in (view.name, BOTH)
        ]
        return np.mean(ways, axis=0)


def hand_way(embodiment: Embodiment, robot: str) -> HandWay:
    """robot: a robot file; empty: the embodiment's own. Raises UserError where nothing says where the hand goes."""
    if translates(embodiment):
        return HandWay(embodiment, None)
    described = robot_of_embodiment(robot or embodiment.name, embodiment)
    state_1S, action_1A = (np.zeros((1, len(spec.names))) for spec in (embodiment.state, embodiment.action))
    for view in arm_views(state_1S, action_1A, described):
        check_translation(view.robot.embodiment)
    return HandWay(embodiment, described)
