"""Measures how much faster the runner evaluates than a loop over one env, and where its time goes.

    python -m benchmarks.speed.evaluation_throughput metaworld --checkpoint runs/quickstart/finetune \
        --protocol metaworld/quickstart-v1 --episodes 4
    python -m benchmarks.speed.evaluation_throughput libero --checkpoint DIR --protocol libero/heldout-v1 --workers 2

The same episodes run in three ways, which take turns:
    one core    a loop over one env and the policy in this process, one chunk at a time, on a single core
    one env     the same loop on all cores; a software renderer and torch spread over them by themselves
    parallel    the runner of every evaluation, with --workers simulator processes and batches
Processes are started and weights loaded before anything is timed; building scenes is timed in all three. Linux only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from benchmarks.results import protocols
from benchmarks.results.protocols import Protocol
from benchmarks.rollouts.rollout import EpisodeOutcome, RolloutJob, check_served, make_env, roll_out
from benchmarks.rollouts.runner import Runner, Spent
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import EpisodeKey, NoiseKey, PolicyLike
from la4vla.shell import exit_status
from la4vla.sim.env import Env
from la4vla.sim.registry import SIMULATORS, Simulator
from la4vla.types import Observation, UserError

Outcomes = dict[tuple[str, int], EpisodeOutcome]


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keeps all threads that this process has now, those of the renderer included, on these cores."""
    before = os.sched_getaffinity(0)
    _pin(cores)
    torch.set_num_threads(len(cores))
    yield
    _pin(before)


def sequential(env: Env, policy: PolicyLike, protocol: Protocol, jobs: Sequence[RolloutJob]) -> tuple[float, Outcomes]:
    """Seconds that all jobs took one after another, and their outcomes."""
    start, ended = time.perf_counter(), {}
    for job in jobs:

        def ask(observation: Observation, query: int, job: RolloutJob = job):  # noqa: ANN202
            return policy.infer([observation], [NoiseKey(protocol.seed, job.task, job.episode, query)])[0]

        policy.open(EpisodeKey(job.task, job.episode, protocol.seed))
        ended[job.task, job.episode] = roll_out(env, job, protocol, ask)
    return time.perf_counter() - start, ended


def parallel(runner: Runner, jobs: Sequence[RolloutJob], workers: int) -> tuple[float, Outcomes]:
    """Seconds that the runner took for all jobs, and their outcomes. Raises UserError where one crashed."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - workers))
    start, ended = time.perf_counter(), {}
    for end in runner.run(jobs):
        if end.outcome is None:
            raise UserError(f"{end.job.task} episode {end.job.episode} crashed: {end.error}")
        ended[end.job.task, end.job.episode] = end.outcome
    return time.perf_counter() - start, ended


def compare(
    simulator: Simulator,
    protocol: Protocol,
    policy: PolicyLike,
    views: tuple[str, ...],
    jobs: Sequence[RolloutJob],
    workers: int,
    rounds: int,
) -> str:
    """Times all three ways `rounds` times in turns. Returns the lines to print."""
    simulator.prepare()
    threads = torch.get_num_threads()
    everywhere = os.sched_getaffinity(0)
    loops = {"one core": {min(everywhere)}, "one env": everywhere}
    seconds: dict[str, list[float]] = {name: [] for name in (*loops, "parallel")}
    with (
        tempfile.TemporaryDirectory() as logs,
        closing(make_env(simulator, protocol, views)) as env,
        Runner(simulator, protocol, policy, views, workers, Path(logs)) as runner,
    ):
        policy.check(env.embodiment, views)
        sequential(env, policy, protocol, jobs[:1])
        parallel(runner, jobs[:workers], workers)
        runner.spent = Spent()
        for _ in range(rounds):
            for name, cores in loops.items():
                with on_cores(cores):
                    took, alone = sequential(env, policy, protocol, jobs)
                seconds[name].append(took)
            took, together = parallel(runner, jobs, workers)
            seconds["parallel"].append(took)
    torch.set_num_threads(threads)
    same = sum(alone[key].success == together[key].success for key in alone)
    rates = {name: 3600 * len(jobs) / statistics.median(took) for name, took in seconds.items()}
    split = {
        name: sum(one.seconds[name] for one in alone.values()) for name in ("reset", "physics", "render", "policy")
    }
    shares = ", ".join(f"{name} {100 * spent / seconds['one env'][-1]:.0f} %" for name, spent in split.items())
    return "\n".join(
        [
            f"{protocol.title}, {len(jobs)} episodes, {rounds} rounds, {len(everywhere)} cores",
            f"one core  {rates['one core']:8.1f} episodes/h",
            f"one env   {rates['one env']:8.1f} episodes/h  ({shares})",
            f"parallel  {rates['parallel']:8.1f} episodes/h  ({runner.spent.sentence(workers, rounds * len(jobs))})",
            f"parallel / one core {rates['parallel'] / rates['one core']:.2f}, "
            f"parallel / one env {rates['parallel'] / rates['one env']:.2f}",
            f"same success in {same} of {len(jobs)} episodes",
        ]
    )


def _pin(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.evaluation_throughput", allow_abbrev=False)
    parser.add_argument("simulator", choices=tuple(SIMULATORS))
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--protocol", required=True)
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--episodes", type=int, default=2, help="initial states of each task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", help="key=value changes of the protocol")
    options = parser.parse_intermixed_args(list(arguments))
    protocol = protocols.load(options.protocol, options.overrides)
    check_served(protocol, SIMULATORS[options.simulator])
    jobs = [RolloutJob(task, episode) for task, episode in protocols.select(protocol, options.tasks, options.episodes)]
    robot = SIMULATORS[options.simulator].embodiment.name
    policy = ServedPolicy.load(options.checkpoint, options.device, embodiment=robot)
    views = tuple(protocol.views) if policy.views else ()
    print(compare(SIMULATORS[options.simulator], protocol, policy, views, jobs, options.workers, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
