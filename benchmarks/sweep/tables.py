"""A sweep's rates in the layout of the paper's Tables 4 and 6, with the published rows beside ours and marked as
theirs.

Our rows stand in a published table only if the protocol's groups and their numbers of tasks are the table's columns.
Any other protocol has a table of its own. Clean and perturbed rates never share a row. What was not measured is blank.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.report import environment
from benchmarks.results import results, stats
from benchmarks.results.results import Summary
from benchmarks.results.stats import Rate
from benchmarks.sweep.jobs import State, SweepCondition, SweepJob

PUBLISHED = Path(__file__).parents[1] / "data" / "published.json"
NOISE = "gaussian_noise"
NOT_OURS = "No row of ours: the clean evaluations of this sweep have other tasks and stand in a table of their own."
NAMES = ("tables.md", "tables.html", "tables.json")


@dataclass(frozen=True)
class Cell:
    """One row's rates in one column, in [0, 1].

    rates       one for each seed that has episodes in the column
    pooled      over all their episodes as if independent: its interval leaves out how much seeds differ
    """

    rates: tuple[Rate, ...]
    pooled: Rate

    @property
    def mean(self) -> float:
        """Mean over the seeds, each weighing the same."""
        return statistics.fmean(rate.value for rate in self.rates)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); NaN for a single one."""
        return statistics.stdev(rate.value for rate in self.rates) if len(self.rates) > 1 else math.nan

    @property
    def value(self) -> str:
        return f"{100 * self.mean:.1f}"

    @property
    def detail(self) -> str:
        """Interval and counts. With several seeds also their spread, and the interval only where all have as many
        episodes."""
        pool = self.pooled
        interval = f"[{100 * pool.low:.1f}, {100 * pool.high:.1f}]"
        if len(self.rates) == 1:
            return f"{interval}, {pool.successes}/{pool.n}"
        equal = len({rate.n for rate in self.rates}) == 1
        spread = f"sd {100 * self.deviation:.1f} of {len(self.rates)} seeds"
        return f"{spread}, pooled {interval + ', ' if equal else ''}{pool.successes}/{pool.n}"

    def numbers(self) -> dict[str, Any]:
        spread = None if math.isnan(self.deviation) else self.deviation
        pool = self.pooled
        both = {"successes": pool.successes, "n": pool.n, "low": pool.low, "high": pool.high}
        return {"mean": self.mean, "sd": spread, "seeds": len(self.rates), "pooled": both}


@dataclass(frozen=True)
class Seed:
    """One checkpoint under one variant.

    job         what was evaluated
    condition   its episodes
    state       why episodes are missing, or empty
    summary     the rates of the episodes
    """

    job: SweepJob
    condition: SweepCondition
    state: str
    summary: Summary

    def numbers(self) -> dict[str, Any]:
        rates = {group: rate.value if rate.n else None for group, rate in self.summary.groups.items()}
        job, condition = self.job, self.condition
        about = {
            "checkpoint": str(job.checkpoint),
            "policy": job.policy,
            "folder": str(job.folder),
            "state": self.state,
        }
        return about | {
            "episodes": len(condition.rows),
            "asked": condition.asked,
            "crashed": condition.crashed,
            "rates": rates,
        }


