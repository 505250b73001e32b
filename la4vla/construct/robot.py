"""Robots: what a dataset's numbers mean, and which axes are forward, left and up. One YAML file a robot in `robots/`.

Owns `Robot` and the files. A robot without a file is an error: wrong axes would teach wrong words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from la4vla.types import Embodiment, UserError

ROBOTS = Path(__file__).parent / "robots"


@dataclass(frozen=True)
class RobotFrame:
    """How the numbers of an embodiment map to words.

    forward, left, up: signed base-frame axes such as `+y`. closed_on_nothing: opening (1 open, 0 closed) at which an
    empty gripper comes to rest under a closing command. hold_margin: rest openings this much above it mean that
    something is in between. open_from: openings from here on are called open.
    """

    forward: str
    left: str
    up: str
    closed_on_nothing: float
    hold_margin: float
    open_from: float

    def from_base(self, vector_D3: np.ndarray) -> np.ndarray:
        """Base-frame vectors [..., 3] as (forward, left, up), same unit."""
        signed = [
            (-1.0 if axis[0] == "-" else 1.0, "xyz".index(axis[1])) for axis in (self.forward, self.left, self.up)
        ]
        return np.stack([sign * vector_D3[..., index] for sign, index in signed], axis=-1)


@dataclass(frozen=True)
class Robot:
    """embodiment: of the episodes as we hand them on. frame: its words."""

    embodiment: Embodiment
    frame: RobotFrame


def robot_frame(name: str) -> RobotFrame:
    """The frame of a robot's file: a name in robots/ or the path of a YAML. Raises UserError if there is none."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else ROBOTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in ROBOTS.glob("*.yaml")))
        raise UserError(f"no robot file {path}; write one like those of la4vla/construct/robots/ ({known}).")
    return RobotFrame(**yaml.safe_load(path.read_text())["frame"])
