"""What a sweep evaluates: checkpoints x protocols x replan values as jobs, and which episodes of each exist already.

Each job is one `la4vla eval SUITE` with a folder of its own, so a failed one stops no other and an interrupted one
resumes. A job runs clean and under every perturbation of the sweep. Each of these conditions has a folder of its own
below the job's, so perturbations may be added to a sweep that has run, or taken from it. A replan value other than the
protocol's makes the protocol `custom` with another hash, so `compare` refuses it beside the original.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from benchmarks.perturb.perturb import CLEAN, Variant, parse
from benchmarks.results import results
from benchmarks.results.protocols import Protocol, load, select
from benchmarks.results.results import Row
from la4vla import manifest
from la4vla.types import UserError

HERE, SLURM = "here", "slurm"


@dataclass
class SweepConfig:
    """What to evaluate, where it runs, and where the results go."""

    out: str = MISSING
    # label in the tables -> a checkpoint or run folder, or a list of them, one a training seed
    checkpoints: dict[str, Any] = field(default_factory=dict)
    baseline: str = ""  # the label that gains are computed against; empty: no gains
    protocols: list[str] = field(default_factory=list)
    perturbations: list[str] = field(default_factory=list)  # NAME:SEVERITIES; the clean condition always runs
    replan: list[int] = field(default_factory=list)  # empty: the protocol's own
    workers: int = 0  # simulator processes of a job; 0: one a core
    episodes: int = 0  # initial states a task; 0: all of the protocol's
    runner: str = HERE  # here: one job after another on this machine; slurm: a job array
    wait: bool = True  # slurm: wait for the last job; false: submit and return, the same command collects later
    slurm: dict[str, Any] = field(default_factory=dict)  # submitit's: timeout_min, gpus_per_node, slurm_partition ...


@dataclass(frozen=True, eq=False)
class SweepJob:
    """The evaluation of one checkpoint under one protocol, clean and perturbed.

    label       its row in the tables; the seeds of one row share it
    checkpoint  folder of the weights
    policy      sha256 of the weights
    title       of the protocol, before a replan value made it `custom`
    protocol    with the replan value
    wanted      (task, episode) that every condition runs
    variants    clean, then the perturbations
    folder      holds one result folder for each variant
    argv        the command, the same wherever it runs
    """

    label: str
    checkpoint: Path
    policy: str
    title: str
    protocol: Protocol
    wanted: tuple[tuple[str, int], ...]
    variants: tuple[Variant, ...]
    folder: Path
    argv: tuple[str, ...]

    @property
    def setting(self) -> str:
        """Tells the rows of one label apart: `metaworld/mt50-v1, replan 4`."""
        return self.title + (f", replan {self.protocol.replan_every}" if self.protocol.title != self.title else "")

    @property
    def name(self) -> str:
        return f"{self.label}, {self.setting}, {self.checkpoint}"

    def folder_of(self, variant: Variant) -> Path:
        """The result folder of a variant."""
        return self.folder / variant.folder

    @property
    def complete(self) -> bool:
        return all(not SweepCondition.read(self, variant).missing for variant in self.variants)


@dataclass(frozen=True)
class SweepCondition:
    """The episodes of one job under one variant that count.

    rows        wanted episodes with an outcome, of this protocol, policy and variant
    asked       number of wanted episodes
    crashed     number of wanted episodes that crashed
    foreign     number of rows in the folder that are of another protocol, policy or variant
    """

    rows: tuple[Row, ...]
    asked: int
    crashed: int
    foreign: int

    @property
    def missing(self) -> int:
        return self.asked - len(self.rows)

    @staticmethod
    def read(job: SweepJob, variant: Variant) -> SweepCondition:
        """What the result folder holds now. The folder need not exist."""
        folder = job.folder_of(variant)
        rows = results.read_rows(folder) if (folder / results.EPISODES).is_file() else []
        ident = (job.protocol.hash, job.policy, variant.identity)
        own = [row for row in rows if (row.protocol_hash, row.policy, row.perturbation) == ident]
        wanted = set(job.wanted)
        asked = [row for row in own if (row.task, row.episode) in wanted]
        ended = tuple(row for row in asked if row.success is not None)
        return SweepCondition(ended, len(job.wanted), len(asked) - len(ended), len(rows) - len(own))


@dataclass(frozen=True)
class State:
    """What became of a job.

    text        why episodes are missing; empty where nothing is known to be wrong
    failed      the sweep ends with exit status 1
    """

    text: str = ""
    failed: bool = False


def expand(sweep: SweepConfig) -> list[SweepJob]:
    """The jobs, in order. Raises UserError for an empty sweep, unknown names or values, and a job listed twice."""
    if not sweep.checkpoints or not sweep.protocols:
        raise UserError("a sweep needs at least one of `checkpoints` and one of `protocols`; name them in its file.")
    if sweep.runner not in (HERE, SLURM):
        raise UserError(f"runner is `{sweep.runner}`; use {HERE} or {SLURM}.")
    if sweep.baseline and sweep.baseline not in sweep.checkpoints:
        raise UserError(f"baseline `{sweep.baseline}` is no label; use one of {', '.join(sweep.checkpoints)}.")
    jobs = [
        _job(sweep, label, folder, title, replan)
        for label, listed in sweep.checkpoints.items()
        for folder in _folders(label, listed)
        for title in sweep.protocols
        for replan in sweep.replan or [load(title).replan_every]
    ]
    for place, job in enumerate(jobs):
        for other in jobs[:place]:
            same = (job.label, job.setting, job.policy) == (other.label, other.setting, other.policy)
            if same or job.folder == other.folder:  # copied weights are no second seed
                raise UserError(f"{job.name}: is in the sweep twice, {other.checkpoint} the first time; list it once.")
            one_run = job.checkpoint != other.checkpoint and run_of(job.checkpoint) == run_of(other.checkpoint)
            if job.label == other.label and one_run:
                raise UserError(
                    f"checkpoints.{job.label}: {other.checkpoint.name} and {job.checkpoint.name} are steps of one run, "
                    "and what one label lists are seeds, to be pooled; give each step a label of its own."
                )
    return jobs


def run_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint was written by; outside of a run, the checkpoint itself."""
    folder = checkpoint.resolve()
    is_step = folder.parent.name == "checkpoints" and folder.name.startswith("step_")
    return folder.parent.parent if is_step else folder


