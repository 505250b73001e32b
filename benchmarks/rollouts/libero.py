"""LIBERO as a suite of the runner. The env itself, its cameras and its initial states are `la4vla.sim.libero`."""

from __future__ import annotations

import numpy as np

from benchmarks.results.protocols import Protocol
from benchmarks.rollouts.rollout import Suite
from la4vla.sim import render
from la4vla.sim.env import Env
from la4vla.sim.libero import LiberoEnv, open_libero


def prepare() -> str:
    """In the parent: the GL backend, and that LIBERO and its assets are there; robosuite is not imported."""
    open_libero()
    return render.use_backend()


def make_env(protocol: Protocol, views: tuple[str, ...]) -> LiberoEnv:
    """In the worker. Its horizon leaves room for the wait."""
    return LiberoEnv(views, protocol.image_size, protocol.longest_horizon + protocol.wait_steps, protocol.fast)


def expert(env: Env) -> np.ndarray:
    """The scripted policy, which sees all geometry: an upper bound and a check of the runner, never a result."""
    assert isinstance(env, LiberoEnv)
    return env.expert_action()


SUITE = Suite("libero", prepare, make_env, expert, ("mujoco", "robosuite", "hf-libero", "numpy"))
