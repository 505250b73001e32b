"""MetaWorld as a suite of the runner. The env itself, its cameras and its initial states are `la4vla.sim.metaworld`."""

from __future__ import annotations

import numpy as np

from benchmarks.results.protocols import Protocol
from benchmarks.rollouts.rollout import Suite
from la4vla.sim import render
from la4vla.sim.env import Env
from la4vla.sim.metaworld import MetaWorldEnv


def make_env(protocol: Protocol, views: tuple[str, ...]) -> MetaWorldEnv:
    """In the worker. Its horizon leaves room for the wait."""
    return MetaWorldEnv(views, protocol.image_size, protocol.longest_horizon + protocol.wait_steps, protocol.fast)


def expert(env: Env) -> np.ndarray:
    """The scripted policy, which sees object poses: an upper bound and a check of the runner, never a result."""
    assert isinstance(env, MetaWorldEnv)
    return env.expert_action()


SUITE = Suite("metaworld", render.use_backend, make_env, expert, ("mujoco", "metaworld", "gymnasium", "numpy"))
