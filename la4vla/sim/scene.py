"""Edits of a MuJoCo scene that change what a policy sees and leave physics alone: camera pose, light, background,
colour of objects, distractors.

One change at a time is made after an episode's initial state is set, and taken back before the next episode. Only looks
are written, nothing that contacts, masses or joints depend on. Draws come from the change's seed, task and episode, not
from its level: a stronger change goes the same way, further.

In bright scenes the product of material and light is clamped before the texture is multiplied in, so surfaces are
changed in their textures. Those live in the GL context, and are uploaded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import mujoco
import numpy as np

from la4vla.sim import distractors
from la4vla.sim.env import SceneChange

Draw = np.random.Generator
PATTERN_PX = 256  # side of a drawn texture before it is fitted to the one it replaces


@dataclass(frozen=True)
class Stage:
    """What an edit must know of a simulator's scenes.

    pivot      m, world frame: the point that cameras orbit
    reach      m along x and y: how far from the pivot distractors stand
    surfaces   materials of tables, floors and walls; a scene may lack some
    fixed      beginnings of the names of the world's bodies that are no objects: robot, table, walls
    """

    pivot: tuple[float, float, float]
    reach: tuple[float, float]
    surfaces: tuple[str, ...]
    fixed: tuple[str, ...]


@dataclass
class Scene:
    """A built scene under at most one change.

    model      its mujoco.MjModel
    data       its mujoco.MjData
    stage      what edits must know of it
    before     looks as they were before the change; empty: nothing is changed
    textures   texture -> its pixels before the change
    solids     distractors, which are drawn beside the model
    """

    model: Any
    data: Any
    stage: Stage
    before: dict[str, np.ndarray] = field(default_factory=dict)
    textures: dict[int, np.ndarray] = field(default_factory=dict)
    solids: list[distractors.Solid] = field(default_factory=list)

    def apply(self, change: SceneChange, draws: Draw, renderer: Any) -> None:
        """renderer: the mujoco.Renderer of this model, None where there is none yet. Camera and light poses in `data`
        are refreshed, nothing else of it."""
        assert not self.before
        self.before = {name: view.copy() for name, view in _looks(self.model).items()}
        EDITS[change.name](self, change.level, draws)
        self._show(renderer)

    def decorate(self, scene: Any) -> None:
        """Adds the distractors to a mujoco.MjvScene. Call it after each update of the scene, which removes them."""
        distractors.put_into(scene, self.solids)

    def restore(self, renderer: Any) -> None:
        """Makes the scene exactly what it was before `apply`. Does nothing where nothing was applied."""
        if not self.before:
            return
        for name, view in _looks(self.model).items():
            view[:] = self.before[name]
        for texture, pixels in self.textures.items():
            texels(self.model, texture)[:] = pixels
        self._show(renderer)
        self.before, self.textures, self.solids = {}, {}, []

    def _show(self, renderer: Any) -> None:
        mujoco.mj_camlight(self.model, self.data)  # pyright: ignore[reportAttributeAccessIssue]
        if renderer is not None and self.textures:
            renderer._gl_context.make_current()
            for texture in self.textures:
                mujoco.mjr_uploadTexture(  # pyright: ignore[reportAttributeAccessIssue]
                    self.model, renderer._mjr_context, texture
                )


def camera(scene: Scene, level: tuple[float, float, float, float], draws: Draw) -> None:
    """Every camera that is fixed to the world orbits the pivot, all by the same angles; those on the robot stay. level:
    azimuth and elevation (degrees), distance (factor) and gaze (degrees) at most. The distance only grows, since a
    nearer camera would cut the workspace off."""
    model, pivot = scene.model, np.array(scene.stage.pivot)
    azimuth, elevation, pan, tilt = draws.choice([-1, 1], 4) * draws.uniform(0.75, 1, 4)
    further = 1 + (level[2] - 1) * draws.uniform(0.75, 1)
    for one in np.flatnonzero(model.cam_bodyid == 0):
        offset, turn = model.cam_pos[one] - pivot, model.cam_quat[one].copy()
        orbit = _turn((0, 0, 1), level[0] * azimuth)
        offset, turn = _rotate(orbit, offset), _times(orbit, turn)
        side = np.cross((0, 0, 1), offset)
        orbit = _turn(side if np.linalg.norm(side) > 1e-6 else (1, 0, 0), level[1] * elevation)
        offset, turn = _rotate(orbit, offset), _times(orbit, turn)
        for axis, share in (((1, 0, 0), tilt), ((0, 1, 0), pan)):
            turn = _times(turn, _turn(axis, level[3] * share))
        model.cam_pos[one], model.cam_quat[one] = pivot + offset * further, turn


def light(scene: Scene, level: tuple[float, float, float], draws: Draw) -> None:
    """All lights, the headlight included, become brighter or darker and are tinted; those in the scene are moved as
    well. level: intensity and tint (shares) and move (m) at most."""
    gain_by, tint_by, move_by = level
    gain = 1 + gain_by * draws.choice([-1, 1]) * draws.uniform(0.8, 1)
    tint_3 = 1 + tint_by * draws.uniform(-1, 1, 3)
    looks = _looks(scene.model)
    for name in ("light_diffuse", "headlight_ambient", "headlight_diffuse"):
        looks[name][:] *= gain * tint_3
    for name in ("light_specular", "headlight_specular"):
        looks[name][:] *= gain
    looks["light_pos"][:] += move_by * draws.uniform(-1, 1, looks["light_pos"].shape)
    aim_L3 = looks["light_dir"] + 0.25 * move_by * draws.uniform(-1, 1, looks["light_dir"].shape)
    looks["light_dir"][:] = aim_L3 / np.linalg.norm(aim_L3, axis=1, keepdims=True)


def background(scene: Scene, share: float, draws: Draw) -> None:
    """Blends the textures of table, floor and walls with random ones, of which `share` is seen."""
    model = scene.model
    for name in scene.stage.surfaces:
        material = mujoco.mj_name2id(  # pyright: ignore[reportAttributeAccessIssue]
            model,
            mujoco.mjtObj.mjOBJ_MATERIAL,  # pyright: ignore[reportAttributeAccessIssue]
            name,
        )
        drawn = pattern(draws)
        role = mujoco.mjtTextureRole.mjTEXROLE_RGB  # pyright: ignore[reportAttributeAccessIssue]
        texture = int(model.mat_texid[material, role]) if material >= 0 else -1
        if texture < 0:
            continue
        old = texels(model, texture)
        height, width = old.shape[:2]
        face = min(height, width)  # a cube texture is six faces in a column
        tall = face if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D else height  # pyright: ignore[reportAttributeAccessIssue]
        fitted = np.tile(cv2.resize(drawn, (width, tall)), (height // tall, 1, 1))
        scene.textures[texture] = old.copy()
        old[..., :3] = np.rint((1 - share) * old[..., :3].astype(np.float32) + share * fitted).astype(np.uint8)
    assert scene.textures, f"no surface of {scene.stage.surfaces} is textured"


def object_colour(scene: Scene, share: float, draws: Draw) -> None:
    """Blends every object's colour with a vivid one, of which `share` is seen. All parts of an object get the same; its
    texture stays and is tinted."""
    model = scene.model
    colours: dict[int, np.ndarray] = {}
    for geom in range(model.ngeom):
        root = int(model.body_rootid[model.geom_bodyid[geom]])
        if root == 0 or model.body(root).name.startswith(scene.stage.fixed):
            continue
        if root not in colours:
            colours[root] = draws.permutation(np.array([1.0, draws.uniform(0, 1), 0.0]))
        material = model.geom_matid[geom]
        plain = (model.geom_rgba[geom] == np.array([0.5, 0.5, 0.5, 1], np.float32)).all()  # "as its material"
        old_4 = model.mat_rgba[material] if material >= 0 and plain else model.geom_rgba[geom]
        model.geom_rgba[geom] = [*((1 - share) * old_4[:3] + share * colours[root]), old_4[3]]


def distract(scene: Scene, count: int, draws: Draw) -> None:
    """Adds `count` objects on the free part of the table."""
    stage = scene.stage
    scene.solids = distractors.scatter(scene.model, scene.data, stage.pivot, stage.reach, count, draws)


def toys(scene: Scene, count: int, draws: Draw) -> None:
    """Adds `count` objects in colours that have names, for questions about them."""
    stage, sizes = scene.stage, distractors.TOY_HALF_SIZES
    solids = distractors.scatter(scene.model, scene.data, stage.pivot, stage.reach, count, draws, sizes)
    scene.solids = distractors.toys(solids, draws)


def pattern(draws: Draw) -> np.ndarray:
    """float32 [256, 256, 3] in 0..255: two colours in stripes, checks or clouds."""
    y, x = np.mgrid[:PATTERN_PX, :PATTERN_PX] / PATTERN_PX
    clouds = cv2.resize(draws.random((8, 8)).astype(np.float32), (PATTERN_PX, PATTERN_PX))
    kinds: list[np.ndarray] = [np.sin(60 * x + 25 * y) > 0, (np.floor(12 * x) + np.floor(12 * y)) % 2, clouds]
    mix = kinds[draws.integers(len(kinds))].astype(np.float32)[..., None]
    first_3, second_3 = draws.uniform(38, 230, (2, 3))
    return (mix * first_3 + (1 - mix) * second_3).astype(np.float32)


def texels(model: Any, texture: int) -> np.ndarray:
    """uint8 [H, W, C], a view into the model."""
    shape = tuple(int(sizes[texture]) for sizes in (model.tex_height, model.tex_width, model.tex_nchannel))
    start = int(model.tex_adr[texture])
    return model.tex_data[start : start + int(np.prod(shape))].reshape(shape)


EDITS: dict[str, Callable[[Scene, Any, Draw], None]] = {
    "camera": camera,
    "light": light,
    "background": background,
    "object_colour": object_colour,
    "distractors": distract,
    "toys": toys,
}


def _looks(model: Any) -> dict[str, np.ndarray]:
    """Views into the model of everything but textures that an edit may write."""
    headlight = model.vis.headlight
    return {
        "cam_pos": model.cam_pos,
        "cam_quat": model.cam_quat,
        "light_pos": model.light_pos,
        "light_dir": model.light_dir,
        "light_diffuse": model.light_diffuse,
        "light_specular": model.light_specular,
        "headlight_ambient": headlight.ambient,
        "headlight_diffuse": headlight.diffuse,
        "headlight_specular": headlight.specular,
        "geom_rgba": model.geom_rgba,
    }


def _turn(axis: Any, degrees: float) -> np.ndarray:
    axis_3, result = np.array(axis, np.float64), np.zeros(4)
    mujoco.mju_axisAngle2Quat(  # pyright: ignore[reportAttributeAccessIssue]
        result, axis_3 / np.linalg.norm(axis_3), np.deg2rad(degrees)
    )
    return result


def _times(first_4: np.ndarray, second_4: np.ndarray) -> np.ndarray:
    result = np.zeros(4)
    mujoco.mju_mulQuat(result, first_4, second_4)  # pyright: ignore[reportAttributeAccessIssue]
    return result


def _rotate(turn_4: np.ndarray, point_3: np.ndarray) -> np.ndarray:
    result = np.zeros(3)
    mujoco.mju_rotVecQuat(result, point_3, turn_4)  # pyright: ignore[reportAttributeAccessIssue]
    return result
