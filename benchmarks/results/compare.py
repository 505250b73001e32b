"""Compares two evaluations episode by episode: how many initial states both solved, one alone, or neither.

Evaluations of different protocols (by hash) are refused. So are two that differ in policy and in perturbation, because
their difference could come from either: compare two policies under one perturbation, or one policy under two (clean
counts as one). Only episodes that ended in both are paired; crashes and episodes of one side only are counted and
reported. A pair shares its initial state, its flow noise and, under one perturbation, the draws of that.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.results import results, stats
from benchmarks.results.protocols import Protocol, from_dict
from benchmarks.results.results import Row
from benchmarks.results.stats import Pairs
from la4vla.types import UserError


@dataclass(frozen=True)
class Side:
    """One of the two evaluations.

    folder          its result folder
    policy          identity of the weights
    perturbation    `clean`, or name, severity and parameter
    alone           episodes that only this side has a row of
    crashed         episodes that ended in a crash on this side
    """

    folder: str
    policy: str
    perturbation: str
    alone: int
    crashed: int


@dataclass(frozen=True)
class Compared:
    """The result of a comparison; differences are B minus A.

    protocol    of both
    a           the reference
    b           what is compared with it
    total       outcomes over all tasks
    tasks       task -> its outcomes
    notes       what else differs, in sentences
    """

    protocol: Protocol
    a: Side
    b: Side
    total: Pairs
    tasks: Mapping[str, Pairs]
    notes: Sequence[str]

    def table(self) -> str:
        """What the command prints."""
        width = max(len("all tasks"), *(len(task) for task in self.tasks)) + 2
        lines = [
            f"{self.protocol.title} ({self.protocol.hash})",
            *(
                f"{name}: {side.folder}, {side.perturbation}, {side.policy[:24]}"
                for name, side in (("A", self.a), ("B", self.b))
            ),
            f"{'':{width}}{'n':>5}{'A':>8}{'B':>8}{'only A':>8}{'only B':>8}   B - A [95 %], points     p",
        ]
        for name, pairs in [*self.tasks.items(), ("all tasks", self.total)]:
            rates = f"{100 * pairs.rate_a:7.1f}%{100 * pairs.rate_b:7.1f}%"
            lines.append(
                f"{name:{width}}{pairs.n:5d}{rates}{pairs.only_a:8d}{pairs.only_b:8d}   {difference(pairs):24}"
                f" {pairs.p_value:.3g}"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> str:
        """The numbers of `table` as JSON; rates and differences in [0, 1]."""
        content = {
            "protocol": self.protocol.title,
            "protocol_hash": self.protocol.hash,
            "a": asdict(self.a),
            "b": asdict(self.b),
            "total": numbers(self.total),
            "tasks": {task: numbers(pairs) for task, pairs in self.tasks.items()},
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=1) + "\n"


def folders(a: Path, b: Path) -> Compared:
    """Pairs the episodes of two result folders. Raises UserError where they cannot be compared."""
    runs = [results.read_run(folder) for folder in (a, b)]
    rows_a, rows_b = (_outcomes(folder) for folder in (a, b))
    protocols = [from_dict(run["protocol"]) for run in runs]
    if protocols[0].hash != protocols[1].hash:
        changed = [key for key, value in vars(protocols[0]).items() if vars(protocols[1])[key] != value]
        raise UserError(
            f"{a} and {b}: different protocols, {protocols[0].title} and {protocols[1].title}, which differ in "
            f"{', '.join(changed)}; evaluate both with one --protocol."
        )
    first_a, first_b = next(iter(rows_a.values())), next(iter(rows_b.values()))
    if first_a.policy != first_b.policy and first_a.perturbation != first_b.perturbation:
        raise UserError(
            f"{a} and {b}: differ in policy and in perturbation ({first_a.perturbation}, {first_b.perturbation}), so a "
            "difference could come from either; compare two policies under one perturbation, or one policy under two."
        )
    paired = _pair(rows_a.values(), rows_b.values())
    if not paired:
        raise UserError(f"{a} and {b}: no episode ended in both; evaluate the same tasks and episodes.")
    sides = [
        Side(str(folder), row.policy, row.perturbation, len(mine.keys() - other.keys()), len(_crashed(mine.values())))
        for folder, row, mine, other in ((a, first_a, rows_a, rows_b), (b, first_b, rows_b, rows_a))
    ]
    tasks = list(dict.fromkeys(task for task in protocols[0].tasks if any(key[0] == task for key in paired)))
    return Compared(
        protocol=protocols[0],
        a=sides[0],
        b=sides[1],
        total=stats.pairs(paired.values()),
        tasks={task: stats.pairs(pair for key, pair in paired.items() if key[0] == task) for task in tasks},
        notes=_notes(sides, rows_a.values(), rows_b.values()),
    )


def against_clean(rows: Mapping[Variant, Iterable[Row]]) -> str:
    """The table of a policy under perturbations: each rate, and its paired difference from the clean one."""
    lines = [f"{'perturbation':20}{'n':>5}    rate   minus clean [95 %], points     p"]
    for variant, perturbed in rows.items():
        paired = _pair(rows[CLEAN], perturbed)
        if paired:
            pairs = stats.pairs(paired.values())
            change = f"{difference(pairs):24} {pairs.p_value:.3g}" if variant != CLEAN else ""
            lines.append(f"{variant.title:20}{pairs.n:5d}  {100 * pairs.rate_b:5.1f}%   {change}".rstrip())
    return "\n".join(lines)


def pair(a: Iterable[Row], b: Iterable[Row]) -> Pairs:
    """Outcomes of the episodes that ended in both."""
    return stats.pairs(_pair(a, b).values())


def difference(pairs: Pairs) -> str:
    """`-12.5 [-30.1,   5.2]`, in points."""
    low, high = pairs.interval
    return f"{100 * pairs.difference:+6.1f} [{100 * low:+6.1f}, {100 * high:+6.1f}]"


def numbers(pairs: Pairs) -> dict[str, Any]:
    """The counts and everything computed from them, JSON-able."""
    return {
        **asdict(pairs),
        "n": pairs.n,
        "rate_a": pairs.rate_a,
        "rate_b": pairs.rate_b,
        "difference": pairs.difference,
        "interval": list(pairs.interval),
        "p_value": pairs.p_value,
    }


def _outcomes(folder: Path) -> dict[tuple[str, int], Row]:
    begun = (folder / results.EPISODES).is_file()  # run.json is written first
    rows = {(row.task, row.episode): row for row in results.read_rows(folder)} if begun else {}
    if not rows:
        raise UserError(f"{folder}: holds no episode yet; evaluate into it first.")
    return rows


def _pair(a: Iterable[Row], b: Iterable[Row]) -> dict[tuple[str, int], tuple[bool, bool]]:
    """(task, episode) -> success in A and in B, of the episodes that ended in both."""
    ended = {(row.task, row.episode): row.success for row in a if row.success is not None}
    return {
        (row.task, row.episode): (ended[row.task, row.episode], row.success)
        for row in b
        if row.success is not None and (row.task, row.episode) in ended
    }


def _crashed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.success is None]


def _notes(sides: Sequence[Side], a: Collection[Row], b: Collection[Row]) -> list[str]:
    notes = []
    for name, side in zip("AB", sides, strict=True):
        notes += [f"{side.crashed} episodes crashed in {name} and are in no pair"] if side.crashed else []
        notes += [f"{side.alone} episodes are in {name} only and in no pair"] if side.alone else []
    made_a, made_b = results.made_with(a), results.made_with(b)
    for name in made_a | made_b:
        in_a, in_b = (made.get(name, {results.ABSENT}) for made in (made_a, made_b))
        if in_a != in_b or len(in_a) > 1:
            verb = "" if name == results.RENDERED_BY else " is"
            notes.append(f"{name}{verb} {' and '.join(sorted(in_a))} in A and {' and '.join(sorted(in_b))} in B")
    return notes
