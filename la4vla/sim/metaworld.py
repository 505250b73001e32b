"""MetaWorld (3.1.1, 50 Sawyer tasks) as an `Env`: pure initial states, 4-d proprioception, upright images.

What it refuses: object poses in the state (the benchmark's 39-d vector is privileged; only its first 4 numbers, hand
position and gripper opening, leave this file, but for `evo1_state`, which only a protocol that says so asks for), and
initial states that depend on what ran before.

Initial states. MetaWorld ignores `reset(seed)`; a layout is one random vector. Episodes come in blocks of 50: block
b = episode // 50 holds the 50 layouts that MT1(task, seed=4042 + b) samples, and the episode is number episode % 50 of
them. 4042 is the seed of published MetaWorld evaluations (FACTS 4.7).

World frame: the robot stands at the origin and faces +y; +x is to its right, +z is up.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from la4vla.sim.expert import Decision, Intent, decide
from la4vla.sim.mujoco_env import MujocoEnv
from la4vla.sim.things import JointPart, Thing, joint_parts
from la4vla.types import Embodiment, VectorSpec

EMBODIMENT = Embodiment(
    name="metaworld_sawyer",
    control_hz=80.0,  # 5 physics steps of 2.5 ms
    state=VectorSpec(
        names=("x", "y", "z", "gripper"),
        reference="absolute",
        gripper_open=1.0,
        gripper_closed=0.0,
        unit="m",
        metres_per_unit=1.0,
    ),
    action=VectorSpec(
        names=("x", "y", "z", "gripper"),
        reference="delta",
        gripper_open=-1.0,
        gripper_closed=1.0,
        unit="1 cm of target motion",
        metres_per_unit=0.01,
    ),
)
"""State: `hand` body (4.5 cm above the fingertips) and finger distance / 0.1 m in [0, 1]. Action: in [-1, 1]."""

EVO1_EMBODIMENT = replace(
    EMBODIMENT,
    state=replace(
        EMBODIMENT.state, names=("x", "y", "z", "gripper", "object_x", "object_y", "object_z", "object_turn_0")
    ),
)
"""What Evo-1's client shows its policy: the first 8 numbers of the benchmark's vector, of which the last 4 are the
first object's place and a part of its turn (FACTS 4.7, B24)."""

CAMERA_TURNS = {
    "corner": 2,  # these four are mounted upside down in the scene
    "corner2": 2,
    "corner3": 2,
    "corner4": 2,
    "topview": 0,
    "behindGripper": 0,
    "gripperPOV": 0,
}
"""Camera -> quarter turns that make its image upright (a rotation, never a mirror image)."""

LAYOUT_SEED = 4042
BLOCK = 50  # layouts one MT1 construction samples
MAX_STEPS = 500  # MetaWorld itself raises at the 501st step
WORKSPACE = (0.0, 0.6, 0.1)  # m, about the middle of the layouts
REACH = (0.4, 0.3)  # m along x and y: the layouts, and what the cameras see of the table around them
AT_OBJECT = 0.09  # m, twice as far from the hand as its fingertips: a hand that closes on its way there is to grasp,
NEAR_OBJECT = 0.15  # m, unless it is still so far away: some experts close the gripper long before, and push with it
SURFACES = ("table_wood", "basic_floor", "wall_metal")
PARTS = {  # the experts leave these joints at 0.25 and less, or 0.5 and more, of their range
    "button": JointPart("button", "pressed", "released"),
    "door_link": JointPart("door", "open", "closed"),
    "lock_link": JointPart("lock", "unlocked", "locked"),
    "drawer_link": JointPart("drawer", "open", "closed"),
    "handle_link": JointPart("handle", "down", "up"),
    "windowb_a": JointPart("window", "closed", "open"),
}
"""Body -> the part that its joint opens."""
TARGETS = {"coffee-button-v3": "cmbutton"}
"""Task -> the body that it is about, where that is not the first that can move and is none of the robot's."""
FIXED = ("tablelink", "RetainingWall", "base", "mocap")


def task_table() -> dict[str, Any]:
    """sim/data/mt50.json: name, version, notes and `tasks`, rows of task, bucket, prompt, in the order of MT50."""
    return json.loads((resources.files("la4vla.sim") / "data" / "mt50.json").read_text())


def prompts() -> dict[str, str]:
    """Task name -> instruction, 50 different sentences."""
    return {row["task"]: row["prompt"] for row in task_table()["tasks"]}


def buckets() -> dict[str, str]:
    """Task name -> easy | medium | hard | very_hard."""
    return {row["task"]: row["bucket"] for row in task_table()["tasks"]}


