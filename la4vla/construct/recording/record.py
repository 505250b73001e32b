"""Recording: a simulator's scripted experts, in spawned workers, fill an episode store with successful demonstrations.

Exploration noise is added to the executed translation command only. The stored training action is the expert's own
answer to the state that the noise led to (DART, Laskey et al. 2017), so that the data shows how to come back. The
executed actions are stored as well; replaying them repeats the episode exactly.

The config alone decides which episodes are kept, timing and interruptions do not: they are the first `episodes`
successes from `first_episode` on. A failed attempt is remembered and not tried again. Initial states that evaluations
use (Simulator.held_out) are left out unless `record.held_out` asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from tqdm import tqdm

from la4vla.config import ConstructConfig, RecordConfig
from la4vla.construct.episodes import Episode, Script
from la4vla.construct.recording.simulators import simulator
from la4vla.construct.recording.store import (
    check_store,
    episode_path,
    failure_path,
    kept_episodes,
    list_failures,
    numbers_from,
    open_store,
    write_episode,
)
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.files import write_atomic
from la4vla.rng import RngUse, generator
from la4vla.types import Embodiment, UserError

if TYPE_CHECKING:
    from la4vla.sim.env import Env
    from la4vla.sim.expert import Decision

AFTER_SUCCESS = 5
"""Steps recorded after the first success, so that a clip's last chunk does not end at the very moment of success."""

ATTEMPTS = 4
"""Attempts per wanted episode after which a task gives up; the worst scripted expert succeeds in 7 of 10."""


@dataclass(frozen=True)
class RecordingJob:
    """One attempt. It is sent to a worker, so it holds plain values only.

    store           folder of the episodes
    task            name of the task
    number          initial state
    record          settings
    jpeg_quality    of the images
    """

    store: str
    task: str
    number: int
    record: RecordConfig
    jpeg_quality: int


def record(config: ConstructConfig) -> dict[str, int]:
    """Fills `read.path` with `record.episodes` successes of each of `record.tasks`; returns task -> failed attempts.

    Prints the number of kept and of failed attempts of each task. A renderer is needed only if an episode is missing,
    so that a complete store can be cut anew on a machine without GL. Raises UserError for an unknown task or view, for
    a store of other settings, without a renderer where one is needed, and if a task's expert fails too often.
    """
    from la4vla.sim.render import use_backend

    settings, store = config.record, Path(config.read.path)
    if not settings.tasks or settings.episodes < 1 or settings.processes < 1 or settings.frame_stride < 1:
        raise UserError(
            "`record` is incomplete; name record.tasks, and set episodes, processes and frame_stride to 1 or more."
        )
    sim = simulator(settings.simulator)
    for task in settings.tasks:
        if task not in sim.prompts():
            raise UserError(
                f"record.tasks: `{task}` is no task of {settings.simulator}; use names such as `{sim.scenes.figure}`."
            )
    identity = _identity(config, sim.embodiment)
    check_store(store, identity)
    if _missing(store, settings):
        open_store(store, {**identity, "gl_backend": use_backend()})
        with tqdm(desc="recording", unit="episode", total=len(settings.tasks) * settings.episodes) as bar:
            bar.update(sum(len(kept_episodes(store, task, settings)) for task in settings.tasks))
            _record_missing(config, store, bar)
    failed = {task: len(numbers_from(list_failures(store, task), settings)) for task in settings.tasks}
    for task in settings.tasks:
        kept = len(kept_episodes(store, task, settings))
        print(f"{task}: {kept} demonstrations kept, {failed[task]} failed attempts dropped")
    return failed


