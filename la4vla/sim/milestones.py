"""Milestones: how far the robot has come with what its task is about, from the simulator's own state.

contact  the robot touches it
grasp    both fingers touch it
lift     touched, and LIFTED above where it was when it was first touched
move     away from where it was then: by MOVED, or a joint of it by JOINT of its range
place    a part of the task's goal holds, as the simulator's own criterion says
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MILESTONES = ("contact", "grasp", "lift", "move", "place")
LIFTED = 0.02  # m
MOVED = 0.03  # m
JOINT = 0.1  # share of a joint's range
FREE = 0  # mujoco.mjtJoint.mjJNT_FREE


class Handling:
    """What the robot does with some bodies of a MuJoCo scene. Make one at the beginning of every episode."""

    def __init__(self, model: Any, data: Any, robot: str, fingers: tuple[str, str], targets: Sequence[int]) -> None:
        """robot, fingers: bodies, with all that hangs on them. targets: numbers of the bodies that the task is about,
        likewise."""
        self._model, self._data = model, data
        self._robot_G, self._left_G, self._right_G = (
            _below(model, model.body(name).id)[model.geom_bodyid] for name in (robot, *fingers)
        )
        below_NB = np.array([_below(model, number) for number in targets]).reshape(len(targets), model.nbody)
        self._targets_GN = below_NB.T[model.geom_bodyid]  # [geoms, targets]
        self._roots = list(targets)
        self._apart = self._ever = False  # whether nothing was touched once, and whether something was since
        joints = [number for number in range(model.njnt) if below_NB[:, model.jnt_bodyid[number]].any()]
        self._joints = [number for number in joints if model.jnt_type[number] != FREE and model.jnt_limited[number]]
        self._remember()

    def update(self) -> frozenset[str]:
        """Those of `contact`, `grasp`, `lift` and `move` that hold. To be called after every step: objects settle
        before they are touched, and that is no motion. A touch that is there from the beginning counts once it has
        ended: some scenes put the hand into what it is to press."""
        touched_N, left_N, right_N = (self._touched(part_G) for part_G in (self._robot_G, self._left_G, self._right_G))
        self._apart = self._apart or not touched_N.any()
        if not self._ever:
            self._remember()
        if not self._apart:
            return frozenset()
        self._ever = self._ever or bool(touched_N.any())
        moved_N3 = self._data.xpos[self._roots] - self._start_N3
        far = bool((np.linalg.norm(moved_N3, axis=1) > MOVED).any())
        found = {
            "contact": bool(touched_N.any()),
            "grasp": bool((left_N & right_N).any()),
            "lift": bool((touched_N & (moved_N3[:, 2] > LIFTED)).any()),
            "move": far or bool((np.abs(self._angles() - self._start_J) > JOINT).any()),
        }
        return frozenset(name for name, holds in found.items() if holds)

    def _remember(self) -> None:
        """Where all is now, as what motion is measured from."""
        self._start_N3, self._start_J = self._data.xpos[self._roots].copy(), self._angles()

    def _touched(self, part_G: np.ndarray) -> np.ndarray:
        """bool [N]: which targets touch one of these geoms."""
        contact = self._data.contact
        pairs_C2 = contact.geom[contact.efc_address >= 0]  # that push; pairs that are merely near are listed, too
        one, other = pairs_C2[:, 0], pairs_C2[:, 1]
        return (self._targets_GN[one] & part_G[other][:, None]).any(0) | (
            self._targets_GN[other] & part_G[one][:, None]
        ).any(0)

    def _angles(self) -> np.ndarray:
        """[J], as shares of the joints' ranges."""
        range_J2 = self._model.jnt_range[self._joints]
        place_J = self._data.qpos[self._model.jnt_qposadr[self._joints]]
        return (place_J - range_J2[:, 0]) / (range_J2[:, 1] - range_J2[:, 0])


def _below(model: Any, root: int) -> np.ndarray:
    """bool [bodies]: the body and all that hangs on it."""
    below_B = np.zeros(model.nbody, bool)
    below_B[root] = True
    for number in range(root + 1, model.nbody):  # parents come before their children
        below_B[number] = below_B[model.body_parentid[number]]
    return below_B
