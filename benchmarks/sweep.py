"""Checkpoints x protocols x replan values as evaluations, run one after another, and the paper's table of their rates.

Each job is one `python -m benchmarks SUITE` of its own folder and its own process, so a failed one stops no other and
an interrupted one resumes. Perturbations are arms of a job, since each needs the clean one. A replan value that is not
the protocol's makes the protocol `custom` with another hash, which `compare` refuses beside the original.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from benchmarks import protocols, results
from benchmarks.perturb import CLEAN, parse
from la4vla import config
from la4vla.types import UserError

PUBLISHED = Path(__file__).parent / "data" / "published.json"


@dataclass
class SweepConfig:
    """What to evaluate, and where the results go."""

    out: str = MISSING
    checkpoints: dict[str, str] = field(default_factory=dict)  # name in the tables -> checkpoint or run folder
    protocols: list[str] = field(default_factory=list)
    perturbations: list[str] = field(default_factory=list)  # NAME:SEVERITIES; the clean arm always runs
    replan: list[int] = field(default_factory=list)  # empty: the protocol's own
    workers: int = 0  # simulator processes; 0: one a core
    episodes: int = 0  # initial states a task; 0: all of the protocol's


@dataclass(frozen=True)
class Job:
    """One evaluation. name: its row in the tables. folder: its --out."""

    name: str
    protocol: protocols.Protocol
    folder: Path
    command: list[str]
    perturbed: bool


def expand(wanted: SweepConfig) -> list[Job]:
    """The jobs, in order. Raises UserError for an empty sweep, an unknown protocol or perturbation."""
    if not wanted.checkpoints or not wanted.protocols:
        raise UserError("a sweep needs at least one of `checkpoints` and one of `protocols`; name them in its file.")
    parse(wanted.perturbations)
    jobs = []
    for name, checkpoint in wanted.checkpoints.items():
        for title in wanted.protocols:
            own = protocols.load(title).replan_every
            for replan in wanted.replan or [own]:
                changes = [f"replan_every={replan}"] if replan != own else []
                protocol = protocols.load(title, changes)
                folder = Path(wanted.out) / name / f"{title.replace('/', '_')}_replan{replan}"
                command = [protocol.suite, *changes, "--checkpoint", checkpoint, "--protocol", title]
                command += ["--out", str(folder), "--workers", str(wanted.workers)]
                command += ["--episodes", str(wanted.episodes)] if wanted.episodes else []
                command += [part for text in wanted.perturbations for part in ("--perturb", text)]
                label = f"{name}, {title}" + (f", replan {replan}" if changes else "")
                jobs.append(Job(label, protocol, folder, command, bool(wanted.perturbations)))
    return jobs


def run(path: Path, overrides: list[str]) -> int:
    """Runs the sweep that a YAML describes and writes its tables; 1 where a job failed, else 0."""
    wanted: SweepConfig = config.load(path, overrides, schema=SweepConfig)
    jobs, failed = expand(wanted), []
    for number, job in enumerate(jobs, start=1):
        print(f"job {number} of {len(jobs)}: {job.name}", flush=True)
        if subprocess.run([sys.executable, "-m", "benchmarks", *job.command]).returncode:
            failed.append(job)
    write(jobs, Path(wanted.out))
    for job in failed:
        print(f"failed: {job.name} ({job.folder})", file=sys.stderr)
    return 1 if failed else 0


def tables(jobs: list[Job]) -> dict[str, Any]:
    """By suite and `noise`: columns, the published rows [percent] and ours [text]; what was not evaluated is empty."""
    published = json.loads(PUBLISHED.read_text())
    drawn: dict[str, Any] = {}
    for suite in dict.fromkeys(job.protocol.suite for job in jobs):
        known, ours = published[suite], {}
        for job in (job for job in jobs if job.protocol.suite == suite):
            clean = job.folder / CLEAN.folder if job.perturbed else job.folder
            for folder in sorted(job.folder.iterdir()) if job.perturbed and job.folder.is_dir() else [clean]:
                if (folder / results.EPISODES).is_file():
                    ours[job.name if folder == clean else f"{job.name}, {folder.name}"] = _cells(job, folder, known)
        drawn[suite] = {**known, "ours": ours}
    drawn["noise"] = {**published["noise"], "ours": {}}  # other tasks, on a robot: nothing of ours belongs in its cells
    return drawn


def _cells(job: Job, folder: Path, known: dict[str, Any]) -> list[str]:
    """A cell a column, then the mean of the groups, which stays empty unless every column has episodes."""
    summary = results.summarise(results.read_rows(folder), job.protocol)
    rates = [summary.groups.get(column) for column in known["columns"]]
    whole = summary.macro if all(rate and rate.n for rate in rates) else None
    return [f"{rate}, n {rate.n}" if rate and rate.n else "" for rate in [*rates, whole]]


def write(jobs: list[Job], out: Path) -> None:
    """tables.json, tables.md and tables.html in `out`."""
    drawn, text, page = tables(jobs), [], ["<!doctype html><meta charset=utf-8><title>Sweep</title>"]
    out.mkdir(parents=True, exist_ok=True)
    for name, table in drawn.items():
        head = [f"{name} ({table['source']})", *table["columns"], "avg"]
        rows = [[title, *cells] for title, cells in table["ours"].items()]
        rows += [[f"{title} (published)", *map(str, cells)] for title, cells in table["rows"].items()]
        text += ["", *("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])]
        lines = ["<tr><td>" + "<td>".join(map(escape, row)) for row in [head, *rows]]
        page += ["<table border=1>", *lines, "</table>"]
    (out / "tables.json").write_text(json.dumps(drawn, indent=1) + "\n")
    (out / "tables.md").write_text("\n".join(text).lstrip() + "\n")
    (out / "tables.html").write_text("\n".join(page) + "\n")
    print(f"tables: {out / 'tables.md'}")
