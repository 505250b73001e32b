"""Raw vectors: what the numbers of a dataset's state or action mean, and their conversion to ours.

Ours: metres, radians, rotations as Euler angles or rotation vectors without jumps at the working pose, no quaternions,
one gripper number that is 1 open and 0 closed. Nothing is guessed: every unit, sign and order is said in the robot's
file, and an unknown word is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.data.rotation import rotation_vectors, wrapped
from la4vla.types import ROTATION, TRANSLATION, UserError, VectorSpec

QUATERNION = ("qx", "qy", "qz", "qw")
ROTATIONS = ("none", "euler_xyz", "axis_angle", "quaternion")
ANGLES = {"rad": 1.0, "deg": math.pi / 180}
DROPPED = "_"


@dataclass(frozen=True)
class VectorUnits:
    """The `state:` or `action:` block of a robot's file.

    names: one per column, in the dataset's order. `x y z`, `rx ry rz` or `qx qy qz qw`, and `gripper` are understood,
    others are handed on. `_` is dropped; a leading minus negates; columns of one name are averaged (`gripper` and
    `-gripper` for two fingers that move apart). reference: absolute pose or delta command. frame: of translation and
    rotation. rotation: none | euler_xyz (extrinsic) | axis_angle | quaternion. length_unit: metres that 1.0 is.
    angle_unit: rad | deg, or the radians that 1.0 is. gripper_open, gripper_closed: raw values.
    rotation_near: `rx ry rz` of the usual pose, rad: numbers do not jump up to half a turn from it (VectorSpec).
    unit: for commands in a unit of their own (`1 cm of target motion`): all numbers stay as they are.
    """

    names: tuple[str, ...]
    reference: Literal["absolute", "delta"]
    frame: Literal["base", "tool"] = "base"
    rotation: Literal["none", "euler_xyz", "axis_angle", "quaternion"] = "none"
    length_unit: float = 1.0
    angle_unit: str | float = "rad"
    gripper_open: float = 1.0
    gripper_closed: float = 0.0
    unit: str = ""
    rotation_near: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def spec(self) -> VectorSpec:
        """What convert() hands on."""
        names: list[str] = []
        for name in _plain(self.names):
            if name not in QUATERNION:
                names.append(name)
            elif "rx" not in names:
                names += ROTATION
        rotation = "axis_angle" if self.rotation == "quaternion" else self.rotation
        opened, closed = (self.gripper_open, self.gripper_closed) if self.unit else (1.0, 0.0)
        unit = self.unit or "m"
        return VectorSpec(tuple(names), self.reference, self.frame, rotation, opened, closed, unit, self.rotation_near)


def convert(values_TD: np.ndarray, raw: VectorUnits) -> tuple[np.ndarray, VectorSpec]:
    """A dataset's vectors [T, D], D = len(raw.names), as ours: float32 [T, S] and what they mean.

    Raises ValueError with the frame of a quaternion that is zero.
    """
    assert values_TD.shape[1:] == (len(raw.names),), (values_TD.shape, raw.names)
    column = {name: _column(values_TD.astype(np.float64), raw.names, name) for name in _plain(raw.names)}
    spec = raw.spec
    if not raw.unit:
        column |= {name: column[name] * raw.length_unit for name in TRANSLATION if name in column}
        column |= _turned(column, raw)
        if "gripper" in column:
            column["gripper"] = (column["gripper"] - raw.gripper_closed) / (raw.gripper_open - raw.gripper_closed)
    return np.stack([column[name] for name in spec.names], axis=1).astype(np.float32), spec


def number(value: Any, name: str, where: str) -> float:
    """A finite number of a robot's file. where: names it in messages. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: `{name}` is {value}; it must be a number.")
    return float(value)


