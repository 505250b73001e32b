"""What a study consists of: its YAML, and the jobs that follow from it. Pure: nothing is run or written here.

A job is one command with one folder. Its name says what it is, its digest what decides its result: what the recipes
say, the seed, the protocol's hash, and the digests of the jobs it needs. So a changed recipe makes new jobs of itself
and of all that builds on it, and nothing else; the number of processes changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from benchmarks.perturb import perturb
from benchmarks.perturb.perturb import Variant
from benchmarks.results import protocols
from la4vla import config
from la4vla.config import TrainConfig
from la4vla.construct.ledger import digest
from la4vla.types import UserError

CASES = "cases.jsonl"

Kind = Literal["construct", "train", "evaluate", "perturb", "cases", "probe"]


@dataclass
class Training:
    """A recipe and its changes; what policies are pretrained with."""

    recipe: str = MISSING
    changes: list[str] = field(default_factory=list)  # key=value


@dataclass
class Arm:
    """What is compared: a finetuning from a pretrained policy, or from none."""

    pretraining: str = ""  # a name of `pretrainings`; empty: random weights
    changes: list[str] = field(default_factory=list)  # key=value of the finetuning
    against: list[str] = field(default_factory=list)  # arms that the tables compare it with


@dataclass
class Cases:
    """Probe cases of a data set's clips with images."""

    data: str = MISSING  # a name of `construct`
    count: int = 100  # of them (FACTS 1.2)


@dataclass
class Part:
    """Jobs that are asked for together: every arm or pretraining with every seed."""

    hours: float = MISSING  # expected, on two cores
    construct: list[str] = field(default_factory=list)
    arms: list[str] = field(default_factory=list)  # trained, finetuned and evaluated
    perturb: list[str] = field(default_factory=list)  # NAME:SEVERITY; the arms under these, beside their clean ones
    probe: dict[str, list[str]] = field(default_factory=dict)  # pretraining -> cases
    seeds: list[int] = field(default_factory=list)


@dataclass
class StudyConfig:
    name: str = MISSING  # in every row; rows of several studies share files
    out: str = MISSING  # gets runs and results
    rows: str = MISSING  # folder of the rows
    protocol: str = MISSING
    finetune: str = MISSING  # recipe that every arm ends with
    processes: int = 2  # ranks of a training
    device: str = "cpu"  # cpu | cuda
    changes: list[str] = field(default_factory=list)  # key=value of every training
    minutes: dict[str, float] = field(default_factory=dict)  # expected of a job, by kind
    construct: dict[str, str] = field(default_factory=dict)  # data set -> config
    pretrainings: dict[str, Training] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)
    cases: dict[str, Cases] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)  # run in the order of the file


@dataclass(frozen=True)
class Job:
    """folder: what the command writes. needs: jobs whose folders it reads. about: what its row says beside results."""

    name: str
    kind: Kind
    of: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[Job, ...]
    about: dict[str, Any] = field(compare=False)


