"""The simulator's side of an evaluation: one episode, and the worker process that runs one episode after another.

A worker owns one env, built inside it (never forked: a forked GL context hangs), and knows nothing of the policy: it
sends an observation up a pipe and gets actions back. Nothing survives from one episode to the next but the built scene.
Its output goes to a log file, whose last line explains a crash that Python could not report, such as one inside GL.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.perturb.perturb import CLEAN, Variant, perturb, scene_change
from benchmarks.results.protocols import Protocol
from benchmarks.rollouts import client_view, video
from la4vla.sim import render
from la4vla.sim.env import Env
from la4vla.sim.registry import ClientNumbers, Simulator
from la4vla.types import Embodiment, Observation, UserError

if TYPE_CHECKING:  # it brings the labeller, 0.4 s and 40 MB a worker, which few evaluations ask for
    from benchmarks.rollouts.privileged import Tellers

VIDEO_STRIDE = 4  # env steps between two frames of a video

Infer = Callable[[Observation, int], np.ndarray]
"""(observation, number of the query in this episode) -> raw actions [k, A]."""


@dataclass(frozen=True)
class RolloutJob:
    """One episode to run.

    task      env name
    episode   number of its initial state
    video     file to record it to; empty: none
    variant   what its images, its scene or its instruction go through
    """

    task: str
    episode: int
    video: str = ""
    variant: Variant = CLEAN


@dataclass(frozen=True)
class Ready:
    """A worker's first message."""

    embodiment: Embodiment


@dataclass(frozen=True)
class Query:
    """What a worker shows the policy, and the query's number in its episode, from 0."""

    observation: Observation
    number: int


@dataclass(frozen=True)
class EpisodeOutcome:
    """How an episode ended.

    success       the env reported it at the last step
    steps         env steps, those of the wait not counted
    queries       chunks that the policy gave
    wall_s        of the whole episode
    seconds       by activity: reset, physics, render (perturbing included), policy; the rest of wall_s is in none
    latencies_s   of every query, from the observation to its actions, waiting for other episodes' batches included
    final_state   [S], raw units
    milestones    name -> the step at which it was first reached
    """

    success: bool
    steps: int
    queries: int
    wall_s: float
    seconds: dict[str, float]
    latencies_s: tuple[float, ...]
    final_state: tuple[float, ...]
    milestones: dict[str, int]


@dataclass(frozen=True)
class Refusal:
    """A UserError inside a worker, on its way to the user."""

    sentence: str


@dataclass
class Clock:
    """Counts seconds.

    seconds   by activity
    last      of the activity that ended last
    """

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("reset", "physics", "render", "policy"), 0.0)
    )

    last: float = 0.0

    @contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.last = time.perf_counter() - start
        self.seconds[activity] += self.last


def make_env(simulator: Simulator, protocol: Protocol, views: tuple[str, ...]) -> Env:
    """An env as the protocol wants it."""
    return simulator.make_env(views, protocol.image_size, env_steps(protocol), protocol.fast)


def env_steps(protocol: Protocol) -> int:
    """Steps that an env must allow an episode: those of the longest horizon and of the wait."""
    return protocol.longest_horizon + protocol.wait_steps


def check_served(protocol: Protocol, simulator: Simulator) -> None:
    """Raises UserError where no env of the simulator can run the protocol."""
    if protocol.suite != simulator.name:
        raise UserError(f"protocol {protocol.title} is for `{protocol.suite}`, not for `{simulator.name}`.")
    for view in protocol.views:
        if view not in simulator.cameras:
            cameras = ", ".join(simulator.cameras)
            raise UserError(f"{protocol.title}: view `{view}` is not a camera of {simulator.name}; use {cameras}.")
    for task in protocol.tasks:
        if task not in simulator.prompts():
            names = f"names look like `{simulator.scenes.figure}`"
            raise UserError(f"{protocol.title}: `{task}` is not a task of {simulator.name}; {names}.")
    if env_steps(protocol) > simulator.max_steps:
        raise UserError(
            f"{protocol.title}: the longest horizon is {protocol.longest_horizon} and wait_steps is "
            f"{protocol.wait_steps}; lower them, {simulator.name} allows {simulator.max_steps} steps an episode in all."
        )
    client_view.numbers(protocol, simulator)
    size = len(simulator.embodiment.action.names)
    if len(protocol.wait_action) not in (0, size):
        raise UserError(
            f"{protocol.title}: wait_action has {len(protocol.wait_action)} numbers; give {size}, or none for zeros."
        )


