"""One self-contained HTML page of training runs and evaluations: nothing is fetched when it is opened. Beside it
lie the evaluations' rates as .json and .csv of the same name.

It walks the given folders: whatever holds `episodes.jsonl` is an evaluation, whatever holds `metrics.jsonl` a training
run. Evaluations of one protocol (one hash) share a table; different protocols never do. Every rate has its n and
interval. Arms under a perturbation stand apart from the clean ones, each against the clean arm of its own policy.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.report import curves, environment, robustness
from benchmarks.results import export, protocols, results
from benchmarks.results.protocols import Protocol
from benchmarks.results.results import Row, Summary
from la4vla.data.inspect import describe
from la4vla.data.shards import index
from la4vla.model.presets import preset
from la4vla.page.page import data_uri
from la4vla.types import UserError

VIDEO_BYTES = 16 * 2**20  # of all videos together; a page beyond that no longer opens or mails well
DATA_BYTES = 512 * 2**20  # shard folders beyond that are described by their index alone; reading them takes minutes
RUN_CONFIG = "config.yaml"  # what the trainer writes beside metrics.jsonl
VIDEO_NAME = re.compile(r"(?P<task>.+)_(?P<episode>\d{4})_(?P<outcome>success|failure)\.mp4")


@dataclass(frozen=True)
class Video:
    task: str
    episode: int
    success: bool
    uri: str


@dataclass(frozen=True)
class Arm:
    """One evaluation. name: its folder, as short as it is unique. run: its run.json."""

    name: str
    run: dict[str, Any]
    rows: Sequence[Row]
    summary: Summary
    videos: Sequence[Video]

    @property
    def variant(self) -> Variant:
        return Variant(**self.run["perturbation"])

    @property
    def made(self) -> dict[str, str]:
        """What drew the pictures and every version, as the rows have it."""
        return {name: " and ".join(sorted(there)) for name, there in results.made_with(self.rows).items()}

    @property
    def label(self) -> str:
        return f"{self.name} (untrained)" if self.run["untrained"] and "untrained" not in self.name else self.name


@dataclass(frozen=True)
class Comparison:
    """The evaluations of one protocol. arms: the clean ones. perturbed: the others. paired: all clean ones cover the
    same initial states."""

    protocol: Protocol
    title: str
    arms: Sequence[Arm]
    perturbed: Sequence[Arm]
    robustness: Sequence[robustness.Series]

    @property
    def paired(self) -> bool:
        return len({frozenset((row.task, row.episode) for row in arm.rows) for arm in self.arms}) == 1

    @property
    def every(self) -> list[Arm]:
        return [*self.arms, *self.perturbed]

    @property
    def small(self) -> bool:
        return any(0 < rate.n < results.stats.SMALL_N for arm in self.arms for rate in arm.summary.tasks.values())

    @property
    def values(self) -> dict[str, Any]:
        """The protocol's numbers, without its task list."""
        return {key: value for key, value in asdict(self.protocol).items() if key not in ("groups", "name", "version")}


@dataclass(frozen=True)
class Training:
    """One training run. facts: label -> text. config: resolved YAML, empty where there is none."""

    name: str
    facts: dict[str, str]
    picture: str
    config: str


@dataclass(frozen=True)
class Source:
    """One shard folder that a run read. text: what is in it."""

    name: str
    text: str


def write(folders: Sequence[Path], out: Path, curves_out: Path | None = None) -> Path:
    """Writes the page, its numbers, and returns the page's path; curves_out: a file for the curves of success by
    severity alone.

    Raises UserError where the folders hold nothing to show.
    """
    if out.suffix != ".html":
        raise UserError(f"{out}: --out names the page; end it in .html, its numbers go into .json and .csv beside it.")
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
    made.filters["picture"] = lambda series: data_uri("image/svg+xml", robustness.svg(series))
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
        rates = [export.evaluation(arm.name, arm.run, arm.summary) for item in comparisons for arm in item.every]
        out.with_suffix(".json").write_text(export.to_json(rates))
        out.with_suffix(".csv").write_text(export.to_csv(rates))
    return out


def compare(evaluations: Sequence[tuple[str, Path]]) -> list[Comparison]:
    """Evaluations by protocol, trained policies before untrained ones. Videos are embedded up to VIDEO_BYTES in all."""
    room = VIDEO_BYTES
    by_hash: dict[str, list[Arm]] = {}
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
                videos.append(Video(match["task"], int(match["episode"]), match["outcome"] == "success", uri))
        arm = Arm(name, run, rows, results.summarise(rows, protocol), videos)
        by_hash.setdefault(protocol.hash, []).append(arm)
    return [comparison(sorted(arms, key=_order)) for arms in by_hash.values()]


def comparison(arms: Sequence[Arm]) -> Comparison:
    """The arms of one protocol."""
    clean = [arm for arm in arms if arm.variant == CLEAN]
    perturbed = [arm for arm in arms if arm.variant != CLEAN]
    series = robustness.series([robustness.Arm(a.name, a.run["policy"], a.variant, a.rows) for a in arms])
    run = arms[0].run
    return Comparison(protocols.from_dict(run["protocol"]), run["title"], clean, perturbed, series)


def training(name: str, run: Path) -> Training:
    """What a training run's files say."""
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
    return Training(name, facts, data_uri("image/svg+xml", curves.svg(measured)), config)


def sources(runs: Sequence[Path]) -> list[Source]:
    """The shard folders that the runs' configs name, once each, where they still lie on this machine."""
    found: dict[str, Source] = {}
    for run in runs:
        if not (run / RUN_CONFIG).is_file():
            continue
        config: Any = OmegaConf.load(run / RUN_CONFIG)
        for source in config.data.sources.values():
            if source.path not in found and (Path(source.path) / index.INDEX).is_file():
                found[source.path] = Source(source.path, _contents(source.path, config.model.preset))
    return list(found.values())


def _contents(folder: str, model: str) -> str:
    content = index.read_index(folder)
    if sum(shard.size for shard in content.shards) > DATA_BYTES:
        return f"{content.clips:,} clips  {content.frames:,} frames  {content.samples:,} samples"
    return describe.describe(folder, preset(model).image_tokens, describe.estimated_tokens)


def _find(folders: Sequence[Path], name: str) -> list[tuple[str, Path]]:
    """(short name, folder) of every folder at any depth that holds the file, sorted; the name is the path below the
    given folder, or the given folder's own name; where two have the same, the given folder stands before it."""
    below = {path: top for top in reversed(folders) for path in sorted(file.parent for file in top.rglob(name))}
    short = {path: path.resolve().name if path == top else str(path.relative_to(top)) for path, top in below.items()}
    times = Counter(short.values())
    ordered = sorted(below, key=lambda path: (folders.index(below[path]), path))
    return [(short[path] if times[short[path]] == 1 else str(path), path) for path in ordered]


def _order(arm: Arm) -> tuple[bool, str]:
    return arm.run["untrained"], arm.name