def vector_units(values: Any, where: str) -> VectorUnits:
    """A block of a robot's file. where: names it in messages. Raises UserError for a word that is not understood."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: holds {values}; it must hold `names`, `reference` and what else is not the usual.")
    known = {item.name for item in fields(VectorUnits)}
    if wrong := set(values) - known:
        raise UserError(f"{where}: `{min(wrong)}` is none of {', '.join(sorted(known))}.")
    if not isinstance(values.get("names"), list) or not values["names"]:
        raise UserError(f"{where}: `names` is missing; name every column in order, and those to drop `{DROPPED}`.")
    if "reference" not in values:
        raise UserError(f"{where}: `reference` is missing; say absolute or delta.")
    numbers = ("length_unit", "gripper_open", "gripper_closed")
    given: dict[str, Any] = {name: number(values[name], name, where) for name in numbers if name in values}
    if "rotation_near" in values:
        near = values["rotation_near"]
        if not isinstance(near, list) or len(near) != len(ROTATION):
            raise UserError(f"{where}: rotation_near is {near}; give rx, ry and rz of the usual pose, rad.")
        given["rotation_near"] = tuple(number(value, "rotation_near", where) for value in near)
    raw = VectorUnits(**{**values, **given, "names": tuple(map(str, values["names"]))})
    plain = _plain(raw.names)
    needed = {"none": (), "quaternion": QUATERNION}.get(raw.rotation, ROTATION)
    if raw.reference not in ("absolute", "delta") or raw.frame not in ("base", "tool") or raw.rotation not in ROTATIONS:
        raise UserError(
            f"{where}: reference is absolute or delta, frame base or tool, rotation one of {', '.join(ROTATIONS)}."
        )
    if "rotation_near" in values and (raw.unit or raw.reference == "delta" or raw.rotation == "none"):
        raise UserError(f"{where}: rotation_near is for absolute rotations in rad; leave it out.")
    if raw.unit and raw.rotation == "quaternion":
        raise UserError(f"{where}: quaternions have no unit of their own; leave `unit` out.")
    if set(needed) - set(plain) or (set(plain) & {*ROTATION, *QUATERNION}) - set(needed):
        named = " ".join(needed) or "no rotation"
        raise UserError(f"{where}: rotation {raw.rotation} goes with the names {named}, not {' '.join(plain)}.")
    if not isinstance(raw.angle_unit, float | int) and raw.angle_unit not in ANGLES:
        raise UserError(f"{where}: angle_unit is rad, deg or the radians that 1.0 is, not `{raw.angle_unit}`.")
    if raw.gripper_open == raw.gripper_closed:
        raise UserError(f"{where}: gripper_open and gripper_closed are both {raw.gripper_open}; say the two raw ends.")
    return raw


def _plain(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name.removeprefix("-") for name in names if name != DROPPED))


def _column(values_TD: np.ndarray, names: tuple[str, ...], name: str) -> np.ndarray:
    """The mean of the columns of a name, those with a minus negated."""
    signed = [(1.0 if item == name else -1.0, index) for index, item in enumerate(names) if item in (name, f"-{name}")]
    return np.mean([sign * values_TD[:, index] for sign, index in signed], axis=0)


def _turned(column: Mapping[str, np.ndarray], raw: VectorUnits) -> dict[str, np.ndarray]:
    """The rotation as `rx ry rz`, each turn with one set of numbers: that on the side of rotation_near."""
    if raw.rotation == "none":
        return {}
    if raw.rotation == "quaternion":
        turns_T4 = np.stack([column[name] for name in QUATERNION], axis=1)
        if (zero := np.flatnonzero(np.linalg.norm(turns_T4, axis=1) < 1e-6)).size:
            raise ValueError(f"the quaternion of frame {zero[0]} is zero")
        turns_T3 = rotation_vectors(Rotation.from_quat(turns_T4), raw.rotation_near)
        return dict(zip(ROTATION, turns_T3.T, strict=True))
    unit = ANGLES[raw.angle_unit] if isinstance(raw.angle_unit, str) else raw.angle_unit
    angles_T3 = np.stack([column[name] for name in ROTATION], axis=1) * unit
    if raw.rotation == "euler_xyz":
        turns_T3 = wrapped(angles_T3, raw.rotation_near)
    else:
        turns_T3 = rotation_vectors(Rotation.from_rotvec(angles_T3), raw.rotation_near)
    return dict(zip(ROTATION, turns_T3.T, strict=True))