@dataclass(frozen=True)
class Line:
    """One row of ours: all seeds of a label under one setting and variant."""

    label: str
    setting: str
    variant: Variant
    seeds: tuple[Seed, ...]

    @property
    def tasks(self) -> dict[str, int]:
        """How many tasks each group of the protocol has."""
        return {group: len(tasks) for group, tasks in self.seeds[0].job.protocol.groups.items()}

    @property
    def circumstances(self) -> str:
        """`metaworld/mt50-v1, replan 4, fog:3=2.0`; clean and the protocol's own replan value are not named."""
        return self.setting + ("" if self.variant == CLEAN else f", {self.variant.identity}")

    @property
    def cells(self) -> dict[str, Cell | None]:
        return {group: _cell([seed.summary.groups[group] for seed in self.seeds]) for group in self.tasks}

    @property
    def average(self) -> Cell | None:
        """Mean of the groups; None where no seed has episodes in each of them."""
        whole = [seed.summary for seed in self.seeds if all(rate.n for rate in seed.summary.groups.values())]
        if not whole:
            return None
        pooled = stats.macro([stats.micro([summary.groups[group] for summary in whole]) for group in self.tasks])
        return Cell(tuple(summary.macro for summary in whole), pooled)

    @property
    def episodes(self) -> str:
        """`20 of 20`, and behind it everything that is wrong with them."""
        conditions = [seed.condition for seed in self.seeds]
        ended, asked = sum(len(one.rows) for one in conditions), sum(one.asked for one in conditions)
        crashed, foreign = sum(one.crashed for one in conditions), sum(one.foreign for one in conditions)
        parts = [f"{ended} of {asked}"]
        parts += [f"{crashed} crashed"] if crashed else []
        parts += [f"{foreign} rows of another policy, protocol or perturbation left out"] if foreign else []
        return "; ".join([*parts, *dict.fromkeys(seed.state for seed in self.seeds if seed.state)])

    @property
    def whole(self) -> bool:
        return not any(seed.condition.missing or seed.condition.foreign or seed.state for seed in self.seeds)

    def gain(self, lines: Iterable[Line], baseline: str) -> float | None:
        """Average minus the baseline's under the same setting and variant, in points; None unless both are whole."""
        same = [
            line
            for line in lines
            if (line.label, line.setting, line.variant) == (baseline, self.setting, self.variant) and line.whole
        ]
        if not same or not self.whole or not self.average or not same[0].average:
            return None
        return 100 * (self.average.mean - same[0].average.mean)

    def numbers(self) -> dict[str, Any]:
        job = self.seeds[0].job
        return {
            "model": self.label,
            "setting": self.setting,
            "protocol_hash": job.protocol.hash,
            "replan_every": job.protocol.replan_every,
            "perturbation": self.variant.identity,
            "episodes": self.episodes,
            "whole": self.whole,
            "cells": {group: cell and cell.numbers() for group, cell in self.cells.items()},
            "average": self.average and self.average.numbers(),
            "seeds": [seed.numbers() for seed in self.seeds],
        }


