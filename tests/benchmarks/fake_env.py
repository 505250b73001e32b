"""A tiny deterministic simulator for the runner's tests: a point that has to be pushed up to 1. Imported by spawned
workers."""

import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.results.protocols import Protocol
from la4vla.rng import name_id
from la4vla.sim.env import EnvStep
from la4vla.sim.expert import Intent
from la4vla.sim.registry import ClientNumbers, GoldenScenes, Setting, Simulator
from la4vla.types import Embodiment, Observation, UserError, VectorSpec

EMBODIMENT = Embodiment("point", 20.0, VectorSpec(("x",), "absolute"), VectorSpec(("x",), "delta"))
CLIENTS_EMBODIMENT = Embodiment("point", 20.0, VectorSpec(("x", "left"), "absolute"), VectorSpec(("x",), "delta"))
TASKS = ["easy-a", "easy-b", "hard-c"]


class PointEnv:
    """x starts at a value that (task, episode) decide; success once x >= 1. Steps and renders are counted in the
    image.

    Task names with a meaning: `crash-once-*` dies hard the first time an episode is begun (a file remembers),
    `crash-*` always, `refuse-*` raises a UserError, `hang-*` sleeps.
    """

    embodiment = EMBODIMENT

    def __init__(self, views, image_size: int, horizon: int, fast: bool):
        self.views, self.size, self.horizon = views, image_size, horizon
        self.x, self.steps, self.task = 0.0, 0, ""

    def reset(self, task: str, episode: int) -> Observation:
        if task.startswith("refuse"):
            raise UserError("the point refuses; choose another task.")
        if task.startswith("hang"):
            time.sleep(60)
        marker = Path(os.environ.get("POINT_MARKERS", "/nonexistent")) / f"{task}-{episode}"
        if task.startswith("crash-once") and marker.exists():
            pass
        elif task.startswith("crash"):
            if task.startswith("crash-once"):
                marker.touch()
            print("the point exploded", file=sys.stderr, flush=True)
            os._exit(3)
        self.task, self.steps = task, 0
        self.x = np.random.Generator(np.random.Philox(name_id(task) + episode)).uniform(-0.5, 0.5)
        return self.observe()

    def step(self, action: np.ndarray) -> EnvStep:
        assert action.shape == (1,)
        self.x += float(np.clip(action[0], -1, 1)) * 0.1
        self.steps += 1
        return EnvStep(self._state(), self.x >= 1.0, self.steps >= self.horizon)

    def observe(self) -> Observation:
        image = np.full((16, 16, 3), self.steps, np.uint8)
        return Observation(dict.fromkeys(self.views, image), self._state(), f"push the point of {self.task}")

    def milestones(self) -> frozenset[str]:
        return frozenset(["move"] if self.x >= 0.5 else [])

    def close(self) -> None:
        pass

    def _state(self) -> np.ndarray:
        return np.array([self.x], np.float32)


def prompts() -> dict[str, str]:
    return {task: f"push the point of {task}" for task in [*TASKS, "crash-x"]}


def expert(env) -> tuple[np.ndarray, None]:
    return np.ones(1, np.float32), None


def intent(env) -> Intent:
    return Intent((0,), np.ones(3, np.float32), None, False)


def held_out(episode: int) -> bool:
    return False


def no_folders() -> None:
    return None


def prepare() -> str:
    return "none"


def clients_state(env) -> np.ndarray:
    return np.array([env.x, 1 - env.x], np.float32)


def clients_actions(actions_TA: np.ndarray) -> np.ndarray:
    return -actions_TA


POINT = Simulator(
    name="point", embodiment=EMBODIMENT, prompts=prompts, cameras=("eye", "ear"), max_steps=100, views=("eye",),
    make_env=PointEnv, prepare=prepare, asset_folders=no_folders, expert=expert, intent=intent, expert_steps=27,
    wait=(0.0,), wait_steps=0, held_out=held_out, packages=("numpy",), pins=("numpy",),
    scenes=GoldenScenes(("easy-a",), ("easy-a",), Setting(("eye",), 16, False), (), "easy-a"),
    clients={"backwards": ClientNumbers(CLIENTS_EMBODIMENT, ("eye",), clients_state, clients_actions)},
)  # fmt: skip


def protocol(**changes) -> Protocol:
    values = dict(
        name="point/test", version=1, suite="point", groups={"easy": TASKS[:2], "hard": TASKS[2:]}, first_episode=0,
        episodes=3, seed=0, horizon=27, wait_steps=0, replan_every=4, views=["eye"], image_size=16, fast=False,
        success="any_step",
    )  # fmt: skip
    return Protocol(**{**values, **changes})


class Pusher:
    """A policy whose chunk depends on the observation and the noise key only; remembers what it was asked."""

    def __init__(self, horizon: int = 8, seconds: float = 0.0):
        self.horizon, self.seconds, self.batches, self.opened = horizon, seconds, [], []

    def check(self, embodiment, views) -> None:
        assert embodiment == EMBODIMENT

    def open(self, episode) -> None:
        self.opened.append(episode)

    def infer(self, observations, noise_keys) -> list[np.ndarray]:
        self.batches.append(list(noise_keys))
        time.sleep(self.seconds)
        return [self.chunk(seen, key) for seen, key in zip(observations, noise_keys, strict=True)]

    def said(self):
        return []

    def chunk(self, seen: Observation, key) -> np.ndarray:
        seed = [key.seed, name_id(key.task), key.episode, key.query, int(1e6 * (1 + seen.state[0]))]
        noise = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        return noise.uniform(-0.4, 1, (self.horizon, 1)).astype(np.float32)
