"""Units: what the numbers of a dataset's state or action mean, and their conversion to the project's own.

The project's own are metres and radians, rotations as Euler angles or rotation vectors without jumps at the working
pose, no quaternions, and one gripper number that is 1 open and 0 closed. Nothing is guessed: the robot's file says
every unit, sign and order, and an unknown word in it is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.data.rotation import rotation_vectors, wrapped
from la4vla.types import NUMERIC_UNITS, ROTATION, TRANSLATION, UserError, VectorSpec

QUATERNION = ("qx", "qy", "qz", "qw")
ROTATIONS = ("none", "euler_xyz", "axis_angle", "quaternion")
ANGLES = {"rad": 1.0, "deg": math.pi / 180}
DROPPED = "_"


@dataclass(frozen=True)
class VectorUnits:
    """The `state:` or `action:` block of a robot's file.

    names            one per column, in the dataset's order; a leading minus negates a column, `_` drops it; `gripper`
                     and `-gripper` side by side are two fingers that move apart, of which the mean is taken; `x y z`,
                     `rx ry rz` or `qx qy qz qw`, and `gripper` are understood, other columns are handed on
    reference        absolute pose or delta command
    frame            axes of translation and rotation
    rotation         none, euler_xyz (extrinsic), axis_angle or quaternion
    length_unit      metres that a translation of 1.0 is
    angle_unit       rad, deg, or the radians that an angle of 1.0 is
    gripper_open     the dataset's value of an open gripper
    gripper_closed   the dataset's value of a closed gripper
    unit             for commands in a unit of their own (`1 cm of target motion`); all numbers then stay as they are
    metres_per_unit  with `unit`: metres that a translation of 1.0 is; left out: unknown
    radians_per_unit with `unit`: radians that a rotation of 1.0 is; left out: unknown
    rotation_near    rx, ry, rz of the usual pose, rad; numbers do not jump within half a turn of it (VectorSpec)
    parts            of two arms, no setting of the block: (`left`, `right` or empty for all else; the block of these
                     columns, their names without the arm's), in the order of the first columns; empty for one arm
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
    metres_per_unit: float | None = None
    radians_per_unit: float | None = None
    parts: tuple[tuple[str, VectorUnits], ...] = ()

    @property
    def spec(self) -> VectorSpec:
        """The meaning of the vectors that convert() returns."""
        if self.parts:
            return _joined_spec(self.parts)
        names: list[str] = []
        for name in _plain(self.names):
            if name not in QUATERNION:
                names.append(name)
            elif "rx" not in names:
                names += ROTATION
        rotation = "axis_angle" if self.rotation == "quaternion" else self.rotation
        opened, closed = (self.gripper_open, self.gripper_closed) if self.unit else (1.0, 0.0)
        moves, turns = bool(set(names) & set(TRANSLATION)), bool(set(names) & set(ROTATION))
        return VectorSpec(
            tuple(names),
            self.reference,
            self.frame,
            rotation,
            opened,
            closed,
            self.unit or "m",
            self.rotation_near,
            metres_per_unit=self.metres_per_unit if self.unit else 1.0 if moves else None,
            radians_per_unit=self.radians_per_unit if self.unit else 1.0 if turns else None,
        )


def convert(values_TD: np.ndarray, units: VectorUnits) -> tuple[np.ndarray, VectorSpec]:
    """A dataset's vectors in the project's units: float32 [T, S], and their meaning.

    values_TD: D = len(units.names) columns. Raises ValueError with the frame of a quaternion that is zero.
    """
    assert values_TD.shape[1:] == (len(units.names),), (values_TD.shape, units.names)
    if units.parts:
        owner = [owner_of(name, [arm for arm, _ in units.parts if arm]) for name in units.names]
        each = [convert(values_TD[:, [of == arm for of in owner]], part)[0] for arm, part in units.parts]
        return np.concatenate(each, axis=1), units.spec
    column = {name: _column(values_TD.astype(np.float64), units.names, name) for name in _plain(units.names)}
    spec = units.spec
    if not units.unit:
        column |= {name: column[name] * units.length_unit for name in TRANSLATION if name in column}
        column |= _turned(column, units)
        if "gripper" in column:
            column["gripper"] = (column["gripper"] - units.gripper_closed) / (units.gripper_open - units.gripper_closed)
    return np.stack([column[name] for name in spec.names], axis=1).astype(np.float32), spec


def number(value: Any, name: str, where: str) -> float:
    """`value` as a float. where: the robot's file, for messages. Raises UserError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: `{name}` is {value}; it must be a number.")
    return float(value)


def vector_units(values: Any, where: str, arms: Sequence[str] = ()) -> VectorUnits:
    """A block of a robot's file. where: the file, for messages. arms: of two, whose columns are `left_x` and so on.

    Raises UserError for a word that is not understood.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values}; it must hold `names`, `reference`, and every setting without a default.")
    if arms and isinstance(values.get("names"), list):
        return _of_two_arms(values, where, arms)
    known = {item.name for item in fields(VectorUnits)} - {"parts"}
    if wrong := set(values) - known:
        raise UserError(f"{where}: `{min(wrong)}` is no setting; use some of {', '.join(sorted(known))}.")
    if not isinstance(values.get("names"), list) or not values["names"]:
        raise UserError(f"{where}: `names` is missing; name every column in order, `{DROPPED}` for one to drop.")
    if "reference" not in values:
        raise UserError(f"{where}: `reference` is missing; say absolute or delta.")
    numbers = ("length_unit", "gripper_open", "gripper_closed", *NUMERIC_UNITS)
    given: dict[str, Any] = {name: number(values[name], name, where) for name in numbers if name in values}
    if "rotation_near" in values:
        near = values["rotation_near"]
        if not isinstance(near, list) or len(near) != len(ROTATION):
            raise UserError(f"{where}: rotation_near is {near}; give rx, ry and rz of the usual pose in rad.")
        given["rotation_near"] = tuple(number(value, "rotation_near", where) for value in near)
    units = VectorUnits(**{**values, **given, "names": tuple(map(str, values["names"]))})
    plain = _plain(units.names)
    if twice := _repeated(units.names):
        raise UserError(
            f"{where}: `{twice}` is named twice, and the two columns would be averaged; give each column a name of its "
            "own, or `_` to drop it. Only a gripper's two fingers, side by side, may share the name gripper; of two "
            "arms, name the one that instructions describe x, y, z."
        )
    needed = {"none": (), "quaternion": QUATERNION}.get(units.rotation, ROTATION)
    if (
        units.reference not in ("absolute", "delta")
        or units.frame not in ("base", "tool")
        or units.rotation not in ROTATIONS
    ):
        raise UserError(
            f"{where}: reference is absolute or delta, frame base or tool, rotation one of {', '.join(ROTATIONS)}."
        )
    if "rotation_near" in values and (units.unit or units.reference == "delta" or units.rotation == "none"):
        raise UserError(f"{where}: rotation_near goes with absolute rotations in rad only; leave it out.")
    for name in NUMERIC_UNITS:
        if name in given and (not units.unit or given[name] <= 0):
            raise UserError(
                f"{where}: `{name}` is a number above 0 and goes with `unit`; without `unit` leave it out, since "
                "length_unit and angle_unit convert all numbers to metres and radians."
            )
    if units.unit and units.rotation == "quaternion":
        raise UserError(f"{where}: quaternions have no unit of their own; leave `unit` out.")
    if set(needed) - set(plain) or (set(plain) & {*ROTATION, *QUATERNION}) - set(needed):
        named = " ".join(needed) or "no rotation"
        raise UserError(f"{where}: rotation {units.rotation} goes with the names {named}, not {' '.join(plain)}.")
    if not isinstance(units.angle_unit, float | int) and units.angle_unit not in ANGLES:
        raise UserError(
            f"{where}: angle_unit is `{units.angle_unit}`; write rad, deg or the radians that an angle of 1.0 is."
        )
    if units.gripper_open == units.gripper_closed:
        raise UserError(
            f"{where}: gripper_open and gripper_closed are both {units.gripper_open}; give the dataset's values of "
            "both ends."
        )
    return units