def load(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Raises UserError for names that do not exist."""
    study: StudyConfig = config.load(path, overrides, schema=StudyConfig)
    if study.device not in ("cpu", "cuda"):
        raise UserError(f"{path}: device `{study.device}` is neither cpu nor cuda.")
    for name, part in study.parts.items():
        where = f"{path}: parts.{name}"
        _known(f"{where}.construct", part.construct, study.construct)
        _known(f"{where}.arms", part.arms, study.arms)
        _known(f"{where}.probe", part.probe, study.pretrainings)
        for cases in part.probe.values():
            _known(f"{where}.probe", cases, study.cases)
    for name, arm in study.arms.items():
        _known(f"{path}: arms.{name}.against", arm.against, study.arms)
        _known(f"{path}: arms.{name}.pretraining", [arm.pretraining] if arm.pretraining else [], study.pretrainings)
    for name, cases in study.cases.items():
        _known(f"{path}: cases.{name}.data", [cases.data], study.construct)
    return study


def expand(study: StudyConfig, parts: Sequence[str] = ()) -> list[Job]:
    """The jobs that parts ask for (none named: all), in order, each once; what they need is in `needs`."""
    _known("--part", parts, study.parts)
    jobs: dict[str, Job] = {}
    for name in parts or study.parts:
        for job in _of_part(study, study.parts[name]):
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def everything(jobs: Sequence[Job]) -> list[Job]:
    """The jobs and all that they need, each once."""
    found: dict[str, Job] = {}
    for job in jobs:
        found |= {item.name: item for item in everything(job.needs)}
        found[job.name] = job
    return list(found.values())


def _of_part(study: StudyConfig, part: Part) -> list[Job]:
    jobs = [constructed(study, name) for name in part.construct]
    for seed in part.seeds:
        for pretraining, cases in part.probe.items():
            jobs += [probed(study, pretraining, name, seed) for name in cases]
        for name in part.arms:
            clean = evaluated(study, name, seed)
            jobs += [perturbed(study, clean, item) for item in perturb.parse(part.perturb)] or [clean]
    return jobs


def constructed(study: StudyConfig, name: str) -> Job:
    path = study.construct[name]
    folder = _folder(path)
    command = (sys.executable, "-m", "la4vla.construct", path)
    return Job(f"construct/{name}", "construct", digest(_said(path)), folder, command, (), {"data": name})


def pretrained(study: StudyConfig, name: str, seed: int) -> Job:
    training = study.pretrainings[name]
    about = {"training": name, "seed": seed}
    return _trained(study, f"pretrain/{name}/{seed}", training.recipe, training.changes, seed, None, about)


def finetuned(study: StudyConfig, name: str, seed: int) -> Job:
    arm = study.arms[name]
    start = pretrained(study, arm.pretraining, seed) if arm.pretraining else None
    about = {"arm": name, "pretraining": arm.pretraining, "seed": seed}
    return _trained(study, f"finetune/{name}/{seed}", study.finetune, arm.changes, seed, start, about)


def evaluated(study: StudyConfig, arm: str, seed: int) -> Job:
    """The clean arm, where a perturbed one of the same policy looks for it."""
    policy = finetuned(study, arm, seed)
    protocol = _protocol(study.protocol)
    folder = Path(study.out) / "evaluate" / f"{arm}-{seed}-{policy.of[:6]}"
    command = _evaluation(study, protocol, policy, folder / perturb.CLEAN.folder)
    of = digest(protocol.hash, policy.of)
    about = {"arm": arm, "seed": seed, "perturbation": perturb.CLEAN.title}
    return Job(f"evaluate/{arm}/{seed}", "evaluate", of, folder / perturb.CLEAN.folder, command, (policy,), about)


def perturbed(study: StudyConfig, clean: Job, variant: Variant) -> Job:
    protocol = _protocol(study.protocol)
    folder = clean.folder.parent
    command = (*_evaluation(study, protocol, clean.needs[0], folder), "--perturb", variant.title)
    about = {**clean.about, "perturbation": variant.title}
    name = f"{clean.name}/{variant.folder}"
    of = digest(clean.of, variant.identity)
    return Job(name, "perturb", of, folder / variant.folder, command, (*clean.needs, clean), about)


def case_list(study: StudyConfig, name: str) -> Job:
    wanted = study.cases[name]
    data = constructed(study, wanted.data)
    of = digest("cases", wanted.count, data.of)
    folder = Path(study.out) / "cases" / f"{name}-{of[:6]}"
    command = (sys.executable, "-m", "la4vla.cli", "probe", "cases", str(data.folder / "vla"))
    command += ("--out", str(folder / CASES), "--count", str(wanted.count))
    return Job(f"cases/{name}", "cases", of, folder, command, (data,), {"cases": name})


def probed(study: StudyConfig, pretraining: str, cases: str, seed: int) -> Job:
    policy, wanted = pretrained(study, pretraining, seed), case_list(study, cases)
    of = digest(policy.of, wanted.of)
    folder = Path(study.out) / "probe" / f"{pretraining}-{seed}-{cases}-{of[:6]}"
    command = (sys.executable, "-m", "la4vla.cli", "probe", str(policy.folder))
    command += ("--cases", str(wanted.folder / CASES), "--out", str(folder))
    about = {"training": pretraining, "seed": seed, "cases": cases}
    return Job(f"probe/{pretraining}/{cases}/{seed}", "probe", of, folder, command, (policy, wanted), about)


def _trained(
    study: StudyConfig, name: str, recipe: str, own: Sequence[str], seed: int, start: Job | None, about: dict[str, Any]
) -> Job:
    changes = [*study.changes, *own]
    needs = [*_data_of(study, _recipe(recipe, tuple(changes))), *([start] if start else [])]
    of = digest(_said(recipe), changes, seed, [job.of for job in needs])
    folder = Path(study.out) / f"{name.replace('/', '-')}-{of[:6]}"
    settings = [*changes, f"run.seed={seed}", f"run.dir={folder}"]
    settings += [f"run.init_from={start.folder}"] if start else []
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(study.processes))
    command = (sys.executable, *(launcher if study.processes > 1 else ()), "-m", "la4vla.train", recipe, *settings)
    return Job(name, "train", of, folder, command, tuple(needs), {**about, "recipe": recipe, "settings": settings})


def _data_of(study: StudyConfig, recipe: TrainConfig) -> list[Job]:
    """The construct jobs whose folders a training reads. Raises UserError for a folder that none of them writes."""
    used = {source for stage in recipe.stages.values() for source in stage.mixture}
    used |= {recipe.data.stats_source} - {""}
    folders = {_folder(path): name for name, path in study.construct.items()}
    names = {}
    for source in sorted(used):
        parent = Path(recipe.data.sources[source].path).parent
        if parent not in folders:
            raise UserError(f"data.sources.{source}.path is in {parent}, which no config of `construct` writes.")
        names[folders[parent]] = None
    return [constructed(study, name) for name in names]


def _evaluation(study: StudyConfig, protocol: protocols.Protocol, policy: Job, out: Path) -> tuple[str, ...]:
    command = (sys.executable, "-m", "benchmarks", protocol.suite, "--checkpoint", str(policy.folder))
    return (*command, "--protocol", study.protocol, "--out", str(out), "--device", study.device)


@cache
def _said(path: str) -> dict[str, Any]:
    """Of a file as it is when the process first asks, or first after `reread`; so are the three below. The same files
    serve many jobs."""
    return config.said(path)


@cache
def _recipe(path: str, changes: tuple[str, ...]) -> TrainConfig:
    return config.load(path, changes)


@cache
def _folder(path: str) -> Path:
    return Path(config.load(path).out_dir)


@cache
def _protocol(title: str) -> protocols.Protocol:
    return protocols.load(title)


def reread() -> None:
    """Jobs that are expanded from here on are of the files as they are now."""
    for remembered in (_said, _recipe, _folder, _protocol):
        remembered.cache_clear()


def _known(where: str, names: Sequence[str] | dict[str, Any], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: `{name}` is not one of {', '.join(known) or 'none at all'}.")
