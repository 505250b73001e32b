"""Robots: what a dataset's numbers mean, and which axes are forward, left and up. One YAML file a robot in `robots/`.

Owns `Robot`, `RobotFile` and the YAML files. A robot without a file is an error: wrong axes would teach wrong words,
and wrong signs would teach wrong grasps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from la4vla.construct.robots.units import VectorUnits, number, vector_units
from la4vla.types import ROTATION, TRANSLATION, Embodiment, UserError, VectorSpec

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
class Robot:
    """The robot of an episode.

    embodiment    meaning of the episode's states and actions
    frame         how they map to words
    same_arm      names of other dims that belong to the arm whose hand is described, such as its joints
    """

    embodiment: Embodiment
    frame: RobotFrame
    same_arm: tuple[str, ...] = ()

    def undescribed(self, spec: VectorSpec) -> list[str]:
        """The dims of a state or an action whose motion no instruction describes, such as those of a second arm.

        None if the vector has no position: its joints are then all that there is of the described arm.
        """
        if not spec.has_position:
            return []
        return [name for name in spec.names if name not in (*DESCRIBED, *self.same_arm)]


@dataclass(frozen=True)
class RobotFile:
    """A robot's whole YAML file: what the columns of its datasets mean.

    name          of the file, without .yaml; the name of the embodiment
    control_hz    frames a second
    state         block `state`
    action        block `action`
    frame         block `frame`
    same_arm      list `same_arm`; may be left out
    text          the file's content, by which a change is noticed
    """

    name: str
    control_hz: float
    state: VectorUnits
    action: VectorUnits
    frame: RobotFrame
    same_arm: tuple[str, ...]
    text: str

    @property
    def robot(self) -> Robot:
        """The robot of the episodes that are read with this file."""
        embodiment = Embodiment(self.name, self.control_hz, self.state.spec, self.action.spec)
        return Robot(embodiment, self.frame, self.same_arm)


def robot_frame(name: str) -> RobotFrame:
    """The frame of a robot's file: a name in robots/ or the path of a YAML. Raises UserError if there is none."""
    path = _path(name)
    return _frame(_load(path), path)


def robot_file(name: str) -> RobotFile:
    """All of a robot's file: a name in robots/ or the path of a YAML. Raises UserError for what is not understood."""
    path = _path(name)
    values = _load(path)
    for key in ("control_hz", "state", "action"):
        if key not in values:
            raise UserError(
                f"{path}: `{key}` is missing; la4vla/construct/robots/droid_franka.yaml shows a whole file."
            )
    state, action = (vector_units(values[what], f"{path}, {what}") for what in ("state", "action"))
    same_arm = values.get("same_arm", [])
    known = {*state.spec.names, *action.spec.names} - set(DESCRIBED)
    if not isinstance(same_arm, list) or [name for name in same_arm if name not in known]:
        raise UserError(
            f"{path}: same_arm is {same_arm}; list names of the state or the action that belong to the described arm, "
            f"of {', '.join(sorted(known)) or 'which there are none: leave it out'}."
        )
    return RobotFile(
        path.stem,
        number(values["control_hz"], "control_hz", str(path)),
        state,
        action,
        _frame(values, path),
        tuple(same_arm),
        path.read_text(),
    )


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
