"""One evaluation from request to table: policy, runner, rows on disk, videos, and what is printed.

Everything that decides a number is in the protocol and the checkpoint; a request adds only how much of it to run now,
on how many processes, and where to put it.
"""

from __future__ import annotations

import copy
import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from tqdm import tqdm

import la4vla
from benchmarks import results
from benchmarks.protocols import Protocol, select
from benchmarks.results import Results, Row
from benchmarks.rollout import Job, Suite
from benchmarks.runner import Finished, Runner, Spent
from la4vla.serve.policy import ServedPolicy
from la4vla.types import UserError

EXPERT = "scripted expert"


@dataclass(frozen=True)
class Request:
    """checkpoint: None for the scripted expert. episodes: None for all of the protocol. device: empty for the best."""

    suite: Suite
    protocol: Protocol
    checkpoint: Path | None
    untrained: bool
    out: Path
    workers: int
    tasks: Sequence[str]
    episodes: int | None
    videos: int
    device: str
    command: str


def evaluate(request: Request) -> results.Summary:
    """Runs what is missing in `request.out`, prints the table and returns it. Raises UserError for bad input."""
    protocol, suite = request.protocol, request.suite
    if protocol.suite != suite.name:
        raise UserError(f"protocol {protocol.title} is for `{protocol.suite}`, not for `{suite.name}`.")
    if request.workers < 1 or request.videos < 0:
        raise UserError("--workers must be at least 1 and --videos at least 0.")
    wanted = select(protocol, request.tasks, request.episodes)
    policy = load_policy(request)
    identity, step = (policy.identity, policy.step) if policy else (EXPERT, 0)
    stored = Results(request.out, protocol.hash, identity)
    gl = suite.prepare()
    versions = {name: importlib.metadata.version(name) for name in suite.packages}
    versions |= {"la4vla": la4vla.__version__, "torch": torch.__version__}
    missing = stored.missing(wanted)
    print(f"{protocol.title} ({protocol.hash}), replan_every {protocol.replan_every}, {len(wanted)} episodes", end="")
    print(f", {len(wanted) - len(missing)} already there" if len(missing) < len(wanted) else "")
    run = {
        "protocol": asdict(protocol),
        "title": protocol.title,
        "policy": identity,
        "untrained": request.untrained,
        "checkpoint": str(request.checkpoint or EXPERT),
        "step": step,
        "command": request.command,
        "versions": versions,
        "gl": gl,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "time": results.read_run(request.out)["time"] if stored.rows else "",
    }
    results.write_run(request.out, run)

    def row(end: Finished) -> Row:
        return make_row(end, protocol, identity, step, versions, gl)

    spent = run_jobs(request, policy, stored, [Job(task, episode) for task, episode in missing], row)
    if missing:
        sentence = spent.sentence(request.workers, len(missing))
        print(sentence)
        run["time"] = "; then ".join(part for part in (run["time"], sentence) if part)
        results.write_run(request.out, run)
    summary = results.summarise((stored.rows[job] for job in wanted if job in stored.rows), protocol)
    print(results.table(summary, protocol))
    print(f"rows: {stored.path}")
    return summary


def load_policy(request: Request) -> ServedPolicy | None:
    """The policy of a request on its device, or None for the scripted expert."""
    if request.checkpoint is None:
        return None
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores - request.workers))
    if request.untrained:
        return ServedPolicy.untrained(request.checkpoint, request.protocol.seed, device)
    return ServedPolicy.load(request.checkpoint, device)


def run_jobs(
    request: Request,
    policy: ServedPolicy | None,
    stored: Results,
    jobs: Sequence[Job],
    row: Callable[[Finished], Row],
) -> Spent:
    """Runs the jobs, one progress bar, and stores a row for each; then replays the chosen ones for their videos."""
    protocol = request.protocol
    seen = (protocol.view,) if request.videos or (policy and policy.views) else ()
    logs = request.out / "logs"
    episodes = 0
    with Runner(request.suite, protocol, policy, seen, request.workers, logs) as runner:
        with tqdm(total=len(jobs), desc=protocol.title, unit="episode", disable=not jobs) as bar:
            successes = 0
            for end in runner.run(jobs):
                stored.append(row(end))
                episodes += 1
                successes += bool(end.outcome and end.outcome.success)
                bar.set_postfix_str(f"{successes}/{episodes} successes", refresh=False)
                bar.update()
        spent = copy.deepcopy(runner.spent)
        videos = video_jobs(stored.rows.values(), request.out / "videos", request.videos)
        for end in tqdm(runner.run(videos), total=len(videos), desc="videos", unit="episode", disable=not videos):
            counted = stored.rows[(end.job.task, end.job.episode)].success
            if end.outcome is None:
                print(f"no video of {end.job.task} episode {end.job.episode}: {end.error}")
            elif (
                end.outcome.success is not counted
            ):  # other batches, other rounding: rare, but then it is another rollout
                Path(end.job.video).unlink()
                print(f"no video of {end.job.task} episode {end.job.episode}: its replay ended differently")
    return spent


def video_jobs(rows: Iterable[Row], folder: Path, per_task: int) -> list[Job]:
    """Up to `per_task` episodes of each task to replay: successes and failures in turn, in the order of the episodes.

    Episodes are reproducible, so recording afterwards shows what was counted. Videos that exist are kept.
    """
    jobs = []
    ordered = sorted((row for row in rows if row.success is not None), key=lambda row: (row.task, row.episode))
    for task in dict.fromkeys(row.task for row in ordered):
        kinds = [[row for row in ordered if row.task == task and row.success is kind] for kind in (True, False)]
        turns = [row for pair in zip_longest(*kinds) for row in pair if row is not None]
        jobs += [(row, folder / video_name(row)) for row in turns[:per_task]]
    return [Job(row.task, row.episode, str(path)) for row, path in jobs if not path.exists()]


def video_name(row: Row) -> str:
    """`reach-v3_0004_success.mp4`"""
    return f"{row.task}_{row.episode:04d}_{'success' if row.success else 'failure'}.mp4"


def make_row(end: Finished, protocol: Protocol, identity: str, step: int, versions: dict[str, str], gl: str) -> Row:
    """A finished or lost episode as a row."""
    outcome = end.outcome
    seconds = outcome.seconds if outcome else {}
    queries = outcome.queries if outcome else 0
    return Row(
        task=end.job.task,
        group=protocol.group_of(end.job.task),
        episode=end.job.episode,
        seed=protocol.seed,
        success=outcome.success if outcome else None,
        error=end.error,
        steps=outcome.steps if outcome else 0,
        queries=queries,
        attempts=end.attempts,
        protocol=protocol.title,
        protocol_hash=protocol.hash,
        policy=identity,
        step=step,
        versions=versions,
        gl=gl,
        wall_s=round(outcome.wall_s, 4) if outcome else 0.0,
        seconds={name: round(value, 4) for name, value in seconds.items()},
        latency_ms=round(1000 * seconds["policy"] / queries, 3) if queries else 0.0,
        final_state=[round(value, 6) for value in outcome.final_state] if outcome else [],
    )
