"""One evaluation from request to table: policy, runner, rows on disk, videos, and what is printed.

Everything that decides a number is in the protocol, the perturbation and the checkpoint. A request adds only how much
of it to run now, on how many processes, and where to put it. A perturbed condition is always run beside the clean one,
on the same initial states and with the same flow noise.
"""

from __future__ import annotations

import copy
import importlib.metadata
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
from tqdm import tqdm

import la4vla
from benchmarks.perturb import wordings
from benchmarks.perturb.perturb import CLEAN, WORDINGS, Variant, check_delivered
from benchmarks.results import compare, results
from benchmarks.results.protocols import Protocol, select
from benchmarks.results.results import Results, Row
from benchmarks.rollouts.rollout import RolloutJob, check_served
from benchmarks.rollouts.runner import FinishedEpisode, Runner, Spent
from la4vla.device import usable_device
from la4vla.serve.load import load_served
from la4vla.serve.policy import PolicyLost, ServedPolicy
from la4vla.serve.policy_like import Served
from la4vla.sim.registry import Simulator
from la4vla.types import UserError

EXPERT = "scripted expert"


@dataclass(frozen=True)
class ServerAddress:
    """Where `la4vla serve` serves a policy.

    url     `ws://host:port`
    token   that the server asks for; empty: none
    """

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class EvaluationRequest:
    """What to run now. The scripted expert runs where there is neither a checkpoint nor a server.

    simulator    that the protocol is for
    protocol     how episodes are run and counted
    checkpoint   folder of the policy
    untrained    whether the checkpoint's architecture gets random weights
    out          result folder
    workers      simulator processes
    tasks        of the protocol; empty: all
    episodes     of each task, the first so many; None: all of the protocol
    videos       episodes of each task to record afterwards
    device       of the checkpoint's policy; empty: the best there is
    command      as it was typed, for run.json
    variants     perturbations to run beside the clean images. With any, every condition, the clean one included, has a
                 folder of its own below `out`; with none the clean one is in `out` itself
    server       that serves the policy
    text         settings of a checkpoint that writes; None for a policy with actions
    high         settings of who says a policy's low-level instructions; None for a policy that is told the task
    base         where the weights lie that the checkpoint's adapters belong to; empty: where they lay in training
    weights      of the checkpoint: one of la4vla.manifest.WHICH_WEIGHTS
    """

    simulator: Simulator
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
    variants: Sequence[Variant]
    server: ServerAddress | None = None
    text: Path | None = None
    high: Path | None = None
    base: str = ""
    weights: str = "raw"

    @property
    def source(self) -> str:
        """Where the actions come from."""
        return str(self.checkpoint or (self.server and self.server.url) or EXPERT)


@dataclass(frozen=True)
class EvaluationCondition:
    """One variant of a request, with what every one of its rows says.

    variant    what the images, the scene or the instruction go through
    folder     of its rows
    stored     the rows that are there
    identity   of the policy
    step       of the policy's checkpoint
    versions   package -> version, of what runs the episodes
    gl         backend that draws
    """

    variant: Variant
    folder: Path
    stored: Results
    identity: str
    step: int
    versions: dict[str, str]
    gl: str


def evaluate(request: EvaluationRequest) -> dict[Variant, results.Summary]:
    """Runs what is missing in `request.out`, prints and returns the tables, the clean one first.

    Raises UserError for bad input.
    """
    protocol, simulator = request.protocol, request.simulator
    check_served(protocol, simulator)
    if request.workers < 1 or request.videos < 0:
        raise UserError("--workers must be at least 1 and --videos at least 0.")
    planned = select(protocol, request.tasks, request.episodes)
    with open_policy(request) as policy:
        check_delivered(request.variants, sees=bool(policy and policy.views), reads=policy is not None)
        if any(variant.name in WORDINGS for variant in request.variants):
            wordings.check(simulator.prompts()[task] for task, _ in planned)
        views = tuple(protocol.views) if request.videos or (policy and policy.views) else ()
        if policy is not None:
            policy.check(simulator.embodiment, views)
            check_executed(policy, protocol)
        conditions = open_conditions(request, policy)
        told = policy.privileged if policy else ()
        try:
            with Runner(simulator, protocol, policy, views, request.workers, request.out / "logs", told) as runner:
                rows = [row for condition in conditions for row in condition.stored.rows.values()]
                runner.has_finished = any(row.success is not None for row in rows)
                summaries = {
                    condition.variant: run_condition(request, condition, planned, runner) for condition in conditions
                }
        except PolicyLost as error:
            cure = f"finished episodes are in {request.out}, and the same command runs the rest"
            raise UserError(f"{str(error).removesuffix('.')}; {cure}.") from error
    if request.variants:
        print(compare.against_clean({condition.variant: condition.stored.rows.values() for condition in conditions}))
    return summaries