def roll_out(
    env: Env,
    job: RolloutJob,
    protocol: Protocol,
    infer: Infer,
    tellers: Tellers | None = None,
    numbers: ClientNumbers | None = None,
) -> EpisodeOutcome:
    """Runs one episode. The first `replan_every` actions of a chunk are executed, or all of a chunk that is shorter;
    then the policy is queried again.

    Queries are numbered 0, 1, 2, ... in an episode, however many actions each chunk gave. Images are rendered when the
    policy is queried (and for a video, which shows what the policy sees). A success ends the episode at its step. What
    is left of a chunk at the end of an episode is dropped: no action outlives its episode. tellers: of what the policy
    is told beside what it sees. numbers: of a published client, in which the policy then sees its state; `infer`
    gives our actions.
    """

    def shown(observation: Observation) -> Observation:
        changed = perturb(observation, job.variant, protocol.seed, protocol.suite, job.task, job.episode, steps)
        return client_view.shown(changed, protocol, numbers, env)

    clock, start = Clock(), time.perf_counter()
    latencies: list[float] = []
    frames: list[np.ndarray] = []
    with clock("reset"):
        change = scene_change(job.variant, protocol.seed)
        changes = () if change is None else (change,)
        observation = env.reset(job.task, job.episode, *changes)
    wait = np.asarray(protocol.wait_action or [0.0] * len(env.embodiment.action.names), np.float32)
    state = observation.state
    for _ in range(protocol.wait_steps):
        state = env.step(wait).state
        env.milestones()  # what has settled is where it will be moved from
    reached: dict[str, int] = {}
    horizon = protocol.horizon_of(job.task)
    success, ended, steps, queries = False, False, 0, 0
    if tellers:
        tellers.begin(job.task, job.episode, state)
    while not ended:
        if steps or protocol.wait_steps:
            with clock("render"):
                observation = env.observe()
        with clock("render"):
            observation = replace(shown(observation), privileged=tellers.now() if tellers else {})
        with clock("policy"):
            chunk = infer(observation, queries)
        latencies.append(clock.last)
        queries += 1
        for action in chunk[: protocol.replan_every]:
            if job.video and steps % VIDEO_STRIDE == 0:
                frames.append(shown(env.observe()).views[protocol.views[0]])
            with clock("physics"):
                result = env.step(action)
            steps += 1
            for name in sorted(env.milestones()):
                reached.setdefault(name, steps)
            success, state = result.success, result.state
            if tellers:
                tellers.stepped(state)
            ended = success or result.truncated or steps >= horizon
            if ended:
                break
    if job.video:
        frames.append(shown(env.observe()).views[protocol.views[0]])
        video.write(Path(job.video), frames, env.embodiment.control_hz / VIDEO_STRIDE)
    final = tuple(float(value) for value in state)
    wall_s = time.perf_counter() - start
    return EpisodeOutcome(success, steps, queries, wall_s, clock.seconds, tuple(latencies), final, reached)


def work(
    connection: Connection,
    simulator: Simulator,
    protocol: Protocol,
    views: tuple[str, ...],
    expert: bool,
    privileged: tuple[str, ...],
    gpu: int | None,
    log: str,
) -> None:
    """A worker process: sends Ready, then answers each RolloutJob with Queries and one EpisodeOutcome, until it is sent
    None. privileged: names of what the policy is told of the simulator. gpu: EGL's number of the GPU to draw on; None:
    the driver's choice."""
    _redirect_output(log)
    if gpu is not None:
        render.use_gpu(gpu)
    try:
        env = make_env(simulator, protocol, views)
        numbers = client_view.numbers(protocol, simulator)
        connection.send(Ready(numbers.embodiment if numbers else env.embodiment))

        def infer_in_parent(observation: Observation, number: int) -> np.ndarray:
            connection.send(Query(observation, number))
            chunk = connection.recv()
            return numbers.actions(chunk) if numbers else chunk

        def infer_from_expert(observation: Observation, number: int) -> np.ndarray:
            action, _ = simulator.expert(env)
            return action[None]

        tellers = _tellers(privileged, simulator, env, protocol.seed) if privileged else None
        while (job := connection.recv()) is not None:
            infer = infer_from_expert if expert else infer_in_parent
            connection.send(roll_out(env, job, protocol, infer, tellers, numbers))
        env.close()
    except UserError as error:
        connection.send(Refusal(str(error)))
    except EOFError:
        return  # the parent is gone; nobody is left to report to


def _tellers(names: tuple[str, ...], simulator: Simulator, env: Env, seed: int) -> Tellers:
    from benchmarks.rollouts.privileged import Tellers

    return Tellers(names, simulator, env, seed)


def _redirect_output(log: str) -> None:
    """Sends this process's stdout and stderr, C libraries' included, to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable()