@dataclass(frozen=True)
class Table:
    """One table.

    name        unique among a sweep's tables
    title       its heading
    notes       sentences between heading and rows
    columns     groups of the protocol
    headings    what stands above the columns
    ours        our rows
    gains       of our rows, in points; None: unknown
    source      of the published rows; empty without any
    published   rows of the paper, percent
    """

    name: str
    title: str
    notes: tuple[str, ...]
    columns: tuple[str, ...]
    headings: tuple[str, ...]
    ours: tuple[Line, ...]
    gains: tuple[float | None, ...]
    source: str = ""
    published: tuple[Mapping[str, Any], ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether there is a mean: that of a single column would repeat it."""
        return len(self.columns) > 1

    @property
    def gained(self) -> bool:
        return bool(self.published) or any(gain is not None for gain in self.gains)

    def markdown(self) -> str:
        rows = [["whose", "model", "pretrain", *self.headings, "avg", "gain", "episodes"]]
        for line, gain in self.pairs:
            cells = [f"{cell.value} {cell.detail}" if cell else "" for cell in (*line.cells.values(), line.average)]
            rows.append(["ours", f"{line.label}, {line.circumstances}", "", *cells, _points(gain), line.episodes])
        for row in self.published:
            cells = map(str, [*row["rates"], row["average"]])
            rows.append(["published", row["model"], row["pretrain"], *cells, _points(row["gain"]), ""])
        shown = [True, True, bool(self.published), *[True] * len(self.columns), self.averaged, self.gained, True]
        rows.insert(1, ["---"] * len(shown))
        lines = ["| " + " | ".join(compress(row, shown)) + " |" for row in rows]
        source = f" ({self.source})" if self.source else ""
        return "\n".join([f"## {self.title}{source}", "", *self.notes, *[""] * bool(self.notes), *lines, ""])

    @property
    def pairs(self) -> list[tuple[Line, float | None]]:
        return list(zip(self.ours, self.gains, strict=True))

    def shown(self, line: Line) -> list[Cell | None]:
        """The cells of a row of ours."""
        return [*line.cells.values(), *[line.average] * self.averaged]

    def numbers(self) -> dict[str, Any]:
        ours = [line.numbers() | {"gain": gain} for line, gain in self.pairs]
        return {
            "name": self.name,
            "title": self.title,
            "notes": self.notes,
            "columns": self.columns,
            "ours": ours,
            "source": self.source,
            "published": self.published,
        }


def build_tables(jobs: Sequence[SweepJob], states: Mapping[SweepJob, State], baseline: str) -> list[Table]:
    """The tables of what the result folders hold now.

    Clean rates come first: for each suite the paper's Table 4, then the protocols with other tasks; a paper's table
    that has no row of ours comes after them. Then noise, ours and the paper's Table 6. Then the other perturbations.
    """
    published = json.loads(PUBLISHED.read_text())["tables"]
    lines = _lines(jobs, states)
    clean = [line for line in lines if line.variant == CLEAN]
    noisy = [line for line in lines if line.variant.name == NOISE]
    others = [line for line in lines if line not in clean and line not in noisy]
    papers = []
    for suite in dict.fromkeys(job.protocol.suite for job in jobs if job.protocol.suite in published):
        known = published[suite]
        ours = [line for line in clean if line.tasks == dict(zip(known["columns"], known["tasks"], strict=True))]
        clean = [line for line in clean if line not in ours]
        papers.append(_paper(suite, known, ours, baseline))
    return [
        *(table for table in papers if table.ours),
        *_own("clean", "", clean, baseline),
        *(table for table in papers if not table.ours),
        *_own("noise", "Gaussian noise, ours, simulated: ", noisy, baseline),
        _paper("noise", published["noise"], [], baseline),
        *_own("perturbed", "Other perturbations: ", others, baseline),
    ]


def write(tables: Sequence[Table], out: Path) -> None:
    """tables.md, tables.html and tables.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    text = (
        environment.environment()
        .get_template("sweep.html.j2")
        .render(title=out.resolve().name, date=time.strftime("%Y-%m-%d %H:%M"), tables=tables, points=_points)
    )
    whole = json.dumps({"version": 1, "tables": [table.numbers() for table in tables]}, indent=1)
    for name, content in zip(NAMES, ("\n".join(table.markdown() for table in tables), text, whole + "\n"), strict=True):
        (out / name).write_text(content)


def _lines(jobs: Sequence[SweepJob], states: Mapping[SweepJob, State]) -> list[Line]:
    settings: dict[tuple[str, str, Variant], list[Seed]] = {}
    for variant in dict.fromkeys(variant for job in jobs for variant in job.variants):
        for job in jobs:
            condition = SweepCondition.read(job, variant)
            seed = Seed(job, condition, states[job].text, results.summarise(condition.rows, job.protocol))
            settings.setdefault((job.label, job.setting, variant), []).append(seed)
    return [Line(*key, tuple(seeds)) for key, seeds in settings.items()]


def _paper(name: str, known: Mapping[str, Any], ours: Sequence[Line], baseline: str) -> Table:
    """A table of the paper with our rows of the same tasks."""
    notes = [known["note"]] if ours or name == "noise" else [known["note"], NOT_OURS]
    return Table(
        name=name,
        title=known["title"],
        notes=tuple(notes),
        columns=tuple(known["columns"]),
        headings=tuple(known["columns"]),
        ours=tuple(ours),
        gains=tuple(line.gain(ours, baseline) for line in ours),
        source=known["source"],
        published=tuple(known["rows"]),
    )


def _own(name: str, prefix: str, lines: Sequence[Line], baseline: str) -> list[Table]:
    """A table without published rows for every protocol among the lines."""
    tables = []
    for title in dict.fromkeys(line.seeds[0].job.title for line in lines):
        ours = [line for line in lines if line.seeds[0].job.title == title]
        counts = ours[0].tasks
        tables.append(
            Table(
                name=f"{name} {title}",
                title=f"{prefix}{title}",
                notes=(),
                columns=tuple(counts),
                headings=tuple(f"{group} ({count} task{'s' * (count > 1)})" for group, count in counts.items()),
                ours=tuple(ours),
                gains=tuple(line.gain(ours, baseline) for line in ours),
            )
        )
    return tables


def _cell(rates: Sequence[Rate]) -> Cell | None:
    measured = tuple(rate for rate in rates if rate.n)
    return Cell(measured, stats.micro(measured)) if measured else None


def _points(gain: float | None) -> str:
    return "" if gain is None else f"{gain:+.2f}"
