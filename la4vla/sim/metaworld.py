"""MetaWorld (3.1.1, 50 Sawyer tasks) as an `Env`: pure initial states, 4-d proprioception, upright pictures.

What it refuses: object poses in the state (the benchmark's 39-d vector is privileged; only its first 4 numbers, hand
position and gripper opening, leave this file), and initial states that depend on what ran before.

Initial states. MetaWorld ignores `reset(seed)`; a layout is one random vector. Episodes come in blocks of 50: block
b = episode // 50 holds the 50 layouts that MT1(task, seed=4042 + b) samples, and the episode is number episode % 50 of
them. 4042 is the seed of published MetaWorld evaluations (FACTS 4.7).

World frame: the robot stands at the origin and faces +y; +x is to its right, +z is up.
"""

from __future__ import annotations

import atexit
import gc
import json
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from la4vla.sim.env import SceneChange, StepResult
from la4vla.sim.expert import Decision, decide
from la4vla.sim.render import check_frame, use_backend
from la4vla.types import Embodiment, Observation, UserError, VectorSpec

EMBODIMENT = Embodiment(
    name="metaworld_sawyer",
    control_hz=80.0,  # 5 physics steps of 2.5 ms
    state=VectorSpec(
        names=("x", "y", "z", "gripper"), reference="absolute", gripper_open=1.0, gripper_closed=0.0, unit="m"
    ),
    action=VectorSpec(
        names=("x", "y", "z", "gripper"),
        reference="delta",
        gripper_open=-1.0,
        gripper_closed=1.0,
        unit="1 cm of target motion",
    ),
)
"""State: `hand` body (4.5 cm above the fingertips) and finger distance / 0.1 m in [0, 1]. Action: in [-1, 1]."""

CAMERA_TURNS = {
    "corner": 2,  # these four are mounted upside down in the scene
    "corner2": 2,
    "corner3": 2,
    "corner4": 2,
    "topview": 0,
    "behindGripper": 0,
    "gripperPOV": 0,
}
"""Camera -> quarter turns that make its picture upright (a rotation, never a mirror image)."""

LAYOUT_SEED = 4042
BLOCK = 50  # layouts one MT1 construction samples
MAX_STEPS = 500  # MetaWorld itself raises at the 501st step
WORKSPACE = (0.0, 0.6, 0.1)  # m, about the middle of the layouts
SURFACES = ("table_wood", "basic_floor", "wall_metal")
FIXED = ("tablelink", "RetainingWall", "base", "mocap")
SHADOW_MAP = 1024  # pixels; 4096, the default, differs by 0.04 grey levels and costs 1.6x


def task_table() -> dict[str, Any]:
    """sim/data/mt50.json: name, version, notes and `tasks`, rows of task, bucket, prompt, in the order of MT50."""
    return json.loads((resources.files("la4vla.sim") / "data" / "mt50.json").read_text())


def prompts() -> dict[str, str]:
    """Task name -> instruction, 50 different sentences."""
    return {row["task"]: row["prompt"] for row in task_table()["tasks"]}


def buckets() -> dict[str, str]:
    """Task name -> easy | medium | hard | very_hard."""
    return {row["task"]: row["bucket"] for row in task_table()["tasks"]}


