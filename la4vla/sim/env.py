"""What every simulator looks like to the rest of the project: the `Env` protocol and what a step returns.

Units of every env: images are uint8 RGB [H, W, 3], upright; metres; radians; the gripper's opening is 1 = open in the
state. What an action's numbers mean is said by `embodiment.action` of the env, not by this file.

One live env per process: two GL contexts in one process draw wrong images without an error (mujoco contexts are
per thread and most viewers never make theirs current). Envs that run side by side live in spawned processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from la4vla.rng import RngUse, generator
from la4vla.sim.things import Thing
from la4vla.types import Embodiment, Observation

ROBOT_POSE = "robot_pose"


@dataclass(frozen=True)
class EnvStep:
    """What one control step returns.

    state       float32 [S] after the step, raw units
    success     the env's own criterion holds at this step; it may cease to hold at a later one
    truncated   the horizon is reached; the next call must be `reset`
    """

    state: np.ndarray
    success: bool
    truncated: bool


@dataclass(frozen=True)
class SceneChange:
    """A change of an episode.

    name    of `sim.scene.EDITS`, which alter looks and nothing else, or ROBOT_POSE, which moves the robot's hand at the
            start and no object
    level   how strong it is; of ROBOT_POSE: m
    seed    of its draws

    The draws are named by task and episode, not by the level: a stronger change goes the same way, further.
    """

    name: str
    level: Any
    seed: int

    def draws(self, task: str, episode: int) -> np.random.Generator:
        return generator(self.seed, RngUse.PERTURB, self.name, task, episode)


class Env(Protocol):
    """A simulator of one robot.

    embodiment  the typed state and action spec
    """

    embodiment: Embodiment

    def reset(self, task: str, episode: int, change: SceneChange | None = None) -> Observation:
        """Start an episode. The initial state is a pure function of (suite, task, episode >= 0), whatever ran before.

        change: other looks until the next reset, which leave physics the same to the bit; or, if it is ROBOT_POSE,
        another start of the robot, which leaves every object's joints the same to the bit.

        Raises UserError for an unknown task.
        """
        ...

    def step(self, action: np.ndarray) -> EnvStep:
        """Advance one control step with a raw action [A] (clipped to the env's range). Never renders.

        Raises UserError for an action of the wrong size, ValueError for a non-finite one and RuntimeError
        past the horizon.
        """
        ...

    def observe(self) -> Observation:
        """The present state and freshly rendered views. Rendering happens here and in `reset` only."""
        ...

    def things(self, view: str = "") -> tuple[Thing, ...]:
        """What the scene holds now that has a name. view: a camera of this env, in which the pixels of toys are
        counted; empty: they are not."""
        ...

    def milestones(self) -> frozenset[str]:
        """Those of sim.milestones.MILESTONES that hold now. To be called after every step, or never in an episode."""
        ...

    def close(self) -> None:
        """Free the GL context. The env cannot be used afterwards."""
        ...
