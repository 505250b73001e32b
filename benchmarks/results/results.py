"""A result folder: `run.json` says what ran, `episodes.jsonl` has one row an episode, appended as episodes finish.

A folder is of one protocol, policy and perturbation; rows of another are refused. A crash is a row with `success: null`
and an `error`: it is in no rate, it is reported on its own, and it is run again when the evaluation is resumed. Of
several rows of an episode the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import stats
from benchmarks.results.protocols import Protocol
from la4vla.files import locked, write_atomic
from la4vla.types import UserError

EPISODES, RUN = "episodes.jsonl", "run.json"
PERCENTILES = (50, 95, 99)
ANSWERS = ("subtasks", "plan", "actions", "completion")
"""Questions whose answers a policy that writes has written itself."""

INSTRUCTIONS = ("next", "next_system", "oracle")
"""Questions of a hierarchical policy."""

RENDERED_BY, ABSENT = "images were rendered by", "absent"


@dataclass(frozen=True)
class Row:
    """One episode.

    task            env name
    group           reporting group of the task
    episode         number of the initial state
    seed            of the flow noise
    success         None for a crash
    error           last words of a crash, else empty
    steps           env steps after the wait
    queries         chunks that the policy was asked for
    attempts        2 where the first one crashed
    protocol        its title
    protocol_hash   over all its values
    policy          sha256 of the weights, or the name of what acted instead
    perturbation    `clean`, or name, severity and parameter, `fog:3=2.0`
    step            optimizer steps of the checkpoint
    versions        package -> version
    gl              GL backend that rendered the images; with EGL's number of the GPU where there are several, `egl:1`
    wall_s          seconds of the whole episode
    seconds         the same split into reset, physics, render and policy (waiting for actions)
    latencies_ms    of every query
    final_state     raw state [S] at the end, by which two runs of an episode are compared
    texts           what the policy wrote, in order: {query, question, subtask, text, problem} each
    milestones      of sim.milestones.MILESTONES -> the step at which it was first reached
    inputs          how the policy saw the episode: Protocol.inputs; empty in rows that are older than these fields
    """

    task: str
    group: str
    episode: int
    seed: int
    success: bool | None
    error: str
    steps: int
    queries: int
    attempts: int
    protocol: str
    protocol_hash: str
    policy: str
    perturbation: str
    step: int
    versions: Mapping[str, str]
    gl: str
    wall_s: float
    seconds: Mapping[str, float]
    latencies_ms: Sequence[float]
    final_state: Sequence[float]
    texts: Sequence[Mapping[str, Any]] = field(default_factory=list)
    milestones: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, str | int] = field(default_factory=dict)


class Results:
    """The rows of one folder, on disk and in `rows`, keyed by (task, episode)."""

    def __init__(self, folder: Path, protocol_hash: str, policy: str, perturbation: str) -> None:
        """Opens the folder, or creates it. Raises UserError where it holds rows of another protocol, policy or
        perturbation."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / EPISODES
        self._read = self.path.stat().st_size if self.path.exists() else 0
        self.rows = {(row.task, row.episode): row for row in read_rows(folder)} if self.path.exists() else {}
        for row in self.rows.values():
            if (row.protocol_hash, row.policy, row.perturbation) != (protocol_hash, policy, perturbation):
                raise UserError(
                    f"{folder}: already holds episodes of protocol {row.protocol} ({row.protocol_hash}), policy "
                    f"{row.policy[:24]}, {row.perturbation}; give this evaluation another --out."
                )

    def missing(self, jobs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """The jobs, (task, episode), whose episode has no row yet or crashed."""
        return [job for job in jobs if job not in self.rows or self.rows[job].success is None]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the folder's lock while rows are appended, and first cuts the torn line that a killed writer left.

        Raises UserError where another process writes, or has written since this one read the rows.
        """
        taken = f"{self.path.parent}: another evaluation writes there; wait for it, or give this one another --out."
        with locked(self.path.parent / "lock", taken):
            if self.path.exists():
                with self.path.open("r+b") as file:
                    content = file.read()
                    if b"\n" in content[self._read :]:
                        raise UserError(taken)
                    file.truncate(content.rfind(b"\n") + 1)
            yield

    def append(self, row: Row) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        self.rows[(row.task, row.episode)] = row


def read_rows(folder: Path) -> list[Row]:
    """One row for each episode, the one that counts, in the order in which the episodes first finished.

    A last line without its newline is left out: it is still being written, or a kill tore it.
    Raises UserError for any other broken line.
    """
    rows: dict[tuple[str, int], Row] = {}
    written = (folder / EPISODES).read_text().rpartition("\n")[0]
    for number, line in enumerate(written.splitlines(), start=1):
        try:
            row = Row(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            raise UserError(
                f"{folder / EPISODES}:{number}: not an episode row of this version ({error}); remove that line, or "
                "evaluate again into a fresh folder."
            ) from error
        rows[(row.task, row.episode)] = row
    return list(rows.values())


def made_with(rows: Collection[Row]) -> dict[str, set[str]]:
    """What may differ between rows of one evaluation: RENDERED_BY -> its GL backends, and package -> its versions."""
    packages = dict.fromkeys(name for row in rows for name in row.versions)
    backends = {row.gl.partition(":")[0] for row in rows}
    return {RENDERED_BY: backends, **{name: {row.versions.get(name, ABSENT) for row in rows} for name in packages}}


def write_run(folder: Path, values: Mapping[str, Any]) -> None:
    write_atomic(folder / RUN, json.dumps(values, indent=1).encode() + b"\n")


def read_run(folder: Path) -> dict[str, Any]:
    """What `run.json` says. Raises UserError where it is missing."""
    if not (folder / RUN).is_file():
        raise UserError(f"{folder}: no {RUN} in it; give a folder that `la4vla eval metaworld --out` wrote.")
    return json.loads((folder / RUN).read_text())


@dataclass(frozen=True)
class Summary:
    """The rates of an evaluation.

    tasks           task -> rate, in the protocol's order
    groups          group -> rate, in the protocol's order
    macro           mean of the groups
    micro           over all episodes
    latency_ms      p50, p95 and p99 over all queries; empty without one
    errors          episodes that crashed twice
    texts           what was written and the share that was badly formed, as a sentence; empty for other policies
    """

    tasks: Mapping[str, stats.Rate]
    groups: Mapping[str, stats.Rate]
    macro: stats.Rate
    micro: stats.Rate
    latency_ms: Mapping[str, float]
    errors: Sequence[Row]
    texts: str = ""


def summarise(rows: Iterable[Row], protocol: Protocol) -> Summary:
    """The rates of these rows. A task without rows has n = 0."""
    rows = list(rows)
    counted = [row for row in rows if row.success is not None]
    tasks = {task: stats.rate([bool(r.success) for r in counted if r.task == task]) for task in protocol.tasks}
    groups = {group: stats.micro([tasks[task] for task in members]) for group, members in protocol.groups.items()}
    by_group = list(groups.values())
    errors = [row for row in rows if row.success is None]
    waits = [latency for row in counted for latency in row.latencies_ms]
    latency_ms = {f"p{q}": float(np.percentile(waits, q)) for q in PERCENTILES} if waits else {}
    return Summary(tasks, groups, stats.macro(by_group), stats.micro(by_group), latency_ms, errors, texts_of(counted))


def decision_seconds(rows: Iterable[Row]) -> list[float]:
    """Seconds of every query in which an action text was written, its plan and its retries included (the paper's Table
    3; FACTS 2.2). Waiting for the batches of other episodes counts: with one worker there is none."""
    return [
        row.latencies_ms[query] / 1000
        for row in rows
        for query in sorted({text["query"] for text in row.texts if text["question"] == "actions"})
    ]


def texts_of(rows: Collection[Row]) -> str:
    """How much was written in these episodes, how much of it was badly formed and asked again, and how long a decision
    took."""
    said = [text for row in rows for text in row.texts]
    answers = [text for text in said if text["question"] in ANSWERS]
    if not answers:
        return _instructions(said)
    bad = sum(bool(text["problem"]) for text in answers)
    seconds = decision_seconds(rows)
    held = sum("held still for a chunk" in text["text"] for text in said if text["question"] == "note")
    return (
        f"{len(answers)} answers, {bad} badly formed ({100 * bad / len(answers):.1f} %) and asked again; {held} times "
        f"none could be used and the hand was held still for a chunk{_spread(seconds)}{_measured(verdicts_of(rows))}"
    )


def _instructions(said: Sequence[Mapping[str, Any]]) -> str:
    """How many low-level instructions a policy was told, and how many could not be used; empty for other policies."""
    told = [text for text in said if text["question"] in INSTRUCTIONS]
    if not told:
        return ""
    bad = sum(bool(text["problem"]) for text in told)
    without = sum(text["text"].startswith("no instruction") for text in said if text["question"] == "note")
    different = len({text["text"] for text in told if not text["problem"]})
    return (
        f"{len(told)} low-level instructions, {different} different ones, {bad} badly formed "
        f"({100 * bad / len(told):.1f} %); {without} times there was none, and the last one or the task stood in"
    )


def verdicts_of(rows: Iterable[Row]) -> list[tuple[bool, bool]]:
    """(whether the verifier found the sub-task done, whether the simulator did) of every verdict that was measured."""
    return [
        (verdict["text"].startswith("done"), truth["text"] == "done")
        for row in rows
        for verdict, truth in pairwise(row.texts)
        if (verdict["question"], truth["question"]) == ("verdict", "truth")
    ]


def _measured(verdicts: Sequence[tuple[bool, bool]]) -> str:
    if not verdicts:
        return ""
    of_truth = {true: [said == true for said, really in verdicts if really is true] for true in (True, False)}
    return (
        f"; the verifier was right in {sum(of_truth[True])} of {len(of_truth[True])} sub-tasks that were done and in "
        f"{sum(of_truth[False])} of {len(of_truth[False])} that were not, by the simulator's expert"
    )


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    return (
        f"; {len(seconds)} decisions, seconds: median {middle:.2f}, mean {np.mean(seconds):.2f}, standard deviation "
        f"{np.std(seconds):.2f}, quartiles {low:.2f} - {high:.2f}, least {min(seconds):.2f}, most {max(seconds):.2f}"
    )


def summary_table(summary: Summary, protocol: Protocol) -> str:
    """The table that commands print: successes, n, rate and 95 % interval of every task, every group and both means."""
    width = max(len(task) for task in [*protocol.tasks, "macro (mean of groups)"]) + 2
    lines = [f"{'':{width}}successes     n     rate  [95 % interval]"]

    def line(name: str, rate: stats.Rate) -> str:
        return f"{name:{width}}{rate.successes:9d} {rate.n:5d}  {rate}"

    for group, members in protocol.groups.items():
        shown = [task for task in members if summary.tasks[task].n]
        lines += [line(f"  {task}", summary.tasks[task]) for task in shown]
        lines += [line(group, summary.groups[group])] if shown else []
    lines.append(line("macro (mean of groups)", summary.macro))
    lines.append(line("micro (all episodes)", summary.micro))
    if summary.latency_ms:
        waits = ", ".join(f"{name} {value:.1f} ms" for name, value in summary.latency_ms.items())
        lines.append(f"action latency, from query to actions: {waits}")
    if summary.texts:
        lines.append(f"written: {summary.texts}")
    for row in summary.errors:
        lines.append(f"crashed, in no rate: {row.task} episode {row.episode}: {row.error}")
    counts = [rate.n for rate in summary.tasks.values() if rate.n]
    if counts and min(counts) < stats.SMALL_N:
        lines.append(
            f"note: {min(counts)} episodes a task; below {stats.SMALL_N} a task's rate is a hint, not a result."
        )
    return "\n".join(lines)