class MetaWorldEnv:
    """One MetaWorld scene at a time, one such env per process.

    views: camera names, keys of CAMERA_TURNS. image_size: pixels, square. horizon: control steps after which an episode
    is truncated, at most 500. fast: no shadows, reflections or anti-aliasing; 3-4 times the speed, but darker pictures:
    train and evaluate with the same setting. Raises UserError for bad settings and where no GL backend renders.
    """

    embodiment = EMBODIMENT

    def __init__(self, views: Sequence[str], image_size: int, horizon: int, fast: bool) -> None:
        for view in views:
            if view not in CAMERA_TURNS:
                raise UserError(f"view `{view}` is not a MetaWorld camera; use one of {', '.join(CAMERA_TURNS)}.")
        if not 1 <= horizon <= MAX_STEPS:
            raise UserError(f"horizon is {horizon}; MetaWorld episodes have 1 to {MAX_STEPS} steps.")
        self.backend = use_backend()
        self._views = tuple(views)
        self._image_size = image_size
        self._horizon = horizon
        self._fast = fast
        self._task = ""
        self._steps = 0
        self._full_observation = np.zeros(39)
        self._scene: Any = None
        self._renderer: Any = None
        self._looks: Any = None
        self._expert: Any = None

    def reset(self, task: str, episode: int, change: SceneChange | None = None) -> Observation:
        """Episode number `episode` >= 0 of `task`. Cheap within a task; another task builds another scene."""
        assert episode >= 0
        if task not in prompts():
            raise UserError(
                f"`{task}` is not a MetaWorld task; names look like `reach-v3` (la4vla/sim/data/mt50.json)."
            )
        if task != self._task:
            self._build(task)
        self._looks.restore(self._scene.data, self._renderer)
        self._scene.set_task(_layouts(task, episode // BLOCK)[episode % BLOCK])
        self._full_observation, _ = self._scene.reset()
        self._refresh_poses()
        if change is not None:
            self._looks.apply(change, task, episode, self._scene.data, self._renderer)
        self._steps = 0
        return self.observe()

    def step(self, action: np.ndarray) -> StepResult:
        """One step of 12.5 ms. action: [4] as EMBODIMENT.action says, clipped to [-1, 1]."""
        action = np.asarray(action, np.float32)
        if action.shape != (4,):
            raise UserError(f"MetaWorld takes actions of size 4, got shape {list(action.shape)}.")
        if not np.isfinite(action).all():
            raise ValueError(f"{self._task}: action {action.tolist()} is not finite")
        if self._steps >= self._horizon:
            raise RuntimeError(f"{self._task}: step past the horizon of {self._horizon}; call reset first")
        self._full_observation, _, _, _, info = self._scene.step(np.clip(action, -1.0, 1.0))
        self._steps += 1
        return StepResult(self._state(), bool(info["success"] > 0), self._steps >= self._horizon)

    def observe(self) -> Observation:
        """The present state and pictures, rendered now."""
        views = {view: self._render(view) for view in self._views}
        return Observation(views, self._state(), prompts()[self._task])

    def expert_action(self) -> np.ndarray:
        """float32 [4] in [-1, 1]: what the benchmark's scripted policy, which sees object poses, does at this state."""
        return self.expert_decision().action

    def expert_decision(self) -> Decision:
        """expert_action with the phase that the policy is in. Call one of both, once a step."""
        with warnings.catch_warnings():
            # The scripted policies warn on every step that their gains saturate; the clip below is what they rely on.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            return decide(self._expert, self._full_observation)

    def physics_state(self) -> np.ndarray:
        """float64: what identifies the simulation's state (positions, velocities, layout); for tests."""
        data = self._scene.data
        return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel(), data.xpos.ravel(), data.site_xpos.ravel()])

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
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        from la4vla.sim.scene import Scene, Stage

        self._scene = ALL_V3_ENVIRONMENTS[task]()
        self._looks = Scene(self._scene.model, Stage(WORKSPACE, SURFACES, FIXED))
        self._expert = ENV_POLICY_MAP[task]()
        self._task = task

    def _refresh_poses(self) -> None:
        """Poses from joint positions: some scenes move their goal marker last and would draw it where it was."""
        import mujoco

        mujoco.mj_kinematics(self._scene.model, self._scene.data)  # pyright: ignore[reportAttributeAccessIssue]
        mujoco.mj_camlight(self._scene.model, self._scene.data)  # pyright: ignore[reportAttributeAccessIssue]

    def _state(self) -> np.ndarray:
        return self._full_observation[:4].astype(np.float32)

    def _render(self, view: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = self._new_renderer()
            # EGL goes down before the interpreter collects what is left; a renderer freed after that prints an error.
            atexit.register(self.close)
        self._renderer.update_scene(self._scene.data, camera=view)
        image = np.rot90(self._renderer.render(), CAMERA_TURNS[view])
        return check_frame(np.ascontiguousarray(image), f"{self._task}/{view}")

    def _new_renderer(self) -> Any:
        import mujoco

        quality = self._scene.model.vis.quality
        quality.shadowsize = 0 if self._fast else SHADOW_MAP
        if self._fast:
            quality.offsamples = 0
        renderer = mujoco.Renderer(self._scene.model, self._image_size, self._image_size)
        if self._fast:
            reflection = mujoco.mjtRndFlag.mjRND_REFLECTION  # pyright: ignore[reportAttributeAccessIssue]
            renderer.scene.flags[reflection] = 0
        return renderer


@lru_cache(maxsize=64)
def _layouts(task: str, block: int) -> tuple[Any, ...]:
    """The 50 `metaworld.types.Task` of one block. MT1 seeds numpy's global generator for this and restores it."""
    import metaworld

    return tuple(metaworld.MT1(task, seed=LAYOUT_SEED + block).train_tasks)