def owner_of(column: str, arms: Sequence[str]) -> str:
    """The arm that a column belongs to by its name's beginning; empty if to none. A minus in front does not count."""
    return next((arm for arm in arms if column.removeprefix("-").startswith(f"{arm}_")), "")


def _of_two_arms(values: Mapping[str, Any], where: str, arms: Sequence[str]) -> VectorUnits:
    """A block whose columns are those of two arms and perhaps others. Raises UserError."""
    names = list(map(str, values["names"]))
    parts = []
    for arm in dict.fromkeys(owner_of(name, arms) for name in names):
        own = [name.replace(f"{arm}_", "", 1) if arm else name for name in names if owner_of(name, arms) == arm]
        block = {**values, "names": own}
        if not arm:  # such as a base's wheels: numbers without a turn of a hand
            block = {name: value for name, value in block.items() if name not in ("rotation", "rotation_near")}
        parts.append((arm, vector_units(block, f"{where}, {arm} arm" if arm else where)))
    if missing := [arm for arm in arms if arm not in dict(parts)]:
        raise UserError(
            f"{where}: no column begins with `{missing[0]}_`; name those of each arm after it, as in {missing[0]}_x."
        )
    return replace(dict(parts)[arms[0]], names=tuple(names), parts=tuple(parts))


