"""One self-contained HTML page of training runs and evaluations: nothing is fetched when it is opened. The rates are
written beside it, as .json and .csv of the same name.

The given folders are searched at any depth: a folder that holds `episodes.jsonl` is an evaluation, one that holds
`metrics.jsonl` a training run. A *condition* is one policy, clean or under one perturbation. Conditions of one protocol
(one hash) share a table, different protocols never do. Every rate has its n and interval. Perturbed conditions stand in
a table of their own, each beside its policy's clean condition.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.report import curves, environment, robustness
from benchmarks.results import export, latency, protocols, results
from benchmarks.results.latency import DecisionTimes
from benchmarks.results.protocols import Protocol
from benchmarks.results.results import Row, Summary
from benchmarks.results.rubric import Rubric, TaskCredit
from la4vla.data.inspect import describe
from la4vla.data.shards import index
from la4vla.model.presets import preset
from la4vla.page.page import data_uri
from la4vla.types import UserError

VIDEO_BYTES = 16 * 2**20  # of all videos together; a larger page is slow to open and hard to mail
DATA_BYTES = 512 * 2**20  # larger shard folders are described by their index alone; reading one takes minutes
RUN_CONFIG = "config.yaml"  # what the trainer writes beside metrics.jsonl
VIDEO_NAME = re.compile(r"(?P<task>.+)_(?P<episode>\d{4})_(?P<outcome>success|failure)\.mp4")


@dataclass(frozen=True)
class Video:
    """A rollout, and what the policy wrote in it."""

    task: str
    episode: int
    success: bool
    uri: str
    texts: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ReportCondition:
    """One evaluation: a policy, clean or under one perturbation.

    name        its folder, as short as it is unique
    run         its run.json
    rows        its episodes
    summary     their rates
    videos      those that fit on the page
    """

    name: str
    run: dict[str, Any]
    rows: Sequence[Row]
    summary: Summary
    videos: Sequence[Video]

    @property
    def variant(self) -> Variant:
        return Variant(**self.run["perturbation"])

    @property
    def credit(self) -> dict[str, TaskCredit]:
        """Task -> partial credit by the usual rubric; empty for rows without milestones."""
        return Rubric.load().summarise(self.rows)

    @property
    def decisions(self) -> DecisionTimes | None:
        """Of a policy that writes; None for others, whose queries are in the summary's latency."""
        return latency.times(self.rows) if self.summary.texts else None

    @property
    def made(self) -> dict[str, str]:
        """What rendered the images, and the version of every package, as the rows say."""
        return {name: " and ".join(sorted(values)) for name, values in results.made_with(self.rows).items()}

    @property
    def label(self) -> str:
        return f"{self.name} (untrained)" if self.run["untrained"] and "untrained" not in self.name else self.name


@dataclass(frozen=True)
class Comparison:
    """The evaluations of one protocol.

    protocol        with all its values
    title           its name and version, or `custom`
    conditions      the clean ones
    perturbed       the others
    robustness      success by severity, from both
    """

    protocol: Protocol
    title: str
    conditions: Sequence[ReportCondition]
    perturbed: Sequence[ReportCondition]
    robustness: Sequence[robustness.Series]

    @property
    def paired(self) -> bool:
        """Whether all clean conditions cover the same initial states."""
        return len({frozenset((row.task, row.episode) for row in condition.rows) for condition in self.conditions}) == 1

    @property
    def every(self) -> list[ReportCondition]:
        return [*self.conditions, *self.perturbed]

    @property
    def small(self) -> bool:
        """Whether a task has too few episodes for a rate of its own."""
        return any(
            0 < rate.n < results.stats.SMALL_N
            for condition in self.conditions
            for rate in condition.summary.tasks.values()
        )

    @property
    def values(self) -> dict[str, Any]:
        """The protocol's numbers, without its task list."""
        return {key: value for key, value in asdict(self.protocol).items() if key not in ("groups", "name", "version")}


@dataclass(frozen=True)
class TrainingRun:
    """One training run.

    name        its folder
    facts       label -> text
    image       data URI of its curves
    config      resolved YAML; empty where there is none
    """

    name: str
    facts: dict[str, str]
    image: str
    config: str


@dataclass(frozen=True)
class ReportSource:
    """One shard folder that a run read.

    name        its path
    text        what it holds
    """

    name: str
    text: str


