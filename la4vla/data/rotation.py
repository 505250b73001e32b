"""Rotations as numbers: which of the many sets of numbers that mean one turn is written down.

A hand that points down stands half a turn from the base frame, where rotation vectors and Euler angles of at most pi
jump by 2 pi at a hair's tilt: numbers of one robot at work would be two clouds. `near` names a rotation about which
they are continuous instead (VectorSpec.rotation_near).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.types import ARMS, ROTATION, VectorSpec

SAME = 1e-3  # rad: less is rounding, and another side is far away


def wrapped(angle: np.ndarray, near: Sequence[float] | float = 0.0) -> np.ndarray:
    """Angles in rad -> the same angles, each in (near - pi, near + pi]."""
    end = np.asarray(near) + np.pi
    return end - np.mod(end - angle, 2 * np.pi)


def rotation_vectors(turns: Rotation, near: Sequence[float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Rotation vectors [T, 3], or [3] of a single turn, rad, of at most 2 pi: continuous up to half a turn from `near`.

    near: a rotation vector. With the zero vector these are scipy's, of at most pi.
    """
    quaternions = turns.as_quat()
    side = np.where(quaternions @ Rotation.from_rotvec(near).as_quat() < 0, -1.0, 1.0)[..., None]
    axis, cosine = (side * quaternions)[..., :3], (side * quaternions)[..., 3:]
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, cosine)
    return np.where(sine > 0, axis * (angle / np.where(sine > 0, sine, 1.0)), 0.0)


def on_side(state: np.ndarray, spec: VectorSpec) -> np.ndarray:
    """A state [S] with its turn, or the turns of two arms, written as `spec` says: a robot's driver may count angles
    from another side. What is on that side already stays as it is, to the bit."""
    if spec.rotation == "none" or spec.reference != "absolute":
        return state
    for arm in ("", *ARMS):
        dims = spec.dims(*(f"{arm}_{name}" if arm else name for name in ROTATION))
        if len(dims) == len(ROTATION):
            state = _turn_on_side(state, spec, dims)
    return state


def _turn_on_side(state: np.ndarray, spec: VectorSpec, dims: Sequence[int]) -> np.ndarray:
    given = state[dims].astype(np.float64)
    if not np.isfinite(given).all():
        return state
    if spec.rotation == "euler_xyz":
        turned = wrapped(given, spec.rotation_near)
    else:
        turned = rotation_vectors(Rotation.from_rotvec(given), spec.rotation_near)
    if np.abs(turned - given).max() < SAME:
        return state
    moved = state.copy()
    moved[dims] = turned
    return moved
