"""The hand's pose from joints: block `kinematics` of a robot's file, computed by MuJoCo from the arm's MJCF or URDF.

Owns the block's words, the model without all that kinematics does not need (meshes, which URDFs often come without),
and the check that joints lie where the model lets them: degrees that are called radians do not.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.construct.robots.units import ANGLES, number
from la4vla.types import UserError

RANGE = "range"
TOLERANCE = 0.1  # rad or m beyond the model's range; motors are calibrated to some degrees
TURNS_RAD = 4 * np.pi  # rad; a joint without a range turns once or twice
NAMES_SHOWN = 12  # of a model's, in messages


@dataclass(frozen=True)
class Placing:
    """Where one frame stands in another.

    xyz  m
    rpy  rad, turns about the fixed axes x, y and z, in this order (URDF's)
    """

    xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rpy: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def turn(self) -> Rotation:
        return Rotation.from_euler("xyz", self.rpy)


@dataclass(frozen=True)
class Kinematics:
    """How the joints of an arm give the pose of its hand.

    model         file of the arm, MJCF or URDF
    site          site or body (link) of the model that is the hand
    joints        joint of the model -> column of the state, with a leading minus if it turns the other way
    unit          of the columns: rad, deg, the rad that 1.0 is, or range: -100 .. 100 is the joint's range in the model
    zero          joint -> what is added to its column, in the column's unit; 0 where it is not named
    tolerance     rad or m that a joint may lie beyond its range in the model
    model_angles  rad or deg, the model's own; empty: as its file says, or MuJoCo's degrees if an MJCF does not say
    base          of the model, in the frame whose axes are forward, left and up
    offset        of what counts as the hand, in the frame of `site`
    where         the robot's file, for messages
    """

    model: Path
    site: str
    joints: Mapping[str, str]
    unit: str | float
    zero: Mapping[str, float]
    tolerance: float
    model_angles: str
    base: Placing
    offset: Placing
    where: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold the joints."""
        return tuple(name.removeprefix("-") for name in self.joints.values())

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same joints may give another pose, the robot's own file aside."""
        model = self._chain()
        parts = (model.body_pos, model.body_quat, model.jnt_axis, model.jnt_pos, model.site_pos, model.site_quat)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()

    def poses(self, column: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Rotation]:
        """The hand's positions, float64 [T, 3] in m, and its turns, T of them, in the base frame.

        column: name -> values [T] of a state or of absolute commands, in the dataset's unit.
        """
        import mujoco

        model = self._chain()
        data = mujoco.MjData(model)  # pyright: ignore[reportAttributeAccessIssue]
        angle_TJ = self._angles(column, model)
        places = [int(model.joint(name).qposadr[0]) for name in self.joints]
        site = self.site in _names(model, "site")
        hand = model.site(self.site).id if site else model.body(self.site).id
        at_N3, turn_N9 = (data.site_xpos, data.site_xmat) if site else (data.xpos, data.xmat)
        position_T3, turn_T9 = np.zeros((len(angle_TJ), 3)), np.zeros((len(angle_TJ), 9))
        for frame, angles in enumerate(angle_TJ):
            data.qpos[places] = angles
            mujoco.mj_kinematics(model, data)  # pyright: ignore[reportAttributeAccessIssue]
            position_T3[frame], turn_T9[frame] = at_N3[hand], turn_N9[hand]
        turn_T = Rotation.from_matrix(turn_T9.reshape(-1, 3, 3))
        base = self.base.turn
        reached_T3 = base.apply(position_T3 + turn_T.apply(self.offset.xyz)) + np.array(self.base.xyz)
        return reached_T3, base * turn_T * self.offset.turn

    def fault(self, column: Mapping[str, np.ndarray]) -> str:
        """A sentence about the first joint that lies beyond its range in the model; empty if all lie within.

        column: as poses() takes it.
        """
        model = self._chain()
        for (name, of), angle_T in zip(self.joints.items(), self._angles(column, model).T, strict=True):
            low, high = _range(model, name)
            beyond_T = np.maximum(low - angle_T, angle_T - high)
            if beyond_T.max() > self.tolerance:
                frame = int(np.argmax(beyond_T > self.tolerance))
                return (
                    f"column {of.removeprefix('-')} puts joint {name} at {angle_T[frame]:.4g} in frame {frame}, and "
                    f"its model lets it go from {low:.4g} to {high:.4g} (rad, or m if it slides); correct unit, zero "
                    f"or signs of kinematics in {self.where} (unit: deg if the columns are degrees, model_angles if "
                    "the range is wrong), or drop the episode."
                )
        return ""

    def doubt(self, column: Mapping[str, np.ndarray]) -> str:
        """A sentence if the file calls the columns degrees and all of them stay within a turn in rad; else empty."""
        largest = max(float(np.abs(column[name]).max()) for name in self.columns)
        if self.unit != "deg" or largest > 2 * np.pi:
            return ""
        return (
            f"the joints stay within {largest:.3g} degrees; if they are radians, kinematics in {self.where} must say "
            "unit: rad"
        )

    def check(self, columns: Sequence[str]) -> None:
        """Raises UserError unless the model can be read and has the site and the joints, and these have a column.

        columns: names of the state's.
        """
        model = self._chain()
        hands = [*_names(model, "site"), *_names(model, "body")[1:]]
        if self.site not in hands:
            raise UserError(
                f"{self.where}: kinematics.site is `{self.site}`; {self.model} has the sites and bodies "
                f"{_listed(hands)}."
            )
        movable = [name for name in _names(model, "joint") if model.joint(name).type[0] in _hinge_and_slide()]
        for name, of in self.joints.items():
            if name not in movable:
                raise UserError(
                    f"{self.where}: kinematics.joints names `{name}`; {self.model} has the joints {_listed(movable)}."
                )
            if of.removeprefix("-") not in columns:
                raise UserError(
                    f"{self.where}: kinematics.joints takes joint {name} from the column `{of.removeprefix('-')}`, "
                    f"which the state lacks; it has {', '.join(columns)}."
                )
            if self.unit == RANGE and not model.joint(name).limited[0]:
                raise UserError(
                    f"{self.where}: kinematics.unit is {RANGE}, and joint {name} has no range in {self.model}; write "
                    "rad, deg or the radians that 1.0 is."
                )
        if unmoved := [name for name in self.zero if name not in self.joints]:
            raise UserError(f"{self.where}: kinematics.zero names `{unmoved[0]}`, which kinematics.joints does not.")

    def _angles(self, column: Mapping[str, np.ndarray], model: Any) -> np.ndarray:
        """float64 [T, J], rad or m as the model counts."""
        angles = []
        for name, of in self.joints.items():
            sign = -1.0 if of.startswith("-") else 1.0
            value_T = sign * column[of.removeprefix("-")].astype(np.float64) + self.zero.get(name, 0.0)
            if self.unit == RANGE:
                low, high = _range(model, name)
                angles.append(low + (value_T + 100.0) / 200.0 * (high - low))
            else:
                angles.append(value_T * (ANGLES[self.unit] if isinstance(self.unit, str) else self.unit))
        return np.stack(angles, axis=1)

    def _chain(self) -> Any:
        if not self.model.is_file():
            raise UserError(
                f"{self.where}: kinematics.model is {self.model}, which does not exist; name the arm's MJCF or URDF."
            )
        return _compiled(self.model, self.model.stat().st_mtime_ns, self.model_angles, self.where)


def kinematics_of(values: Any, where: str, folder: Path) -> Kinematics:
    """A block `kinematics`. where: the robot's file. folder: that relative paths of models start from.

    Raises UserError for a word that is not understood; Kinematics.check looks into the model.
    """
    known = {item.name for item in fields(Kinematics)} - {"where"}
    if not isinstance(values, Mapping) or not {"model", "site", "joints"} <= set(values):
        raise UserError(f"{where}: kinematics is {values}; it must hold model, site and joints.")
    if wrong := set(values) - known:
        raise UserError(f"{where}: kinematics has no `{min(wrong)}`; use some of {', '.join(sorted(known))}.")
    joints = values["joints"]
    if not isinstance(joints, Mapping | list) or not joints:
        raise UserError(
            f"{where}: kinematics.joints is {joints}; write the model's joints with their columns, or a list of joints "
            "if the columns have the same names."
        )
    unit = values.get("unit", "rad")
    if (
        isinstance(unit, bool)
        or not isinstance(unit, float | int | str)
        or (isinstance(unit, str) and unit not in (*ANGLES, RANGE))
    ):
        raise UserError(
            f"{where}: kinematics.unit is {unit}; write rad, deg, the radians that 1.0 is, or {RANGE} if -100 .. 100 "
            "is the range of each joint."
        )
    angles = values.get("model_angles", "")
    if angles not in ("", *ANGLES):
        raise UserError(f"{where}: kinematics.model_angles is {angles}; write rad or deg, the model's own.")
    zero = values.get("zero", {})
    if not isinstance(zero, Mapping):
        raise UserError(f"{where}: kinematics.zero is {zero}; write joints of the model with numbers.")
    return Kinematics(
        model=_model_path(str(values["model"]), where, folder),
        site=str(values["site"]),
        joints={str(name): str(name if isinstance(joints, list) else joints[name]) for name in joints},
        unit=unit,
        zero={str(name): number(value, f"zero.{name}", f"{where}, kinematics") for name, value in zero.items()},
        tolerance=number(values.get("tolerance", TOLERANCE), "tolerance", f"{where}, kinematics"),
        model_angles=angles,
        base=_placing(values.get("base", {}), "base", where),
        offset=_placing(values.get("offset", {}), "offset", where),
        where=where,
    )


def _placing(values: Any, name: str, where: str) -> Placing:
    if not isinstance(values, Mapping) or set(values) - {"xyz", "rpy"}:
        raise UserError(f"{where}: kinematics.{name} is {values}; write xyz in m and rpy in rad, three numbers each.")
    read = {}
    for key, three in values.items():
        if not isinstance(three, list) or len(three) != 3:
            raise UserError(f"{where}: kinematics.{name}.{key} is {three}; write three numbers.")
        read[key] = tuple(number(value, f"{name}.{key}", f"{where}, kinematics") for value in three)
    return Placing(**read)


def _model_path(name: str, where: str, folder: Path) -> Path:
    """A path; `PACKAGE:PATH` is one inside an installed Python package, which is not imported."""
    package, _, inside = name.partition(":")
    if not inside or "/" in package:
        return (folder / Path(name).expanduser()).resolve()
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{where}: kinematics.model is {name}, and there is no package {package}; install it.")
    return Path(found.submodule_search_locations[0]) / inside


@lru_cache(maxsize=16)
def _compiled(path: Path, _changed_ns: int, angles: str, where: str) -> Any:
    """The model's bodies, joints and sites alone."""
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise UserError(f'{where}: kinematics needs mujoco; pip install "la4vla[construct]" has it.') from error
    try:
        spec = mujoco.MjSpec.from_file(str(path))  # pyright: ignore[reportAttributeAccessIssue]
        unused = (spec.sensors, spec.actuators, spec.tendons, spec.equalities, spec.pairs, spec.excludes, spec.skins)
        drawn = (spec.geoms, spec.meshes, spec.hfields, spec.materials, spec.textures, spec.keys)
        for items in (*unused, *drawn):
            for item in list(items):
                item.delete()
        if angles:
            spec.compiler.degree = angles == "deg"
        spec.compiler.fusestatic = False  # a URDF's fixed links would vanish, and the hand is often one
        spec.compiler.boundmass, spec.compiler.boundinertia = 1e-3, 1e-6  # what moved by its meshes' weight
        return spec.compile()
    except ValueError as error:
        raise UserError(f"{where}: {path} is no MJCF or URDF that MuJoCo reads ({error}).") from error


def _names(model: Any, kind: str) -> list[str]:
    if kind == "site":
        return [model.site(index).name for index in range(model.nsite)]
    if kind == "joint":
        return [model.joint(index).name for index in range(model.njnt)]
    return [model.body(index).name for index in range(model.nbody)]


def _hinge_and_slide() -> tuple[int, int]:
    import mujoco

    kinds = mujoco.mjtJoint  # pyright: ignore[reportAttributeAccessIssue]
    return int(kinds.mjJNT_HINGE), int(kinds.mjJNT_SLIDE)


def _range(model: Any, name: str) -> tuple[float, float]:
    joint = model.joint(name)
    low, high = joint.range if joint.limited[0] else (-TURNS_RAD, TURNS_RAD)
    return float(low), float(high)


def _listed(names: Sequence[str]) -> str:
    named = [name for name in names if name]
    return ", ".join(named[:NAMES_SHOWN]) + ", ..." * (len(named) > NAMES_SHOWN) or "none"
