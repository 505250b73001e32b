"""Objects that are only drawn: boxes, cylinders, spheres and capsules on the free part of the table.

They are no part of the model, so physics does not know them: a hand or an object passes through them. Every camera sees
them. Rays from above measure where the table is, and where it is free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import mujoco
import numpy as np
from mujoco import mjtGeom  # pyright: ignore[reportAttributeAccessIssue]

CELL = 0.015  # m between two rays
DROP = 0.8  # m above the table that rays start from, over all hands and shelves
LEVEL = 0.003  # m that the table may differ from its height; a puck, a plate and a rug differ by more
CLEARANCE = 0.02  # m of free table around a distractor
HALF_SIZES = (0.015, 0.03)  # m: 3 to 6 cm across, like what the tasks move; a capsule is half as thick
TOY_HALF_SIZES = (0.03, 0.045)  # m: twice as large, to be told apart in small images
COLOURS = (0.1, 0.9)
TOY_COLOURS = {
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.15),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.55, 0.15, 0.7),
    "white": (0.95, 0.95, 0.95),
}
"""Of `toys`: colours that people call by different names."""
SHAPES = {
    mjtGeom.mjGEOM_BOX: "box",
    mjtGeom.mjGEOM_CYLINDER: "cylinder",
    mjtGeom.mjGEOM_SPHERE: "ball",
    mjtGeom.mjGEOM_CAPSULE: "capsule",
}
MATTE = 0.1  # specular and shininess; at MuJoCo's 0.5 they would shine as nothing else in the scenes does

Draw = np.random.Generator


@dataclass(frozen=True)
class Solid:
    """One distractor.

    shape      a mjtGeom
    size_3     m, as a model's geom has it
    centre_3   m, world frame
    turn_33    rotation from its own to the world frame
    rgba_4     in [0, 1]
    """

    shape: Any
    size_3: np.ndarray
    centre_3: np.ndarray
    turn_33: np.ndarray
    rgba_4: np.ndarray


def scatter(
    model: Any,
    data: Any,
    middle_3: tuple[float, float, float],
    reach_2: tuple[float, float],
    count: int,
    draws: Draw,
    half_sizes: tuple[float, float] = HALF_SIZES,
) -> list[Solid]:
    """`count` solids at rest on the table, up to reach_2 (m along x and y) from middle_3 (m, world frame). With the
    same draws and a smaller count it returns the first of them. Raises RuntimeError where the table is full."""
    corner_2 = np.array(middle_3[:2]) - reach_2
    heights_XY = _heights(model, data, corner_2, np.rint(2 * np.array(reach_2) / CELL).astype(int), middle_3[2] + DROP)
    values, times = np.unique(np.round(heights_XY, 3), return_counts=True)
    table = values[times.argmax()]
    free_XY = np.abs(heights_XY - table) < LEVEL
    for mark_3 in data.site_xpos:  # goals are sites, which rays do not meet
        if abs(mark_3[2] - table) < DROP / 2:
            _occupy(free_XY, mark_3[:2] - corner_2, CLEARANCE)
    solids = []
    for _ in range(count):
        shape, size_3, across, height = _shape(draws, half_sizes)
        places_N2 = np.argwhere(_room(free_XY) > across + CLEARANCE)
        if not len(places_N2):
            raise RuntimeError(f"the table is full: no room for distractor {len(solids) + 1} of {count}")
        place_2 = (draws.choice(places_N2) + 0.5) * CELL
        _occupy(free_XY, place_2, across)
        centre_3, turn_33 = np.array([*(corner_2 + place_2), table + height]), _turn(draws.uniform(0, np.pi), shape)
        solids.append(Solid(shape, size_3, centre_3, turn_33, np.array([*draws.uniform(*COLOURS, 3), 1.0])))
    return solids


def toys(solids: list[Solid], draws: Draw) -> list[Solid]:
    """The same solids in colours that have names, no colour twice; at most six."""
    colours = list(TOY_COLOURS.values())
    assert len(solids) <= len(colours)
    order = draws.permutation(len(colours))[: len(solids)]
    return [
        replace(solid, rgba_4=np.array([*colours[number], 1.0])) for solid, number in zip(solids, order, strict=True)
    ]


def colour_name(solid: Solid) -> str:
    """Of a toy; empty for a colour that has no name here."""
    names = {colour: name for name, colour in TOY_COLOURS.items()}
    return names.get(tuple(solid.rgba_4[:3].tolist()), "")


def put_into(scene: Any, solids: list[Solid]) -> None:
    """Adds the solids to a mujoco.MjvScene that has just been updated; the next update forgets them."""
    for solid in solids:
        assert scene.ngeom < scene.maxgeom
        geom = scene.geoms[scene.ngeom]
        mujoco.mjv_initGeom(  # pyright: ignore[reportAttributeAccessIssue]
            geom, solid.shape, solid.size_3, solid.centre_3, solid.turn_33.ravel(), solid.rgba_4.astype(np.float32)
        )
        geom.category = mujoco.mjtCatBit.mjCAT_DYNAMIC  # pyright: ignore[reportAttributeAccessIssue]
        geom.specular = geom.shininess = MATTE
        scene.ngeom += 1


def _heights(model: Any, data: Any, corner_2: np.ndarray, cells_2: np.ndarray, top: float) -> np.ndarray:
    """[X, Y], m: height of what a ray straight down from `top` meets first, in the middle of every cell."""
    down_3, geom = np.array([0, 0, -1.0]), np.zeros(1, np.int32)
    heights_XY = np.empty(cells_2)
    for x, y in np.ndindex(*cells_2):
        from_3 = np.array([*(corner_2 + (np.array([x, y]) + 0.5) * CELL), top])
        met = mujoco.mj_ray(model, data, from_3, down_3, None, 1, -1, geom)  # pyright: ignore[reportAttributeAccessIssue]
        heights_XY[x, y] = top - met
    return heights_XY


def _occupy(free_XY: np.ndarray, place_2: np.ndarray, radius: float) -> None:
    """Marks the cells within `radius` of place_2 (m from the corner) as taken."""
    x, y = (np.indices(free_XY.shape) + 0.5) * CELL
    free_XY[np.hypot(x - place_2[0], y - place_2[1]) <= radius] = False


def _room(free_XY: np.ndarray) -> np.ndarray:
    """[X, Y], m: from each cell to the next one taken, or to the border."""
    bordered = np.pad(free_XY.astype(np.uint8), 1)
    return CELL * cv2.distanceTransform(bordered, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def _shape(draws: Draw, half_sizes: tuple[float, float]) -> tuple[Any, np.ndarray, float, float]:
    """Shape and size, the radius of the circle it stands in, and the height of its middle."""
    a, b, c = draws.uniform(*half_sizes, 3)
    shapes = (
        (mjtGeom.mjGEOM_BOX, (a, b, c), np.hypot(a, b), c),
        (mjtGeom.mjGEOM_CYLINDER, (a, b, 0), a, b),
        (mjtGeom.mjGEOM_SPHERE, (a, 0, 0), a, a),
        (mjtGeom.mjGEOM_CAPSULE, (a / 2, b / 2, 0), (a + b) / 2, a / 2),
    )
    shape, size_3, across, height = shapes[draws.integers(len(shapes))]
    return shape, np.array(size_3), float(across), float(height)


def _turn(yaw: float, shape: Any) -> np.ndarray:
    """Any yaw; a capsule lies on its side."""
    axis_3 = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    side_3, up_3 = np.array([-axis_3[1], axis_3[0], 0.0]), np.array([0, 0, 1.0])
    return np.stack([side_3, up_3, axis_3] if shape == mjtGeom.mjGEOM_CAPSULE else [axis_3, side_3, up_3], axis=1)
