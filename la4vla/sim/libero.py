"""LIBERO (hf-libero 0.1.4 on robosuite 1.4.0) as an `Env`: pure initial states, 7-d proprioception, upright pictures.

What it refuses: the questions LIBERO asks on its first import (its config folder is ours, its assets are found or an
error), and initial states that depend on what ran before.

Initial states. Episode k of a task starts from the benchmark's stored state number k % 50. That state holds joint
positions only; fixtures such as cabinets are placed by numpy's global generator at every reset, so it is seeded before
each one, by k // 50. Resets are soft (8 times as fast) and equal to those of a new env once the gripper's last command
is forgotten. The controller keeps the goal of the pose before the stored state was set, and drifts towards it while
nothing is commanded; published numbers were made with that drift, so it stays.

World frame: the robot faces +x, +y is to its left, +z is up.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.sim.env import SceneChange, StepResult
from la4vla.sim.libero_expert import LiberoExpert
from la4vla.sim.render import check_frame, use_backend
from la4vla.types import Embodiment, Observation, UserError, VectorSpec

EMBODIMENT = Embodiment(
    name="libero_panda",
    control_hz=20.0,  # 25 physics steps of 2 ms
    state=VectorSpec(
        names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
        reference="absolute",
        rotation="axis_angle",
        gripper_open=1.0,
        gripper_closed=0.0,
        unit="m",
    ),
    action=VectorSpec(
        names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
        reference="delta",
        rotation="axis_angle",
        gripper_open=-1.0,
        gripper_closed=1.0,
        unit="5 cm and 0.5 rad of target motion",
    ),
)
"""State: hand position, its rotation vector, and the distance of the fingers / 0.08 m. Action: in [-1, 1]."""

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
CAMERAS = ("agentview", "robot0_eye_in_hand")
ASSETS_VARIABLE = "LA4VLA_LIBERO_ASSETS"
BLOCK = 50  # stored initial states a task
MAX_STEPS = 1000  # robosuite's own horizon, longer than any protocol's
TABLE_HEIGHTS = {  # m, by kind of scene
    "libero_tabletop_manipulation": 0.9,
    "libero_kitchen_tabletop_manipulation": 0.9,
    "libero_study_tabletop_manipulation": 0.867,
    "libero_living_room_tabletop_manipulation": 0.41,
    "libero_coffee_table_manipulation": 0.41,
    "libero_floor_manipulation": 0.0,
}
SURFACES = ("table_texture", "table_ceramic", "living_room_table", "desk", "floorplane", "walls_mat")
FIXED = (
    "robot0",
    "gripper0",
    "mount0",
    "floor",
    "table",
    "kitchen_table",
    "living_room_table",
    "study_table",
    "coffee_",
)
FINGER_SPAN = 0.08  # m between the fingers of an open gripper


def task_table() -> list[dict[str, str]]:
    """sim/data/libero.json: rows of task (such as libero_object_03), suite, name (the file's) and prompt."""
    return json.loads((resources.files("la4vla.sim") / "data" / "libero.json").read_text())["tasks"]


@lru_cache(maxsize=1)
def _rows() -> dict[str, dict[str, str]]:
    return {row["task"]: row for row in task_table()}


def prompts() -> dict[str, str]:
    """Task -> instruction: the sentence that published evaluations use (not the one in the task's own file)."""
    return {task: row["prompt"] for task, row in _rows().items()}


class LiberoEnv:
    """One LIBERO scene at a time, one such env per process.

    views: names of CAMERAS. image_size: pixels, square. horizon: control steps after which an episode is truncated, at
    most 1000. fast: no reflections or anti-aliasing; twice the speed, other pictures: train and evaluate with the same
    setting. Raises UserError for bad settings, where no GL backend renders and where LIBERO or its assets are missing.
    """

    embodiment = EMBODIMENT

    def __init__(self, views: Sequence[str], image_size: int, horizon: int, fast: bool) -> None:
        for view in views:
            if view not in CAMERAS:
                raise UserError(f"view `{view}` is not a LIBERO camera; use one of {', '.join(CAMERAS)}.")
        if not 1 <= horizon <= MAX_STEPS:
            raise UserError(f"horizon is {horizon}; LIBERO episodes have 1 to {MAX_STEPS} steps.")
        self.backend = use_backend()
        self._libero = open_libero()
        self._views = tuple(views)
        self._image_size = image_size
        self._horizon = horizon
        self._fast = fast
        self._task = ""
        self._steps = 0
        self._state = np.zeros(7, np.float32)
        self._scene: Any = None
        self._renderer: Any = None
        self._looks: Any = None
        self._expert: LiberoExpert | None = None

    def reset(self, task: str, episode: int, change: SceneChange | None = None) -> Observation:
        """Episode number `episode` >= 0 of `task`. 0.15 s within a task; another task builds another scene in 1 s."""
        assert episode >= 0
        if task not in _rows():
            raise UserError(
                f"`{task}` is not a LIBERO task; names look like `libero_object_03` (la4vla/sim/data/libero.json)."
            )
        if task != self._task:
            self._build(task)
        self._looks.restore(self._scene.sim.data._data, self._renderer)
        self._scene.seed(episode // BLOCK)
        self._scene.reset()
        robot = self._scene.robots[0]
        robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self._state = _proprioception(self._scene.set_init_state(_init_states(self._libero, task)[episode % BLOCK]))
        if change is not None:
            self._looks.apply(change, task, episode, self._scene.sim.data._data, self._renderer)
        self._steps = 0
        self._expert = None
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """One step of 50 ms. action: [7] as EMBODIMENT.action says, clipped to [-1, 1]; of the gripper only the sign
        counts, 0 holds it."""
        action = np.asarray(action, np.float32)
        if action.shape != (7,):
            raise UserError(f"LIBERO takes actions of size 7, got shape {list(action.shape)}.")
        if not np.isfinite(action).all():
            raise ValueError(f"{self._task}: action {action.tolist()} is not finite")
        if self._steps >= self._horizon:
            raise RuntimeError(f"{self._task}: step past the horizon of {self._horizon}; call reset first")
        seen, _, success, _ = self._scene.step(np.clip(action, -1.0, 1.0).astype(np.float64))
        self._state = _proprioception(seen)
        self._steps += 1
        return StepResult(self._state, bool(success), self._steps >= self._horizon)

    def observe(self) -> Observation:
        """The present state and pictures, rendered now."""
        views = {view: self._render(view) for view in self._views}
        return Observation(views, self._state, _rows()[self._task]["prompt"])

    def expert_action(self) -> np.ndarray:
        """float32 [7] in [-1, 1]: what a scripted expert, which sees all geometry, does at this state. Once a step."""
        if self._expert is None:
            self._expert = LiberoExpert(self._scene)
        return self._expert.action()

    def physics_state(self) -> np.ndarray:
        """float64: what identifies the simulation's state (positions, velocities, fixtures); for tests."""
        data = self._scene.sim.data._data
        return np.concatenate([data.qpos, data.qvel, data.xpos.ravel(), data.site_xpos.ravel()])

    def close(self) -> None:
        """Free the renderer before the model, and collect both now: a late collection would black out the next env."""
        if self._renderer is not None:
            self._renderer.close()
            atexit.unregister(self.close)
        if self._scene is not None:
            self._scene.close()
        self._renderer = self._scene = self._looks = self._expert = None
        self._task = ""
        gc.collect()

    def _build(self, task: str) -> None:
        self.close()
        from libero.libero.envs.env_wrapper import ControlEnv  # pyright: ignore[reportMissingImports]

        from la4vla.sim.scene import Scene, Stage

        row = _rows()[task]
        path = self._libero / "bddl_files" / row["suite"] / f"{row['name']}.bddl"
        self._scene = ControlEnv(
            bddl_file_name=str(path),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            hard_reset=False,
            horizon=MAX_STEPS + 1,
        )
        height = TABLE_HEIGHTS[self._scene.env.parsed_problem["problem_name"]]
        self._looks = Scene(self._scene.sim.model._model, Stage((0.0, 0.0, height), SURFACES, FIXED))
        self._task = task

    def _render(self, view: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = self._new_renderer()
            # EGL goes down before the interpreter collects what is left; a renderer freed after that prints an error.
            atexit.register(self.close)
        self._renderer.update_scene(self._scene.sim.data._data, view, self._visible)
        return check_frame(self._renderer.render().copy(), f"{self._task}/{view}")

    def _new_renderer(self) -> Any:
        import mujoco

        model = self._scene.sim.model._model
        if self._fast:
            model.vis.quality.offsamples = 0
        self._visible = mujoco.MjvOption()  # pyright: ignore[reportAttributeAccessIssue]
        self._visible.geomgroup[0] = 0  # collision meshes
        renderer = mujoco.Renderer(model, self._image_size, self._image_size)
        if self._fast:
            reflection = mujoco.mjtRndFlag.mjRND_REFLECTION  # pyright: ignore[reportAttributeAccessIssue]
            renderer.scene.flags[reflection] = 0
        return renderer


def open_libero() -> Path:
    """Makes `libero` importable without a question and finds its assets. Returns the package's folder.

    Assets: the folder that LA4VLA_LIBERO_ASSETS names, else the package's own, else the hub's. Raises UserError where
    the package or the assets are missing.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise UserError('LIBERO is not installed; run `pip install "la4vla[libero]"`.')
    package = Path(next(iter(spec.submodule_search_locations))) / "libero"
    _write_config(package)
    _quiet_robosuite()
    import libero.libero  # pyright: ignore[reportMissingImports]

    wanted = os.environ.get(ASSETS_VARIABLE, "")
    if wanted:
        if not (Path(wanted) / "scenes").is_dir():
            raise UserError(f"{ASSETS_VARIABLE}={wanted} holds no `scenes` folder; name LIBERO's assets folder.")
        libero.libero._assets_path_cache = wanted
    elif not Path(libero.libero.get_assets_path()).is_dir():
        raise UserError(f"LIBERO's assets are not here and the hub was not reached; set {ASSETS_VARIABLE} to a copy.")
    return package


def _write_config(package: Path) -> None:
    """LIBERO reads its paths from a file, asks on stdin where it should be, and makes a folder in the user's home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "la4vla" / "libero"
    folders = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "assets": "assets"}
    lines = [f"{name}: {package / folder}" for name, folder in {**folders, "datasets": "../datasets"}.items()]
    text, path = "\n".join(lines) + "\n", cache / "config.yaml"
    if not path.is_file() or path.read_text() != text:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"config.{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.rename(path)
    os.environ["LIBERO_CONFIG_PATH"] = str(cache)


def _quiet_robosuite() -> None:
    """Without a module of private macros robosuite warns on import, in a log file in /tmp that fails for a second user.
    An empty one is enough."""
    sys.modules.setdefault("robosuite.macros_private", ModuleType("robosuite.macros_private"))


@lru_cache(maxsize=8)
def _init_states(package: Path, task: str) -> np.ndarray:
    """float64 [50, D]: the benchmark's stored states. They are pickled, and trusted because the package ships them."""
    import torch

    row = _rows()[task]
    return torch.load(package / "init_files" / row["suite"] / f"{row['name']}.pruned_init", weights_only=False)


def _proprioception(seen: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [7] of a robosuite observation; its quaternion is x, y, z, w."""
    turn = Rotation.from_quat(seen["robot0_eef_quat"]).as_rotvec()
    fingers = seen["robot0_gripper_qpos"]
    return np.concatenate([seen["robot0_eef_pos"], turn, [(fingers[0] - fingers[1]) / FINGER_SPAN]]).astype(np.float32)