def roll_out(env: Env, job: RecordingJob) -> Episode | None:
    """One attempt of the scripted expert in `env`; None if it does not succeed within the steps it gets."""
    settings, sim = job.record, simulator(job.record.simulator)
    noise = generator(settings.seed, RngUse.RECORD, job.task, job.number)
    observation = env.reset(job.task, job.number)
    for _ in range(sim.wait_steps):
        env.step(np.array(sim.wait, np.float32))
    if sim.wait_steps:
        observation = env.observe()
    instruction, state = observation.instruction, observation.state
    states, actions, decisions, executed = [], [], [], []
    frames: dict[str, dict[int, bytes]] = {view: {} for view in observation.views}
    t, stop, succeeded = 0, sim.expert_steps, False
    while t < stop:
        if t % settings.frame_stride == 0:
            for view, image in (observation if t == 0 else env.observe()).views.items():
                frames[view][t] = simplejpeg.encode_jpeg(image, quality=job.jpeg_quality, colorspace="RGB")
        action, decision = sim.expert(env)
        sent = action.copy()
        sent[:3] += noise.normal(0.0, settings.action_noise, 3).astype(np.float32)
        sent = np.clip(sent, -1.0, 1.0)
        states.append(state)
        actions.append(action)
        if decision is not None:
            decisions.append(decision)
        executed.append(sent)
        result = env.step(sent)
        state = result.state
        t += 1
        if result.success and not succeeded:
            succeeded, stop = True, min(t + AFTER_SUCCESS, sim.expert_steps)
    if not succeeded:
        return None
    return Episode(
        key=f"{job.task}-{job.number:06d}",
        task=job.task,
        number=job.number,
        instruction=instruction,
        robot=Robot(env.embodiment, robot_frame(env.embodiment.name)),
        fps=env.embodiment.control_hz,
        state=np.stack(states),
        action=np.stack(actions),
        executed=np.stack(executed),
        script=_script(decisions) if decisions else None,
        views=tuple(frames),
        frame_stride=settings.frame_stride,
        frames=lambda view, numbers: {number: frames[view][number] for number in numbers},
    )


def _script(decisions: Sequence[Decision]) -> Script:
    return Script(
        np.array([item.phase for item in decisions], np.int32),
        np.stack([item.target for item in decisions]),
        np.stack([item.object for item in decisions]),
    )


def attempt(job: RecordingJob) -> bool:
    """Makes one attempt, in a worker process: writes the episode or marks the failure. Returns whether it succeeded."""
    settings, store = job.record, Path(job.store)
    episode = roll_out(worker_env(settings.simulator, tuple(settings.views), settings.image_size, settings.fast), job)
    if episode is None:
        write_atomic(failure_path(store, job.task, job.number), b"")
        return False
    write_episode(episode_path(store, job.task, job.number), episode)
    return True


@lru_cache(maxsize=1)
def worker_env(name: str, views: tuple[str, ...], image_size: int, fast: bool) -> Env:
    """The only env of a worker process, shared by its jobs."""
    sim = simulator(name)
    return sim.make_env(views or sim.views, image_size, sim.expert_steps + sim.wait_steps, fast)


def _record_missing(config: ConstructConfig, store: Path, bar: tqdm) -> None:
    """Runs rounds of attempts until every task is complete. A round has as many attempts as episodes are missing."""
    settings = config.record
    pool = ProcessPoolExecutor(settings.processes, mp_context=get_context("spawn"))
    try:
        while missing := _missing(store, settings):
            jobs = [
                RecordingJob(str(store), task, number, settings, config.jpeg_quality)
                for task, numbers in missing.items()
                for number in numbers
            ]
            for future in as_completed([pool.submit(attempt, job) for job in jobs]):
                bar.update(int(future.result()))
    finally:
        pool.shutdown(cancel_futures=True)


def _missing(store: Path, settings: RecordConfig) -> dict[str, list[int]]:
    """Task -> numbers of the initial states to try next. Raises UserError for a task whose expert fails too often."""
    missing, held_out = {}, simulator(settings.simulator).held_out
    for task in settings.tasks:
        kept, failed = kept_episodes(store, task, settings), numbers_from(list_failures(store, task), settings)
        wanted = settings.episodes - len(kept)
        if wanted <= 0:
            continue
        tried = {*kept, *failed}
        if len(tried) >= ATTEMPTS * settings.episodes:
            raise UserError(
                f"{task}: only {len(kept)} of {len(tried)} attempts succeeded; lower record.action_noise "
                "or take the task out of record.tasks."
            )
        allowed = (n for n in count(settings.first_episode) if settings.held_out or not held_out(n))
        missing[task] = list(islice((number for number in allowed if number not in tried), wanted))
    return missing


def _identity(config: ConstructConfig, embodiment: Embodiment) -> dict[str, object]:
    """The settings that all episodes of a store share, besides the GL backend.

    The number of episodes, the tasks and the number of processes may differ.
    """
    settings = asdict(config.record)
    for name in ("tasks", "episodes", "first_episode", "processes"):
        del settings[name]
    settings["views"] = list(config.record.views or simulator(config.record.simulator).views)
    return {**settings, "jpeg_quality": config.jpeg_quality, "embodiment": embodiment.to_dict()}
