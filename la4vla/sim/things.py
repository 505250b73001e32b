"""Things: what a scene holds that has a name, and how it is now. Questions about a scene are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

UNCLEAR = (0.35, 0.5)
"""Shares of a joint's range between which a part is neither the one nor the other."""


@dataclass(frozen=True)
class Thing:
    """Something with a name.

    name    such as `ball` or `window`
    colour  of a toy, by its name; empty for all else
    place   m, in the axes of the world, from the robot's base on
    state   of a part that opens: one of its two words, or empty where it is in between; empty for toys
    states  the two words; empty for toys
    pixels  of a toy in the camera that was asked about
    """

    name: str
    colour: str
    place: tuple[float, float, float]
    state: str = ""
    states: tuple[str, ...] = ()
    pixels: int = 0

    def seen_from(self, base_3: np.ndarray) -> Thing:
        """With its place from there on; base_3 and the place so far are of the world."""
        return replace(self, place=_place(np.array(self.place) - base_3))


@dataclass(frozen=True)
class JointPart:
    """A part that a joint opens.

    low, high  what it is called at the ends of the joint's range
    """

    name: str
    low: str
    high: str


def toy_of(solid: Any, pixels: int) -> Thing:
    """solid: a distractors.Solid."""
    from la4vla.sim.distractors import SHAPES, colour_name

    return Thing(SHAPES[solid.shape], colour_name(solid), _place(solid.centre_3), pixels=pixels)


def joint_part(model: Any, data: Any, body: str, part: JointPart) -> Thing | None:
    """A part of a MuJoCo scene as it is now; None where the scene has no such body."""
    import mujoco

    number = mujoco.mj_name2id(  # pyright: ignore[reportAttributeAccessIssue]
        model,
        mujoco.mjtObj.mjOBJ_BODY,  # pyright: ignore[reportAttributeAccessIssue]
        body,
    )
    if number < 0 or model.body_jntnum[number] != 1:
        return None
    joint = int(model.body_jntadr[number])
    low, high = model.jnt_range[joint]
    share = (float(data.qpos[model.jnt_qposadr[joint]]) - low) / (high - low)
    words = {True: part.low, False: part.high}
    state = "" if UNCLEAR[0] < share < UNCLEAR[1] else words[share <= UNCLEAR[0]]
    return Thing(part.name, "", _place(data.xpos[number]), state, (part.low, part.high))


def joint_parts(model: Any, data: Any, parts: Mapping[str, JointPart]) -> list[Thing]:
    """Those of the parts that the scene has. parts: by the name of the body that the joint moves."""
    there = (joint_part(model, data, body, part) for body, part in parts.items())
    return [part for part in there if part is not None]


def _place(place_3: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 4) for value in place_3)
    return x, y, z