def check_executed(policy: Served, protocol: Protocol) -> None:
    """Raises UserError where a policy counts on more of its actions being executed than the protocol executes."""
    if policy.counts_on > protocol.replan_every:
        raise UserError(
            f"the policy's chunks have {policy.counts_on} steps that must all be executed, and {protocol.title} "
            f"executes {protocol.replan_every}; set chunk: {protocol.replan_every} in the policy's settings."
        )


def open_policy(request: EvaluationRequest) -> AbstractContextManager[Served | None]:
    """The policy of a request for as long as the context lasts: on its device, or connected; None for the expert."""
    if request.server is None:
        return nullcontext(load_policy(request))
    try:
        from la4vla.serve.client import RemotePolicy
    except ModuleNotFoundError as error:
        raise UserError('--server needs msgpack and websockets: pip install "la4vla[serve]".') from error
    return RemotePolicy(request.server.url, request.server.token)


def open_conditions(request: EvaluationRequest, policy: Served | None) -> list[EvaluationCondition]:
    """The clean condition and one for each variant. Raises UserError where a folder holds another evaluation's rows."""
    if request.variants and (request.out / results.EPISODES).exists():
        raise UserError(
            f"{request.out}: is itself the folder of one evaluation; give --perturb another --out, or, if that one is "
            f"the clean condition, move its files to {request.out / CLEAN.folder}."
        )
    if not request.variants and (request.out / CLEAN.folder / results.EPISODES).exists():
        raise UserError(
            f"{request.out}: holds the conditions of a perturbed evaluation; --out {request.out / CLEAN.folder} "
            "goes on with its clean one, or give another --out."
        )
    identity, step = (policy.identity, policy.step) if policy else (EXPERT, 0)
    gl = request.simulator.prepare()
    versions = {name: importlib.metadata.version(name) for name in request.simulator.packages}
    versions |= {"la4vla": la4vla.__version__, "torch": torch.__version__, **(policy.versions if policy else {})}
    conditions = []
    for variant in dict.fromkeys([CLEAN, *request.variants]):
        folder = request.out / variant.folder if request.variants else request.out
        stored = Results(folder, request.protocol.hash, identity, variant.identity)
        warn_of_other_makers(stored, versions, gl)
        conditions.append(EvaluationCondition(variant, folder, stored, identity, step, versions, gl))
    return conditions


def warn_of_other_makers(stored: Results, versions: Mapping[str, str], gl: str) -> None:
    """Prints which packages or GL backend made the episodes in the folder and differ from those of the next ones."""
    here = {results.RENDERED_BY: gl, **versions}
    for name, there in results.made_with(stored.rows.values()).items():
        now = here.get(name, results.ABSENT)
        if there - {now}:
            so_far = f"{name} {' and '.join(sorted(there))} so far, {now} from now on"
            print(f"{stored.path}: {so_far}; another --out would keep them apart", file=sys.stderr)


def run_condition(
    request: EvaluationRequest, condition: EvaluationCondition, planned: Sequence[tuple[str, int]], runner: Runner
) -> results.Summary:
    """Runs the episodes that a condition lacks, prints its table and returns it. Where none is lacking, run.json is
    left alone, because it says how the episodes were made."""
    protocol, stored = request.protocol, condition.stored
    missing = stored.missing(planned)
    there = f", {len(planned) - len(missing)} already there" if len(missing) < len(planned) else ""
    print(
        f"{protocol.title} ({protocol.hash}), {condition.variant.identity}, replan_every {protocol.replan_every}, "
        f"{len(planned)} episodes{there}"
    )
    run = {
        "protocol": asdict(protocol),
        "title": protocol.title,
        "policy": condition.identity,
        "perturbation": asdict(condition.variant),
        "untrained": request.untrained,
        "weights": request.weights,
        "checkpoint": request.source,
        "step": condition.step,
        "command": request.command,
        "versions": condition.versions,
        "gl": condition.gl,
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "time": results.read_run(condition.folder)["time"] if stored.rows else "",
    }
    with stored.writing():
        if missing:
            results.write_run(condition.folder, run)
        spent = run_jobs(request, condition, missing, runner)
    if missing:
        sentence = spent.sentence(request.workers, len(missing))
        print(sentence)
        run["time"] = "; then ".join(part for part in (run["time"], sentence) if part)
        results.write_run(condition.folder, run)
    summary = results.summarise((stored.rows[job] for job in planned if job in stored.rows), protocol)
    print(results.summary_table(summary, protocol))
    print(f"rows: {stored.path}")
    return summary


