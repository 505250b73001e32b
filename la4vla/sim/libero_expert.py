"""A scripted LIBERO expert: picks up what the task's goal names and puts it in or on its target, from true geometry.

Handles goals (In object region) and (On object object-or-region), one after the other, through the env's own 7-d
actions; drawers, knobs and pushing are not written, so libero_object and libero_spatial are its suites (30 of
30 episodes each, initial states 0 to 2). Distances in metres, angles in radians, world frame. What it sees (boxes and
poses of all objects) no policy may.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.sim.expert import Intent

Actions = Iterator[np.ndarray]

OPEN, HOLD, CLOSE = -1.0, 0.0, 1.0
ARM_REACH, TURN_REACH = 0.05, 0.5  # m and rad that a full command asks for
FINGERS_DOWN = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])  # of the grip site, closing along world y
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
UP = np.array([0, 0, 1.0])
RIM_GRASPED = ("bowl",)  # wider than the gripper: taken by the rim, fingers pre-shaped
WIDEST = 0.078  # m that fit between the fingers


@dataclass(frozen=True)
class Grasp:
    """Where the grip site goes, how the hand is turned about the vertical, and how high the object reaches."""

    point_3: np.ndarray
    yaw: float
    top: float


class LiberoExpert:
    """Decides one action a step.

    intent  what the last action was for
    """

    def __init__(self, scene: Any) -> None:
        """scene: LIBERO's ControlEnv after a reset."""
        self._scene, self._domain = scene, scene.env
        self._model, self._data = scene.sim.model._model, scene.sim.data._data
        self._site = scene.robots[0].eef_site_id
        self._fingers = scene.robots[0]._ref_gripper_joint_pos_indexes
        self._yaw, self._grip, self._carried_3 = 0.0, OPEN, np.zeros(3)
        self.intent = Intent((0,), self._hand()[0].astype(np.float32), 1.0, False)
        self._actions = self._plan()

    def action(self) -> np.ndarray:
        """float32 [7] in [-1, 1] for the present state; call once a step. Holds still when the plan is at its end."""
        return next(self._actions)

    def _plan(self) -> Actions:
        for predicate, name, *target in self._domain.parsed_problem["goal_state"]:
            if predicate in ("in", "on") and name in self._domain.objects_dict:
                yield from self._pick(name)
                yield from self._place(name, target[0], predicate == "in")
        while True:
            yield self._towards(self._hand()[0])

    def _pick(self, name: str) -> Actions:
        """Up to three tries, each with the grasp that the objects' present poses suggest."""
        lift = self._position(name)[2] + 0.15
        for _ in range(3):
            self._grip, grasp = OPEN, self._grasp(name)
            point_3, height = grasp.point_3, self._position(name)[2]
            above_3 = np.array([*point_3[:2], max(grasp.top + 0.09, point_3[2] + 0.10)])
            hand_3 = self._hand()[0]
            if hand_3[2] < above_3[2]:
                yield from self._go(np.array([*hand_3[:2], above_3[2]]), 25)
            self._yaw = grasp.yaw
            yield from self._go(above_3, 80, 0.012)
            if _by_the_rim(name):
                yield from self._preshape(0.018)
            yield from self._go(point_3 + 0.03 * UP, 25, 0.006)
            yield from self._go(point_3, 25, 0.004, 1.2)
            yield from self._stay(CLOSE, 12)
            yield from self._go(np.array([*point_3[:2], max(lift, point_3[2] + 0.12)]), 40, 0.02, 1.5)
            if self._position(name)[2] > height + 0.05:
                return

    def _place(self, name: str, target: str, inside: bool) -> Actions:
        """Over the target, down until the object's bottom is near its surface (or rim, if inside), and away."""
        hand_3, box_23 = self._hand()[0].copy(), self._box(name)
        offset_2, hang = (hand_3 - box_23.mean(0))[:2], hand_3[2] - box_23[0, 2]
        if inside:
            around_23 = self._box(self._parent(target))
            centre_2, rim = around_23.mean(0)[:2], around_23[1, 2]
        else:
            centre_2, rim = self._position(target)[:2], self._surface(target)
        down = rim + hang + (-0.05 if inside else 0.008)
        safe = max(rim + hang + 0.06, hand_3[2])
        yield from self._go(np.array([*hand_3[:2], safe]), 30, 0.03)
        yield from self._go(np.array([*(centre_2 + offset_2), safe]), 90, 0.012)
        if not inside:  # the object may have slipped in the hand
            offset_2 = (self._hand()[0] - self._box(name).mean(0))[:2]
        yield from self._go(np.array([*(centre_2 + offset_2), down]), 40, 0.010, 1.2)
        yield from self._stay(OPEN, 10)
        yield from self._go(self._hand()[0] + 0.12 * UP, 25, 0.02)

    def _go(self, target_3: np.ndarray, steps: int, tolerance: float = 0.01, gain: float = 2.0) -> Actions:
        """Steers until the hand is there and turned as it should be, for at most so many steps."""
        self._carried_3 = np.zeros(3)
        self._intend(target_3)
        for _ in range(steps):
            yield self._towards(target_3, gain)
            point_3, turn = self._hand()
            if np.linalg.norm(point_3 - target_3) < tolerance and np.linalg.norm(self._turn_left(turn)) < 0.08:
                return

    def _stay(self, grip: float, steps: int) -> Actions:
        self._grip, point_3 = grip, self._hand()[0].copy()
        self._intend(point_3, grasps=grip == CLOSE)
        for _ in range(steps):
            yield self._towards(point_3)

    def _preshape(self, half: float) -> Actions:
        """Closes until each finger is `half` from the middle, then holds it there."""
        self._grip, point_3 = CLOSE, self._hand()[0].copy()
        for _ in range(10):
            if abs(self._data.qpos[self._fingers][0]) <= half + 0.006:
                break
            yield self._towards(point_3)
        self._grip = HOLD

    def _intend(self, target_3: np.ndarray, grasps: bool = False) -> None:
        opening = None if self._grip == HOLD else float(self._grip == OPEN)
        self.intent = Intent((self.intent.phase[0] + 1,), target_3.astype(np.float32), opening, grasps)

    def _towards(self, target_3: np.ndarray, gain: float = 2.0) -> np.ndarray:
        """Proportional, with a small integral near the target: a payload leaves 1-2 cm without it."""
        point_3, turn = self._hand()
        error_3 = target_3 - point_3
        if np.linalg.norm(error_3) < 0.04:
            self._carried_3 = np.clip(self._carried_3 + 0.12 * error_3, -0.02, 0.02)
        move_3 = (gain * error_3 + self._carried_3) / ARM_REACH
        turn_3 = 1.5 * self._turn_left(turn) / TURN_REACH
        return np.clip([*move_3, *turn_3, self._grip], -1.0, 1.0).astype(np.float32)

    def _turn_left(self, turn: Rotation) -> np.ndarray:
        target = Rotation.from_euler("z", self._yaw) * Rotation.from_matrix(FINGERS_DOWN)
        return (target * turn.inv()).as_rotvec()

    def _hand(self) -> tuple[np.ndarray, Rotation]:
        return self._data.site_xpos[self._site], Rotation.from_matrix(self._data.site_xmat[self._site].reshape(3, 3))

    def _position(self, name: str) -> np.ndarray:
        if name in self._domain.obj_body_id:
            return self._data.xpos[self._domain.obj_body_id[name]].copy()
        return self._data.site_xpos[self._scene.sim.model.site_name2id(name)].copy()

    def _parent(self, target: str) -> str:
        sites = self._domain.object_sites_dict
        return sites[target].parent_name if target in sites else target

    def _surface(self, target: str) -> float:
        """Height of what is under the middle of an object; of a region, its own."""
        if target not in self._domain.obj_body_id:
            return float(self._position(target)[2])
        boxes_G83, middle_2 = self._boxes(target), self._position(target)[:2]
        near_G = (np.abs(boxes_G83.mean(1)[:, :2] - middle_2) < 0.03).all(1)
        return float((boxes_G83[near_G] if near_G.any() else boxes_G83)[..., 2].max())

    def _box(self, name: str) -> np.ndarray:
        """Lowest and highest coordinates [2, 3] of an object's collision boxes."""
        points_N3 = self._boxes(name).reshape(-1, 3)
        return np.stack([points_N3.min(0), points_N3.max(0)])

    def _boxes(self, name: str) -> np.ndarray:
        """World corners [G, 8, 3] of the boxes around an object's collision geoms."""
        root, corners = self._domain.obj_body_id[name], []
        for geom in np.flatnonzero(self._model.geom_group == 0):
            body = self._model.geom_bodyid[geom]
            while body > 0 and body != root:
                body = self._model.body_parentid[body]
            if body == root:
                centre_3, half_3 = self._model.geom_aabb[geom, :3], self._model.geom_aabb[geom, 3:]
                turn_33 = self._data.geom_xmat[geom].reshape(3, 3)
                corners.append((CORNERS * half_3 + centre_3) @ turn_33.T + self._data.geom_xpos[geom])
        return np.array(corners).reshape(-1, 8, 3)

    def _grasp(self, name: str) -> Grasp:
        """The narrowest way to take the object, with little turning and room for the fingers."""
        boxes_G83, around_23 = self._boxes(name), self._box(name)
        others = {other: self._boxes(other) for other in self._domain.obj_body_id if other != name}
        points_N3, top = boxes_G83.reshape(-1, 3), around_23[1, 2]
        options: list[tuple[float, Grasp]] = []
        if _by_the_rim(name):
            centre_2 = around_23.mean(0)[:2]
            radius = np.median(np.linalg.norm(points_N3[points_N3[:, 2] > top - 0.01][:, :2] - centre_2, axis=1))
            for angle in np.deg2rad(np.arange(0, 360, 15)):
                yaw = angle % np.pi - np.pi / 2  # the fingers close along the radius
                rim_2 = centre_2 + (radius - 0.004) * np.array([np.cos(angle), np.sin(angle)])
                grasp = Grasp(np.array([*rim_2, top - 0.018]), yaw, top)
                options.append((abs(yaw) + 3 * _crowded(grasp, others, 0.028), grasp))
            return min(options, key=lambda option: option[0])[1]
        height = max(around_23[0, 2] + 0.010, top - 0.032)
        at_height = (boxes_G83[..., 2].min(1) < height + 0.01) & (boxes_G83[..., 2].max(1) > height - 0.01)
        slab_N3 = boxes_G83[at_height].reshape(-1, 3)
        for yaw in np.deg2rad(np.arange(-90, 90, 5)):
            across_2, along_2 = np.array([-np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), np.sin(yaw)])
            width_N, length_N = slab_N3[:, :2] @ across_2, points_N3[:, :2] @ along_2
            middle_2 = across_2 * (width_N.max() + width_N.min()) / 2 + along_2 * (length_N.max() + length_N.min()) / 2
            grasp, width = Grasp(np.array([*middle_2, height]), yaw, top), float(np.ptp(width_N))
            cost = width / 0.01 + 0.6 * abs(yaw) + 3 * _crowded(grasp, others, 0.045) + 100 * (width > WIDEST)
            options.append((cost, grasp))
        return min(options, key=lambda option: option[0])[1]


def _by_the_rim(name: str) -> bool:
    return any(word in name for word in RIM_GRASPED)


def _crowded(grasp: Grasp, others: dict[str, np.ndarray], apart: float) -> int:
    """How many other objects' boxes are where the two fingers, each `apart` from the middle, come down."""
    across_2, height, hits = np.array([-np.sin(grasp.yaw), np.cos(grasp.yaw)]), grasp.point_3[2], 0
    for boxes_G83 in others.values():
        low_G3, high_G3 = boxes_G83.min(1), boxes_G83.max(1)
        in_reach_G = (high_G3[:, 2] > height - 0.012) & (low_G3[:, 2] < height + 0.12)
        for side in (-1, 1):
            finger_2 = grasp.point_3[:2] + side * apart * across_2
            beside_G = ((low_G3[:, :2] - 0.018 < finger_2) & (finger_2 < high_G3[:, :2] + 0.018)).all(1)
            hits += int((beside_G & in_reach_G).any())
    return hits