def _joined_spec(parts: Sequence[tuple[str, VectorUnits]]) -> VectorSpec:
    """The meaning of two arms' vectors side by side. All but the names is alike in both arms."""
    names = [f"{arm}_{name}" if arm else name for arm, part in parts for name in part.spec.names]
    arm = next(part.spec for arm, part in parts if arm)
    return replace(arm, names=tuple(names))


def _repeated(names: tuple[str, ...]) -> str:
    """A name that stands for several columns and may not; empty if there is none."""
    plain = [name.removeprefix("-") for name in names]
    places: dict[str, list[int]] = {}
    for place, name in enumerate(plain):
        places.setdefault(name, []).append(place)
    for name, where in places.items():
        fingers = name == "gripper" and len(where) == 2 and where[1] - where[0] == 1
        if name != DROPPED and len(where) > 1 and not fingers:
            return name
    return ""


def _plain(names: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name.removeprefix("-") for name in names if name != DROPPED))


def _column(values_TD: np.ndarray, names: tuple[str, ...], name: str) -> np.ndarray:
    """The mean of all columns with that name; columns with a minus are negated."""
    signed = [(1.0 if item == name else -1.0, index) for index, item in enumerate(names) if item in (name, f"-{name}")]
    return np.mean([sign * values_TD[:, index] for sign, index in signed], axis=0)


def _turned(column: Mapping[str, np.ndarray], units: VectorUnits) -> dict[str, np.ndarray]:
    """The rotation as `rx ry rz`. Of the sets of numbers that mean one turn, the one on the side of rotation_near."""
    if units.rotation == "none":
        return {}
    if units.rotation == "quaternion":
        turns_T4 = np.stack([column[name] for name in QUATERNION], axis=1)
        if (zero := np.flatnonzero(np.linalg.norm(turns_T4, axis=1) < 1e-6)).size:
            raise ValueError(f"the quaternion of frame {zero[0]} is zero")
        turns_T3 = rotation_vectors(Rotation.from_quat(turns_T4), units.rotation_near)
        return dict(zip(ROTATION, turns_T3.T, strict=True))
    unit = ANGLES[units.angle_unit] if isinstance(units.angle_unit, str) else units.angle_unit
    angles_T3 = np.stack([column[name] for name in ROTATION], axis=1) * unit
    if units.rotation == "euler_xyz":
        turns_T3 = wrapped(angles_T3, units.rotation_near)
    else:
        turns_T3 = rotation_vectors(Rotation.from_rotvec(angles_T3), units.rotation_near)
    return dict(zip(ROTATION, turns_T3.T, strict=True))