class MetaWorldEnv(MujocoEnv):
    """One MetaWorld scene at a time, one such env per process.

    views     keys of CAMERA_TURNS
    horizon   at most 500 steps of 12.5 ms
    fast      3-4 times the speed, darker images
    """

    embodiment = EMBODIMENT
    simulator = "MetaWorld"
    turns = CAMERA_TURNS
    max_steps = MAX_STEPS
    hand = "hand"
    fingers = ("leftclaw", "rightclaw")
    base = "base"
    task_file = "la4vla/sim/data/mt50.json"
    example = "reach-v3"

    def __init__(self, views: Sequence[str], image_size: int, horizon: int, fast: bool) -> None:
        super().__init__(views, image_size, horizon, fast)
        self._full_observation = np.zeros(39)
        self._success = False

    def expert_action(self) -> np.ndarray:
        """float32 [4] in [-1, 1]: what the benchmark's scripted policy, which sees object poses, does at this state."""
        return self.expert_decision().action

    def expert_decision(self) -> Decision:
        """expert_action with the phase that the policy is in. Call one of the two, once a step."""
        with warnings.catch_warnings():
            # The scripted policies warn on every step that their gains saturate; the clip below is what they rely on.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            return decide(self._expert, self._full_observation.copy())

    def expert_intent(self) -> Intent:
        """What the policy is about at this state."""
        decision = self.expert_decision()
        closing = bool(decision.action[3] > 0)
        near = float(np.linalg.norm(decision.object - self._state()[:3])) < NEAR_OBJECT
        meant = float(np.linalg.norm(decision.object - decision.target)) < AT_OBJECT
        opening = 0.0 if closing else 1.0
        return Intent((decision.phase, int(closing)), decision.target, opening, closing and near and meant)

    def physics_state(self) -> np.ndarray:
        """float64: what identifies the simulation's state (positions, velocities, layout); for tests."""
        data = self._data
        return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel(), data.xpos.ravel(), data.site_xpos.ravel()])

    def evo1_state(self) -> np.ndarray:
        """float32 [8] of EVO1_EMBODIMENT: privileged, since no camera and no joint tells it."""
        return self._full_observation[: len(EVO1_EMBODIMENT.state.names)].astype(np.float32)

    def _parts(self) -> list[Thing]:
        return joint_parts(self._model, self._data, PARTS)

    def _read_prompts(self) -> dict[str, str]:
        return prompts()

    def _build(self, task: str) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        from la4vla.sim.scene import Scene, Stage

        self._scene = ALL_V3_ENVIRONMENTS[task]()
        self._looks = Scene(self._model, self._data, Stage(WORKSPACE, REACH, SURFACES, FIXED))
        self._expert = ENV_POLICY_MAP[task]()

    def _begin(self, episode: int) -> None:
        self._scene.set_task(_layouts(self._task, episode // BLOCK)[episode % BLOCK])
        self._full_observation, _ = self._scene.reset()
        self._success = False
        self._refresh_poses()

    def _move_hand(self, distance: float, draws: np.random.Generator) -> None:
        """Moves the target that pulls the hand as well, and no further than actions could move it."""
        from la4vla.sim.start import move_hand

        scene, data = self._scene, self._data

        def allowed(move_3: np.ndarray) -> bool:
            target_3 = data.mocap_pos[0] + move_3
            return bool(((scene.mocap_low <= target_3) & (target_3 <= scene.mocap_high)).all())

        data.mocap_pos[0] += move_hand(self._model, data, self._model.body(self.hand).id, distance, draws, allowed)
        self._refresh_poses()
        scene._prev_obs = scene._get_curr_obs_combined_no_goal()
        self._full_observation[:36] = np.tile(scene._prev_obs, 2)

    def _refresh_poses(self) -> None:
        """Computes poses from joint positions: some scenes move their goal marker last, and it would be drawn where it
        was before."""
        import mujoco

        mujoco.mj_kinematics(self._model, self._data)  # pyright: ignore[reportAttributeAccessIssue]
        mujoco.mj_camlight(self._model, self._data)  # pyright: ignore[reportAttributeAccessIssue]

    def _advance(self, action: np.ndarray) -> bool:
        self._full_observation, _, _, _, info = self._scene.step(action)
        self._success = bool(info["success"] > 0)
        return self._success

    def _targets(self) -> list[int]:
        model = self._model
        if self._task in TARGETS:
            return [model.body(TARGETS[self._task]).id]
        robot = model.body(self.base).id
        moving = [int(number) for number in model.jnt_bodyid if model.body_rootid[number] != model.body_rootid[robot]]
        return moving[:1]

    def _placed(self) -> bool:
        return self._success

    def _state(self) -> np.ndarray:
        return self._full_observation[:4].astype(np.float32)

    @property
    def _model(self) -> Any:
        return self._scene.model

    @property
    def _data(self) -> Any:
        return self._scene.data


@lru_cache(maxsize=64)
def _layouts(task: str, block: int) -> tuple[Any, ...]:
    """The 50 `metaworld.types.Task` of one block. MT1 seeds numpy's global generator for this and restores it."""
    import metaworld

    return tuple(metaworld.MT1(task, seed=LAYOUT_SEED + block).train_tasks)
