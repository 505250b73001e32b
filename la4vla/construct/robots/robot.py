"""Robots: what a dataset's numbers mean, and which axes are forward, left and up. One YAML file a robot in `robots/`.

Owns `Robot`, `Arm`, `RobotFile` and the YAML files. A robot without a file is an error: wrong axes would teach wrong
words, and wrong signs would teach wrong grasps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from la4vla.construct.robots.kinematics import Kinematics, kinematics_of
from la4vla.construct.robots.units import VectorUnits, number, owner_of, vector_units
from la4vla.types import ARMS, ROTATION, TRANSLATION, Embodiment, UserError, VectorSpec

ROBOTS = Path(__file__).parent
DESCRIBED = (*TRANSLATION, *ROTATION, "gripper", "contact")
"""The dims that instructions describe."""
AXES = ("+x", "-x", "+y", "-y", "+z", "-z")


@dataclass(frozen=True)
class RobotFrame:
    """How the numbers of an embodiment map to words. Openings are 1 open, 0 closed.

    forward, left, up    signed axes of the base frame, such as `+y`
    closed_on_nothing    opening at which an empty gripper comes to rest under a closing command
    hold_margin          a rest opening this much above closed_on_nothing means that something is in between
    open_from            openings from here on are called open
    """

    forward: str
    left: str
    up: str
    closed_on_nothing: float
    hold_margin: float
    open_from: float

    def from_base(self, vector_D3: np.ndarray) -> np.ndarray:
        """Vectors [..., 3] of the base frame as (forward, left, up), in the same unit."""
        signed = [
            (-1.0 if axis[0] == "-" else 1.0, "xyz".index(axis[1])) for axis in (self.forward, self.left, self.up)
        ]
        return np.stack([sign * vector_D3[..., index] for sign, index in signed], axis=-1)


@dataclass(frozen=True)
class Arm:
    """One of two arms, or the only one.

    name          left or right; empty: the only one
    frame         how its numbers map to words
    kinematics    where its hand is by its joints; None: the vectors hold the hand's position, or none at all
    """

    name: str
    frame: RobotFrame
    kinematics: Kinematics | None = None


@dataclass(frozen=True)
class Robot:
    """The robot of an episode.

    embodiment    meaning of the episode's states and actions
    frame         how they map to words
    same_arm      names of other dims that belong to the arm whose hand is described, such as its joints
    kinematics    where the hand is by the joints, of a robot with one arm
    arms          both arms of a robot with two; empty for one
    mobile_base   names of the dims that move the robot as a whole
    """

    embodiment: Embodiment
    frame: RobotFrame
    same_arm: tuple[str, ...] = ()
    kinematics: Kinematics | None = None
    arms: tuple[Arm, ...] = ()
    mobile_base: tuple[str, ...] = ()

    def undescribed(self, spec: VectorSpec) -> list[str]:
        """The dims of a state or an action whose motion no instruction describes, such as those of a second arm.

        None if the vector has no position: its joints are then all that there is of the described arm. Those of a
        mobile base are always among them.
        """
        known = [*DESCRIBED, *self.same_arm]
        if self.arms:
            arms = [arm.name for arm in self.arms]
            return [name for name in spec.names if name not in self.same_arm and not owner_of(name, arms)]
        if self.kinematics is not None:
            known += self.kinematics.columns
        elif not spec.has_position:
            return [name for name in spec.names if name in self.mobile_base]
        return [name for name in spec.names if name not in known]


@dataclass(frozen=True)
class RobotFile:
    """A robot's whole YAML file: what the columns of its datasets mean.

    name          of the file, without .yaml; the name of the embodiment
    control_hz    frames a second
    state         block `state`
    action        block `action`
    frame         block `frame`
    same_arm      list `same_arm`; may be left out
    kinematics    block `kinematics`; may be left out
    arms          block `arms`; may be left out
    mobile_base   list `mobile_base`; may be left out
    text          the file's content and a digest of the models it names, by which a change is noticed
    """

    name: str
    control_hz: float
    state: VectorUnits
    action: VectorUnits
    frame: RobotFrame
    same_arm: tuple[str, ...]
    kinematics: Kinematics | None
    arms: tuple[Arm, ...]
    mobile_base: tuple[str, ...]
    text: str

    @property
    def robot(self) -> Robot:
        """The robot of the episodes that are read with this file."""
        embodiment = Embodiment(self.name, self.control_hz, self.state.spec, self.action.spec)
        return Robot(embodiment, self.frame, self.same_arm, self.kinematics, self.arms, self.mobile_base)


def robot_frame(name: str, arm: str = "") -> RobotFrame:
    """The frame of a robot's file: a name in robots/ or the path of a YAML. arm: of two.

    Raises UserError if there is none.
    """
    path = _path(name)
    values = _load(path)
    own = values.get("arms", {}).get(arm) or {}
    return _frame(own if "frame" in own else values, path)


def robot_of_embodiment(name: str, embodiment: Embodiment) -> Robot:
    """The robot of vectors that are stored already, whose axes, arms and kinematics a file says.

    name: in robots/ or the path of a YAML. Raises UserError for what does not fit the embodiment.
    """
    path = _path(name)
    values = _load(path)
    arms, frame = _arms(values, path), _frame(values, path)
    kinematics = kinematics_of(values["kinematics"], str(path), path.parent) if "kinematics" in values else None
    _checked([Arm("", frame, kinematics), *arms], embodiment.state, path)
    return Robot(embodiment, frame, kinematics=kinematics, arms=arms)


def robot_file(name: str) -> RobotFile:
    """All of a robot's file: a name in robots/ or the path of a YAML. Raises UserError for what is not understood."""
    path = _path(name)
    values = _load(path)
    for key in ("control_hz", "state", "action"):
        if key not in values:
            raise UserError(
                f"{path}: `{key}` is missing; la4vla/construct/robots/droid_franka.yaml shows a whole file."
            )
    arms, frame = _arms(values, path), _frame(values, path)
    named = [arm.name for arm in arms]
    state, action = (vector_units(values[what], f"{path}, {what}", named) for what in ("state", "action"))
    kinematics = kinematics_of(values["kinematics"], str(path), path.parent) if "kinematics" in values else None
    if kinematics is not None and arms:
        raise UserError(f"{path}: kinematics stands beside arms; move it into arms.left and arms.right.")
    digests = _checked([Arm("", frame, kinematics), *arms], state.spec, path)
    return RobotFile(
        path.stem,
        number(values["control_hz"], "control_hz", str(path)),
        state,
        action,
        frame,
        _names(values, "same_arm", {*state.spec.names, *action.spec.names}, "belong to the described arm", path),
        kinematics,
        arms,
        _names(values, "mobile_base", {*state.spec.names, *action.spec.names}, "move the robot as a whole", path),
        "".join([path.read_text(), *digests]),
    )


