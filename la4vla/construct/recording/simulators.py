"""The simulators that demonstrations can be recorded in: what `record` must know of each. Owns `Simulator`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from la4vla.types import Embodiment

if TYPE_CHECKING:
    from la4vla.sim.env import Env
    from la4vla.sim.expert import Decision

EVALUATED_EPISODES = 1000
"""Episodes below are MetaWorld's evaluations' (they use 0 to 49)."""

LIBERO_STATES, LIBERO_HELD_OUT = 50, 20
"""LIBERO has 50 stored states a task, and episode k starts from number k % 50: a large k is no new state. 0 to 19 are
kept for evaluation (libero/heldout-v1), 20 to 49 are for demonstrations."""


@dataclass(frozen=True)
class Simulator:
    """prompts: task -> sentence. views: cameras used unless told. horizon: steps an expert gets. wait: an action sent
    `wait_steps` times after each reset and not recorded. example: a task's name, for errors.

    make_env: (views, image_size, horizon, fast) -> Env. expert: the raw action float32 [A] at the env's present state,
    and what its script had in mind where it says so; once a step. held_out: an episode number that evaluations use.
    """

    embodiment: Embodiment
    prompts: dict[str, str]
    views: tuple[str, ...]
    horizon: int
    wait: np.ndarray
    wait_steps: int
    example: str
    make_env: Callable[[Sequence[str], int, int, bool], Env]
    expert: Callable[[Env], tuple[np.ndarray, Decision | None]]
    held_out: Callable[[int], bool]


def simulator(name: str) -> Simulator:
    """`metaworld` or `libero` (config.validate_construct refuses others). Imports no simulator."""
    return {"metaworld": _metaworld, "libero": _libero}[name]()


def _metaworld() -> Simulator:
    from la4vla.sim.metaworld import EMBODIMENT, MetaWorldEnv, prompts

    def expert(env: Env) -> tuple[np.ndarray, Decision | None]:
        assert isinstance(env, MetaWorldEnv)
        decision = env.expert_decision()
        return decision.action, decision

    return Simulator(
        embodiment=EMBODIMENT,
        prompts=prompts(),
        views=("corner4",),
        horizon=500,  # all that MetaWorld allows
        wait=np.zeros(4, np.float32),
        wait_steps=0,
        example="reach-v3",
        make_env=MetaWorldEnv,
        expert=expert,
        held_out=lambda episode: episode < EVALUATED_EPISODES,
    )


def _libero() -> Simulator:
    from la4vla.sim.libero import CAMERAS, EMBODIMENT, LiberoEnv, prompts

    def expert(env: Env) -> tuple[np.ndarray, Decision | None]:
        assert isinstance(env, LiberoEnv)
        return env.expert_action(), None

    return Simulator(
        embodiment=EMBODIMENT,
        prompts=prompts(),
        views=CAMERAS,
        horizon=400,  # its successes take 66 to 176 steps
        wait=np.array([0, 0, 0, 0, 0, 0, -1], np.float32),  # objects settle, as in libero/openvla-v1
        wait_steps=10,
        example="libero_object_03",
        make_env=LiberoEnv,
        expert=expert,
        held_out=lambda episode: episode % LIBERO_STATES < LIBERO_HELD_OUT,
    )