def _job(sweep: SweepConfig, label: str, given: str, title: str, replan: int) -> SweepJob:
    changes = [f"replan_every={replan}"] if replan != load(title).replan_every else []
    protocol = load(title, changes)
    checkpoint = manifest.resolve(given)
    folder = Path(sweep.out) / _name(label) / _name(str(checkpoint)) / f"{_name(title)}_replan{replan}"
    if (folder / results.EPISODES).exists():
        raise UserError(
            f"{folder}: clean rows belong into a folder of their own; move its files to {folder / CLEAN.folder}."
        )
    out = folder if sweep.perturbations else folder / CLEAN.folder
    argv = [sys.executable, "-m", "benchmarks", protocol.suite, *changes, "--checkpoint", str(checkpoint)]
    argv += ["--protocol", title, "--out", str(out), "--workers", str(sweep.workers)]
    argv += ["--episodes", str(sweep.episodes)] if sweep.episodes else []
    argv += [part for text in sweep.perturbations for part in ("--perturb", text)]
    return SweepJob(
        label=label,
        checkpoint=checkpoint,
        policy=manifest.read(checkpoint).weights_sha256,
        title=title,
        protocol=protocol,
        wanted=tuple(select(protocol, (), sweep.episodes or None)),
        variants=tuple(dict.fromkeys([CLEAN, *parse(sweep.perturbations)])),
        folder=folder,
        argv=tuple(argv),
    )


def _folders(label: str, listed: Any) -> list[str]:
    folders = [listed] if isinstance(listed, str) else listed
    if not isinstance(folders, list) or not folders or not all(isinstance(folder, str) for folder in folders):
        raise UserError(f"checkpoints.{label}: give a folder, or a list of folders, one a training seed.")
    return folders


def _name(text: str) -> str:
    """A path or a title as one folder name."""
    return text.strip("/").replace("/", "_")