def write(folders: Sequence[Path], out: Path, curves_out: Path | None = None) -> Path:
    """Writes the page and its numbers, and returns the page's path.

    curves_out: a file that gets the curves of success by severity, alone.
    Raises UserError where the folders hold nothing to show.
    """
    if out.suffix != ".html":
        raise UserError(f"{out}: --out names the page; end it in .html (.json and .csv are written beside it).")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders of training runs or results.")
    runs = _find(folders, curves.METRICS)
    evaluations = _find(folders, results.EPISODES)
    if not runs and not evaluations:
        raise UserError(
            f"{folders[0]}: holds neither {results.EPISODES} nor {curves.METRICS}; train or evaluate first."
        )
    comparisons = compare(evaluations)
    if curves_out:
        robustness.write([series for comparison in comparisons for series in comparison.robustness], curves_out)
    made = environment.environment()
    made.filters["image"] = lambda series: data_uri("image/svg+xml", robustness.svg(series))
    text = made.get_template("report.html.j2").render(
        title=" + ".join(folder.resolve().name for folder in folders),
        date=time.strftime("%Y-%m-%d %H:%M"),
        comparisons=comparisons,
        trainings=[training(name, path) for name, path in runs],
        sources=sources([path for _, path in runs]),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    if evaluations:
        rates = [
            export.evaluation(condition.name, condition.run, condition.summary)
            for item in comparisons
            for condition in item.every
        ]
        out.with_suffix(".json").write_text(export.to_json(rates))
        out.with_suffix(".csv").write_text(export.to_csv(rates))
    return out


def compare(evaluations: Sequence[tuple[str, Path]]) -> list[Comparison]:
    """Evaluations by protocol, trained policies before untrained ones. Videos are embedded up to VIDEO_BYTES in all."""
    room = VIDEO_BYTES
    by_hash: dict[str, list[ReportCondition]] = {}
    for name, folder in evaluations:
        run, rows = results.read_run(folder), results.read_rows(folder)
        protocol = protocols.from_dict(run["protocol"])
        if {row.protocol_hash for row in rows} - {protocol.hash}:
            raise UserError(
                f"{folder}: run.json and the rows are of different protocols; evaluate into a fresh folder."
            )
        videos = []
        for path in sorted((folder / "videos").glob("*.mp4")):
            if (match := VIDEO_NAME.fullmatch(path.name)) and path.stat().st_size <= room:
                room -= path.stat().st_size
                uri = data_uri("video/mp4", path.read_bytes())
                task, episode = match["task"], int(match["episode"])
                texts = next((row.texts for row in rows if (row.task, row.episode) == (task, episode)), ())
                videos.append(Video(task, episode, match["outcome"] == "success", uri, texts))
        condition = ReportCondition(name, run, rows, results.summarise(rows, protocol), videos)
        by_hash.setdefault(protocol.hash, []).append(condition)
    return [comparison(sorted(conditions, key=_order)) for conditions in by_hash.values()]


def comparison(conditions: Sequence[ReportCondition]) -> Comparison:
    """What the report says of the conditions of one protocol."""
    clean = [condition for condition in conditions if condition.variant == CLEAN]
    perturbed = [condition for condition in conditions if condition.variant != CLEAN]
    series = robustness.series(
        [robustness.CurveCondition(a.name, a.run["policy"], a.variant, a.rows) for a in conditions]
    )
    run = conditions[0].run
    return Comparison(protocols.from_dict(run["protocol"]), run["title"], clean, perturbed, series)


def training(name: str, run: Path) -> TrainingRun:
    """What the report says of a training run, from the files in its folder."""
    measured = curves.read(run)
    config = (run / RUN_CONFIG).read_text() if (run / RUN_CONFIG).is_file() else ""
    export = {
        "final loss": measured.last("loss"),
        "final loss, la": measured.last("loss/la"),
        "final loss, vla": measured.last("loss/vla"),
        "samples a second": measured.median("samples_per_s"),
        "waiting for data, %": 100 * measured.median("data_wait_ratio"),
    }
    facts = {"stages": ", ".join(measured.stages), "steps": f"{measured.steps:,}"}
    facts |= {label: f"{value:.4g}" for label, value in export.items() if not math.isnan(value)}
    return TrainingRun(name, facts, data_uri("image/svg+xml", curves.svg(measured)), config)


def sources(runs: Sequence[Path]) -> list[ReportSource]:
    """The shard folders that the runs' configs name and that this machine still has, each once."""
    folders: dict[str, ReportSource] = {}
    for run in runs:
        if not (run / RUN_CONFIG).is_file():
            continue
        config: Any = OmegaConf.load(run / RUN_CONFIG)
        for source in config.data.sources.values():
            if source.path not in folders and (Path(source.path) / index.INDEX).is_file():
                folders[source.path] = ReportSource(source.path, _contents(source.path, config.model.preset))
    return list(folders.values())


def _contents(folder: str, model: str) -> str:
    content = index.read_index(folder, None)
    if sum(shard.size for shard in content.shards) > DATA_BYTES:
        return f"{content.clips:,} {content.holds}  {content.frames:,} frames  {content.samples:,} samples"
    return describe.describe(folder, preset(model).image_tokens, describe.estimated_tokens)


def _find(folders: Sequence[Path], name: str) -> list[tuple[str, Path]]:
    """(short name, folder) of every folder at any depth that holds a file of this name, sorted.

    The short name is the path below the given folder, or the given folder's own name. Where two folders would share a
    short name, both get their whole path.
    """
    below = {path: top for top in reversed(folders) for path in sorted(file.parent for file in top.rglob(name))}
    short = {path: path.resolve().name if path == top else str(path.relative_to(top)) for path, top in below.items()}
    times = Counter(short.values())
    ordered = sorted(below, key=lambda path: (folders.index(below[path]), path))
    return [(short[path] if times[short[path]] == 1 else str(path), path) for path in ordered]


def _order(condition: ReportCondition) -> tuple[bool, str]:
    return condition.run["untrained"], condition.name