def _arms(values: Mapping[str, Any], path: Path) -> tuple[Arm, ...]:
    """The block `arms`; none if it is left out."""
    given = values.get("arms", {})
    if not given:
        return ()
    if not isinstance(given, Mapping) or set(given) != set(ARMS):
        raise UserError(f"{path}: arms must hold left and right; a robot with one arm leaves it out.")
    arms = []
    for name in ARMS:
        own = given[name] or {}
        if not isinstance(own, Mapping) or set(own) - {"kinematics", "frame"}:
            raise UserError(f"{path}: arms.{name} is {own}; it may hold kinematics and a frame of its own.")
        where = f"{path}, {name} arm"
        kinematics = kinematics_of(own["kinematics"], where, path.parent) if "kinematics" in own else None
        arms.append(Arm(name, _frame(own if "frame" in own else values, path), kinematics))
    return tuple(arms)


def _checked(arms: Sequence[Arm], state: VectorSpec, path: Path) -> list[str]:
    """A digest of each model. Raises UserError where a model does not fit the state."""
    digests = []
    for arm in arms:
        if arm.kinematics is None:
            continue
        if state.of_arm(arm.name).has_position:
            raise UserError(f"{path}: the state has x and y already, so kinematics has nothing to add; leave it out.")
        arm.kinematics.check(state.names)
        digests.append(arm.kinematics.fingerprint)
    return digests


def _names(values: Mapping[str, Any], key: str, there: set[str], why: str, path: Path) -> tuple[str, ...]:
    """A list of names of other dims than the described ones; empty if it is left out."""
    named, known = values.get(key, []), there - set(DESCRIBED)
    if not isinstance(named, list) or [name for name in named if name not in known]:
        raise UserError(
            f"{path}: {key} is {named}; list names of the state or the action that {why}, "
            f"of {', '.join(sorted(known)) or 'which there are none: leave it out'}."
        )
    return tuple(named)


def _path(name: str) -> Path:
    path = Path(name) if name.endswith((".yaml", ".yml")) else ROBOTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in ROBOTS.glob("*.yaml")))
        raise UserError(f"no robot file {path}; write one like those of la4vla/construct/robots/ ({known}).")
    return path


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({error}); repair it.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} describes no robot; la4vla/construct/robots/droid_franka.yaml shows a whole file.")
    return values


def _frame(values: Mapping[str, Any], path: Path) -> RobotFrame:
    known = {item.name for item in fields(RobotFrame)}
    given = values.get("frame")
    if not isinstance(given, Mapping) or set(given) != known:
        raise UserError(f"{path}: `frame` must hold exactly {', '.join(sorted(known))}.")
    axes = [given[name] for name in ("forward", "left", "up")]
    if any(axis not in AXES for axis in axes) or len({axis[1] for axis in axes}) < 3:
        raise UserError(f"{path}: forward, left and up are {axes}; give three different axes such as +x, -y, +z.")
    limits = {name: number(given[name], name, f"{path}, frame") for name in sorted(known - {"forward", "left", "up"})}
    return RobotFrame(*axes, **limits)
