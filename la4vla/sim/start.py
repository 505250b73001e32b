"""Another start of the robot: its hand is moved and keeps its turn; every joint that is not the robot's stays the same
to the bit.

Inverse kinematics puts the arm there. Nothing is simulated, so no object can be pushed on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

TRIES = 100  # directions; half of them and more are out of reach where the hand starts at the edge of its workspace
ITERATIONS = 50
DAMPING = 0.01  # of the least squares, m and rad alike
POINT_TOLERANCE, TURN_TOLERANCE = 1e-6, 1e-5  # m, rad


def move_hand(
    model: Any, data: Any, hand: int, distance: float, draws: np.random.Generator, allowed: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """Moves the body `hand` by `distance` (m) and returns the move [3] (m, world frame). Writes the robot's joint
    positions, sets its velocities to 0, and makes all else of `data` follow.

    The direction is the first random one whose move is `allowed`, which the arm reaches within its limits, and in which
    the robot touches nothing new. Raises RuntimeError where there is none.
    """
    before, touched = data.qpos.copy(), _touched(model, data, hand)
    for _ in range(TRIES):
        direction_3 = draws.standard_normal(3)
        move_3 = distance * direction_3 / np.linalg.norm(direction_3)
        if not allowed(move_3):
            continue
        data.qpos[:] = before
        if _reach(model, data, hand, move_3) and _touched(model, data, hand) <= touched:
            data.qvel[_joints(model, hand)[1]] = 0
            mujoco.mj_forward(model, data)  # pyright: ignore[reportAttributeAccessIssue]
            return move_3
    raise RuntimeError(f"no free place for the hand {100 * distance:.0f} cm from where it starts")


def _reach(model: Any, data: Any, hand: int, move_3: np.ndarray) -> bool:
    """Moves the arm's joints by damped least squares. Whether the hand got there; then `data` holds the new poses and
    contacts."""
    positions, velocities, limits_J2 = _joints(model, hand)
    _poses(model, data)
    point_3 = data.xpos[hand] + move_3
    turn = _turn(data, hand)
    jacobian_6D = np.empty((6, model.nv))
    for _ in range(ITERATIONS):
        left_6 = np.concatenate([point_3 - data.xpos[hand], (turn * _turn(data, hand).inv()).as_rotvec()])
        if np.linalg.norm(left_6[:3]) < POINT_TOLERANCE and np.linalg.norm(left_6[3:]) < TURN_TOLERANCE:
            mujoco.mj_collision(model, data)  # pyright: ignore[reportAttributeAccessIssue]
            return True
        mujoco.mj_jacBody(  # pyright: ignore[reportAttributeAccessIssue]
            model, data, jacobian_6D[:3], jacobian_6D[3:], hand
        )
        jacobian_6J = jacobian_6D[:, velocities]
        damped_66 = jacobian_6J @ jacobian_6J.T + DAMPING**2 * np.eye(6)
        data.qpos[positions] += jacobian_6J.T @ np.linalg.solve(damped_66, left_6)
        data.qpos[positions] = np.clip(data.qpos[positions], *limits_J2.T)
        _poses(model, data)
    return False


def _joints(model: Any, hand: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The robot's joints, all hinges and slides: indices into qpos and qvel [J], and limits [J, 2]."""
    joints = np.flatnonzero(model.body_rootid[model.jnt_bodyid] == model.body_rootid[hand])
    limits_J2 = np.where(model.jnt_limited[joints, None], model.jnt_range[joints], [-np.inf, np.inf])
    return model.jnt_qposadr[joints], model.jnt_dofadr[joints], limits_J2


def _touched(model: Any, data: Any, hand: int) -> set[int]:
    """The geoms that touch the robot and are none of its own."""
    pairs_C2 = data.contact.geom[data.contact.dist < 0]
    own_C2 = model.body_rootid[model.geom_bodyid[pairs_C2]] == model.body_rootid[hand]
    return set(pairs_C2[~own_C2 & own_C2[:, ::-1]].tolist())


def _poses(model: Any, data: Any) -> None:
    mujoco.mj_kinematics(model, data)  # pyright: ignore[reportAttributeAccessIssue]
    mujoco.mj_comPos(model, data)  # pyright: ignore[reportAttributeAccessIssue]


def _turn(data: Any, body: int) -> Rotation:
    return Rotation.from_matrix(data.xmat[body].reshape(3, 3))