def load_policy(request: EvaluationRequest) -> Served | None:
    """The policy of a request on its device, or None for the scripted expert. Raises UserError for a device that is not
    there."""
    if request.checkpoint is None:
        return None
    device = usable_device(request.device)
    if device == "cpu":
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores - request.workers))
    robot = request.simulator.embodiment.name
    if request.untrained:
        return ServedPolicy.untrained(request.checkpoint, request.protocol.seed, device, robot)
    return load_served(
        request.checkpoint, request.text, device, request.base, request.high, embodiment=robot, weights=request.weights
    )


def run_jobs(
    request: EvaluationRequest, condition: EvaluationCondition, missing: Sequence[tuple[str, int]], runner: Runner
) -> Spent:
    """Runs the episodes, one progress bar, and stores a row for each; then replays the chosen ones for their videos."""
    runner.spent = Spent()
    stored, title = condition.stored, f"{request.protocol.title} {condition.variant.title}"
    jobs = [RolloutJob(task, episode, variant=condition.variant) for task, episode in missing]
    with tqdm(total=len(jobs), desc=title, unit="episode", disable=not jobs) as bar:
        successes = 0
        for episodes, end in enumerate(runner.run(jobs), start=1):
            stored.append(make_row(end, request.protocol, condition))
            successes += bool(end.outcome and end.outcome.success)
            bar.set_postfix_str(f"{successes}/{episodes} successes", refresh=False)
            bar.update()
    spent = copy.deepcopy(runner.spent)
    videos = video_jobs(stored.rows.values(), condition.folder / "videos", request.videos, condition.variant)
    for end in tqdm(runner.run(videos), total=len(videos), desc="videos", unit="episode", disable=not videos):
        counted = stored.rows[(end.job.task, end.job.episode)].success
        if end.outcome is None:
            print(f"no video of {end.job.task} episode {end.job.episode}: {end.error}")
        elif end.outcome.success is not counted:  # other batches, other rounding: rare, but then it is another rollout
            Path(end.job.video).unlink()
            print(f"no video of {end.job.task} episode {end.job.episode}: its replay ended differently")
    return spent


def video_jobs(rows: Iterable[Row], folder: Path, per_task: int, variant: Variant) -> list[RolloutJob]:
    """Up to `per_task` episodes of each task to replay: successes and failures in turn, in the order of the episodes.

    Episodes are reproducible, so recording afterwards shows what was counted. Videos that exist are kept.
    """
    jobs = []
    ordered = sorted((row for row in rows if row.success is not None), key=lambda row: (row.task, row.episode))
    for task in dict.fromkeys(row.task for row in ordered):
        kinds = [[row for row in ordered if row.task == task and row.success is kind] for kind in (True, False)]
        turns = [row for pair in zip_longest(*kinds) for row in pair if row is not None]
        jobs += [(row, folder / video_name(row)) for row in turns[:per_task]]
    return [RolloutJob(row.task, row.episode, str(path), variant) for row, path in jobs if not path.exists()]


def video_name(row: Row) -> str:
    """`reach-v3_0004_success.mp4`"""
    return f"{row.task}_{row.episode:04d}_{'success' if row.success else 'failure'}.mp4"


def make_row(end: FinishedEpisode, protocol: Protocol, condition: EvaluationCondition) -> Row:
    """A finished or lost episode as a row."""
    outcome = end.outcome
    return Row(
        task=end.job.task,
        group=protocol.group_of(end.job.task),
        episode=end.job.episode,
        seed=protocol.seed,
        success=outcome.success if outcome else None,
        error=end.error,
        steps=outcome.steps if outcome else 0,
        queries=outcome.queries if outcome else 0,
        attempts=end.attempts,
        protocol=protocol.title,
        protocol_hash=protocol.hash,
        policy=condition.identity,
        perturbation=condition.variant.identity,
        step=condition.step,
        versions=condition.versions,
        gl=condition.gl if end.gpu is None else f"{condition.gl}:{end.gpu}",
        wall_s=round(outcome.wall_s, 4) if outcome else 0.0,
        seconds={name: round(value, 4) for name, value in outcome.seconds.items()} if outcome else {},
        latencies_ms=[round(1000 * value, 2) for value in outcome.latencies_s] if outcome else [],
        final_state=[round(value, 6) for value in outcome.final_state] if outcome else [],
        texts=[{"query": query, **text._asdict()} for query, text in end.said],
        milestones=outcome.milestones if outcome else {},
    )
