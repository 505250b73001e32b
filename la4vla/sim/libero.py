"""LIBERO (hf-libero 0.1.4 on robosuite 1.4.0) as an `Env`: pure initial states, 7-d proprioception, upright images.

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

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.data.rotation import rotation_vectors
from la4vla.sim.expert import Intent
from la4vla.sim.libero_expert import LiberoExpert
from la4vla.sim.mujoco_env import MujocoEnv
from la4vla.sim.things import JointPart, Thing, joint_parts
from la4vla.types import Embodiment, UserError, VectorSpec

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
        rotation_near=(3.1416, 0.0, 0.0),
        metres_per_unit=1.0,
        radians_per_unit=1.0,
    ),
    action=VectorSpec(
        names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
        reference="delta",
        rotation="axis_angle",
        gripper_open=-1.0,
        gripper_closed=1.0,
        unit="5 cm and 0.5 rad of target motion",
        metres_per_unit=0.05,
        radians_per_unit=0.5,
    ),
)
"""State: hand position, its rotation vector (about half a turn, since the hand points down: robosuite's numbers there),
and the distance of the fingers / 0.08 m. Action: in [-1, 1]."""

EVO1_EMBODIMENT = replace(
    EMBODIMENT,
    state=replace(
        EMBODIMENT.state,
        names=("x", "y", "z", "turn_x", "turn_y", "turn_z", "finger_left", "finger_right"),
        rotation="none",  # numbers as they are: no other set of them that means the same turn
        rotation_near=(0.0, 0.0, 0.0),
        radians_per_unit=None,
    ),
    action=replace(EMBODIMENT.action, gripper_open=1.0, gripper_closed=0.0),
)
"""What Evo-1's client shows its policy and hears from it (FACTS 4.7): the fingers one by one, axis times angle as the
quaternion gives it, and a gripper that is 1 open and 0 closed."""

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
REACH = (0.3, 0.35)  # m along x and y from the table's middle: what agentview sees of it
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
DRAWERS = ("top", "middle", "bottom")
PARTS = {
    **{
        f"{cabinet}_cabinet_1_cabinet_{drawer}": JointPart(f"{drawer} drawer of the cabinet", "open", "closed")
        for cabinet in ("wooden", "white")
        for drawer in DRAWERS
    },
    "microwave_1_microdoorroot": JointPart("microwave", "open", "closed"),
    "flat_stove_1_button": JointPart("stove's knob", "off", "on"),
}
"""Body -> the part that its joint opens."""
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


class LiberoEnv(MujocoEnv):
    """One LIBERO scene at a time, one such env per process. A reset takes 0.15 s within a task, another task 1 s.

    views     names of CAMERAS
    horizon   at most 1000 steps of 50 ms
    fast      twice the speed

    Of an action's gripper only the sign counts; 0 holds it. Raises UserError also where LIBERO or its assets are
    missing.
    """

    embodiment = EMBODIMENT
    simulator = "LIBERO"
    turns = dict.fromkeys(CAMERAS, 0)
    max_steps = MAX_STEPS
    hand = "robot0_right_hand"
    fingers = ("gripper0_leftfinger", "gripper0_rightfinger")
    base = "robot0_base"
    hidden_groups = (0,)  # collision meshes
    task_file = "la4vla/sim/data/libero.json"
    example = "libero_object_03"

    def __init__(self, views: Sequence[str], image_size: int, horizon: int, fast: bool) -> None:
        super().__init__(views, image_size, horizon, fast)
        self._libero = open_libero()
        self._observation: dict[str, np.ndarray] = {}

    def expert_action(self) -> np.ndarray:
        """float32 [7] in [-1, 1]: what a scripted expert, which sees all geometry, does at this state. Call it once a
        step."""
        if self._expert is None:
            self._expert = LiberoExpert(self._scene)
        return self._expert.action()

    def expert_intent(self) -> Intent:
        """What the expert is about at this state. It follows its plan and gives a way that takes too long up, whatever
        moves the hand. Call it once a step, from the episode's first on, and `expert_action` never."""
        if self._expert is None:
            self._expert = LiberoExpert(self._scene)
        self._expert.action()
        return self._expert.intent

    def evo1_state(self) -> np.ndarray:
        """float32 [8] of EVO1_EMBODIMENT, from the quaternion and the fingers of the last step."""
        seen = self._observation
        turn = _axis_angle(seen["robot0_eef_quat"])
        return np.concatenate([seen["robot0_eef_pos"], turn, seen["robot0_gripper_qpos"]]).astype(np.float32)

    def physics_state(self) -> np.ndarray:
        """float64: what identifies the simulation's state (positions, velocities, fixtures); for tests."""
        data = self._data
        return np.concatenate([data.qpos, data.qvel, data.xpos.ravel(), data.site_xpos.ravel()])

    def _parts(self) -> list[Thing]:
        return joint_parts(self._model, self._data, PARTS)

    def _read_prompts(self) -> dict[str, str]:
        return prompts()

    def _build(self, task: str) -> None:
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
        self._looks = Scene(self._model, self._data, Stage((0.0, 0.0, height), REACH, SURFACES, FIXED))

    def _begin(self, episode: int) -> None:
        self._scene.seed(episode // BLOCK)
        self._scene.reset()
        robot = self._scene.robots[0]
        robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self._observation = self._scene.set_init_state(_init_states(self._libero, self._task)[episode % BLOCK])
        self._expert = None

    def _move_hand(self, distance: float, draws: np.random.Generator) -> None:
        """Tells the controller where the hand is, because it would steer the first step from where the hand was. The
        turn that it holds is kept, so that the hand drifts as in a clean episode."""
        from la4vla.sim.start import move_hand

        move_hand(self._model, self._data, self._model.body(self.hand).id, distance, draws, lambda move_3: True)
        self._observation = self._scene.set_init_state(self._scene.get_sim_state())
        self._scene.robots[0].controller.update(force=True)

    def _advance(self, action: np.ndarray) -> bool:
        self._observation, _, success, _ = self._scene.step(action.astype(np.float64))
        return bool(success)

    def _targets(self) -> list[int]:
        """What the goal speaks of first: the objects to be put somewhere, the fixtures to be opened or turned."""
        env = self._scene.env
        known = [*env.objects_dict, *env.fixtures_dict]
        asked = [max((name for name in known if part[1].startswith(name)), key=len) for part in self._goal()]
        return [self._model.body(env.get_object(name).root_body).id for name in dict.fromkeys(asked)]

    def _placed(self) -> bool:
        return any(self._scene.env._eval_predicate(part) for part in self._goal())

    def _goal(self) -> list[list[str]]:
        """`[["in", "bbq_sauce_1", "basket_1_contain_region"], ...]`; all of them make the task done."""
        return self._scene.env.parsed_problem["goal_state"]

    def _state(self) -> np.ndarray:
        return _proprioception(self._observation)

    @property
    def _model(self) -> Any:
        return self._scene.sim.model._model

    @property
    def _data(self) -> Any:
        return self._scene.sim.data._data


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

    assets = os.environ.get(ASSETS_VARIABLE, "")
    if assets:
        if not (Path(assets) / "scenes").is_dir():
            raise UserError(f"{ASSETS_VARIABLE}={assets} holds no `scenes` folder; name LIBERO's assets folder.")
        libero.libero._assets_path_cache = assets
    elif not Path(libero.libero.get_assets_path()).is_dir():
        raise UserError(f"LIBERO's assets are not here and the hub was not reached; set {ASSETS_VARIABLE} to a copy.")
    return package


def asset_folders() -> tuple[Path, Path]:
    """The folder of LIBERO's assets, and the folder of its config, which is ours. Raises UserError as `open_libero`."""
    open_libero()
    import libero.libero  # pyright: ignore[reportMissingImports]

    return Path(libero.libero.get_assets_path()), Path(os.environ["LIBERO_CONFIG_PATH"])


def _write_config(package: Path) -> None:
    """Writes the file that LIBERO reads its paths from. Without it LIBERO asks on stdin, and makes a folder in the
    user's home."""
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
    """Gives robosuite an empty module of private macros. Without one it warns on import, in a log file in /tmp, which a
    second user cannot write to."""
    sys.modules.setdefault("robosuite.macros_private", ModuleType("robosuite.macros_private"))


@lru_cache(maxsize=8)
def _init_states(package: Path, task: str) -> np.ndarray:
    """float64 [50, D]: the benchmark's stored states, which are pickled. They are trusted because the package ships
    them."""
    import torch

    row = _rows()[task]
    return torch.load(package / "init_files" / row["suite"] / f"{row['name']}.pruned_init", weights_only=False)


def _axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle [3] of a quaternion x, y, z, w as published LIBERO clients have it: the angle runs to 2 pi."""
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    length = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(length, 0.0) else quaternion[:3] * (2.0 * np.arccos(w) / length)


def _proprioception(observation: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [7] of a robosuite observation; its quaternion is x, y, z, w."""
    turn = rotation_vectors(Rotation.from_quat(observation["robot0_eef_quat"]), EMBODIMENT.state.rotation_near)
    fingers = observation["robot0_gripper_qpos"]
    opening = (fingers[0] - fingers[1]) / FINGER_SPAN
    return np.concatenate([observation["robot0_eef_pos"], turn, [opening]]).astype(np.float32)
