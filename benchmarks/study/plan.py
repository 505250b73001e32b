"""The YAML of a study and the jobs that follow from it. Nothing is run or written here.

A job is one command with one folder. Its digest covers everything that decides its result: the recipes' values, the
seed, the protocol's hash, and the digests of the jobs that it needs. So a changed recipe changes its own jobs and all
that build on them, and no other; comments and the number of processes change none.
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
class Pretraining:
    """A recipe that policies are pretrained with, and its changes."""

    recipe: str = MISSING
    changes: list[str] = field(default_factory=list)  # key=value


@dataclass
class StudyCondition:
    """What the tables compare: a finetuning from a pretrained policy, or from none. Rows name it as `arm`."""

    pretraining: str = ""  # a name of `pretrainings`; empty: random weights
    changes: list[str] = field(default_factory=list)  # key=value changes of the finetuning
    against: list[str] = field(default_factory=list)  # conditions that the tables compare it with


@dataclass
class Cases:
    """Probe cases drawn from a data set's clips with images."""

    data: str = MISSING  # a name of `construct`
    count: int = 100  # cases (FACTS 1.2)


@dataclass
class Part:
    """Jobs that are run together: every condition or pretraining with every seed."""

    construct: list[str] = field(default_factory=list)  # data sets to write
    conditions: list[str] = field(default_factory=list)  # to pretrain, finetune and evaluate
    perturb: list[str] = field(default_factory=list)  # NAME:SEVERITY, under which the conditions run as well
    probe: dict[str, list[str]] = field(default_factory=dict)  # pretraining -> names of `cases`
    seeds: list[int] = field(default_factory=list)


@dataclass
class StudyConfig:
    """The content of a study's YAML."""

    name: str = MISSING  # written into every row; rows of several studies share files
    out: str = MISSING  # folder of runs and results
    rows: str = MISSING  # folder of the rows
    protocol: str = MISSING  # of every evaluation
    finetune: str = MISSING  # recipe that every condition ends with
    processes: int = 2  # ranks of a training
    device: str = "cpu"  # cpu | cuda
    changes: list[str] = field(default_factory=list)  # key=value changes of every training
    minutes: dict[str, float] = field(default_factory=dict)  # kind of job -> minutes of one, where no row tells
    construct: dict[str, str] = field(default_factory=dict)  # data set -> config
    pretrainings: dict[str, Pretraining] = field(default_factory=dict)
    conditions: dict[str, StudyCondition] = field(default_factory=dict)
    cases: dict[str, Cases] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)  # run in the order of the file


@dataclass(frozen=True)
class StudyJob:
    """One command and the folder that it writes.

    name        says what it is, `evaluate/la/0`
    kind        names the file of its row
    of          digest of everything that decides its result
    folder      what the command writes
    command     with its arguments
    needs       jobs whose folders it reads
    about       what its row says beside the results
    """

    name: str
    kind: Kind
    of: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[StudyJob, ...]
    about: dict[str, Any] = field(compare=False)


def load(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study that a YAML file describes. Raises UserError for a name that does not exist."""
    study: StudyConfig = config.load(path, overrides, schema=StudyConfig)
    if study.device not in ("cpu", "cuda"):
        raise UserError(f"{path}: device `{study.device}` is neither cpu nor cuda.")
    for name, part in study.parts.items():
        where = f"{path}: parts.{name}"
        _known(f"{where}.construct", part.construct, study.construct)
        _known(f"{where}.conditions", part.conditions, study.conditions)
        _known(f"{where}.probe", part.probe, study.pretrainings)
        for cases in part.probe.values():
            _known(f"{where}.probe", cases, study.cases)
    for name, condition in study.conditions.items():
        _known(f"{path}: conditions.{name}.against", condition.against, study.conditions)
        _known(
            f"{path}: conditions.{name}.pretraining",
            [condition.pretraining] if condition.pretraining else [],
            study.pretrainings,
        )
    for name, cases in study.cases.items():
        _known(f"{path}: cases.{name}.data", [cases.data], study.construct)
    return study


def expand(study: StudyConfig, parts: Sequence[str] = ()) -> list[StudyJob]:
    """The jobs of these parts (none named: of all parts), in order, each once. What a job needs is in its `needs`."""
    _known("--part", parts, study.parts)
    jobs: dict[str, StudyJob] = {}
    for name in parts or study.parts:
        for job in _of_part(study, study.parts[name]):
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def everything(jobs: Sequence[StudyJob]) -> list[StudyJob]:
    """The jobs and all that they need, each once, what is needed first."""
    by_name: dict[str, StudyJob] = {}
    for job in jobs:
        by_name |= {item.name: item for item in everything(job.needs)}
        by_name[job.name] = job
    return list(by_name.values())


def _of_part(study: StudyConfig, part: Part) -> list[StudyJob]:
    jobs = [constructed(study, name) for name in part.construct]
    for seed in part.seeds:
        for pretraining, cases in part.probe.items():
            jobs += [probed(study, pretraining, name, seed) for name in cases]
        for name in part.conditions:
            clean = evaluated(study, name, seed)
            jobs += [perturbed(study, clean, item) for item in perturb.parse(part.perturb)] or [clean]
    return jobs


def constructed(study: StudyConfig, name: str) -> StudyJob:
    path = study.construct[name]
    folder = _folder(path)
    command = (sys.executable, "-m", "la4vla.construct", path)
    return StudyJob(f"construct/{name}", "construct", digest(_overrides(path)), folder, command, (), {"data": name})


def pretrained(study: StudyConfig, name: str, seed: int) -> StudyJob:
    training = study.pretrainings[name]
    about = {"training": name, "seed": seed}
    return _trained(study, f"pretrain/{name}/{seed}", training.recipe, training.changes, seed, None, about)


def finetuned(study: StudyConfig, name: str, seed: int) -> StudyJob:
    condition = study.conditions[name]
    start = pretrained(study, condition.pretraining, seed) if condition.pretraining else None
    about = {"arm": name, "pretraining": condition.pretraining, "seed": seed}
    return _trained(study, f"finetune/{name}/{seed}", study.finetune, condition.changes, seed, start, about)


def evaluated(study: StudyConfig, condition: str, seed: int) -> StudyJob:
    """The clean evaluation of a condition, in the folder where the perturbed ones of the same policy look for it."""
    policy = finetuned(study, condition, seed)
    protocol = _protocol(study.protocol)
    folder = Path(study.out) / "evaluate" / f"{condition}-{seed}-{policy.of[:6]}"
    command = _evaluation(study, protocol, policy, folder / perturb.CLEAN.folder)
    of = digest(protocol.hash, policy.of)
    about = {"arm": condition, "seed": seed, "perturbation": perturb.CLEAN.title}
    return StudyJob(
        f"evaluate/{condition}/{seed}", "evaluate", of, folder / perturb.CLEAN.folder, command, (policy,), about
    )


def perturbed(study: StudyConfig, clean: StudyJob, variant: Variant) -> StudyJob:
    protocol = _protocol(study.protocol)
    folder = clean.folder.parent
    command = (*_evaluation(study, protocol, clean.needs[0], folder), "--perturb", variant.title)
    about = {**clean.about, "perturbation": variant.title}
    name = f"{clean.name}/{variant.folder}"
    of = digest(clean.of, variant.identity)
    return StudyJob(name, "perturb", of, folder / variant.folder, command, (*clean.needs, clean), about)


def case_list(study: StudyConfig, name: str) -> StudyJob:
    cases = study.cases[name]
    data = constructed(study, cases.data)
    of = digest("cases", cases.count, data.of)
    folder = Path(study.out) / "cases" / f"{name}-{of[:6]}"
    command = (sys.executable, "-m", "la4vla.cli", "probe", "cases", str(data.folder / "vla"))
    command += ("--out", str(folder / CASES), "--count", str(cases.count))
    return StudyJob(f"cases/{name}", "cases", of, folder, command, (data,), {"cases": name})


def probed(study: StudyConfig, pretraining: str, cases: str, seed: int) -> StudyJob:
    policy, listed = pretrained(study, pretraining, seed), case_list(study, cases)
    of = digest(policy.of, listed.of)
    folder = Path(study.out) / "probe" / f"{pretraining}-{seed}-{cases}-{of[:6]}"
    command = (sys.executable, "-m", "la4vla.cli", "probe", str(policy.folder))
    command += ("--cases", str(listed.folder / CASES), "--out", str(folder))
    about = {"training": pretraining, "seed": seed, "cases": cases}
    return StudyJob(f"probe/{pretraining}/{cases}/{seed}", "probe", of, folder, command, (policy, listed), about)


def _trained(
    study: StudyConfig,
    name: str,
    recipe: str,
    own: Sequence[str],
    seed: int,
    start: StudyJob | None,
    about: dict[str, Any],
) -> StudyJob:
    changes = [*study.changes, *own]
    needs = [*_data_of(study, _recipe(recipe, tuple(changes))), *([start] if start else [])]
    of = digest(_overrides(recipe), changes, seed, [job.of for job in needs])
    folder = Path(study.out) / f"{name.replace('/', '-')}-{of[:6]}"
    settings = [*changes, f"run.seed={seed}", f"run.dir={folder}"]
    settings += [f"run.init_from={start.folder}"] if start else []
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(study.processes))
    command = (sys.executable, *(launcher if study.processes > 1 else ()), "-m", "la4vla.train", recipe, *settings)
    return StudyJob(name, "train", of, folder, command, tuple(needs), {**about, "recipe": recipe, "settings": settings})


def _data_of(study: StudyConfig, recipe: TrainConfig) -> list[StudyJob]:
    """The construct jobs whose folders a training reads. Raises UserError for a folder that no construct job writes."""
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


def _evaluation(study: StudyConfig, protocol: protocols.Protocol, policy: StudyJob, out: Path) -> tuple[str, ...]:
    command = (sys.executable, "-m", "benchmarks", protocol.suite, "--checkpoint", str(policy.folder))
    return (*command, "--protocol", study.protocol, "--out", str(out), "--device", study.device)


@cache
def _overrides(path: str) -> dict[str, Any]:
    """The values of a file. It and the three below read a file once, since many jobs share it; `reread` forgets."""
    return config.overrides(path)


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
    """Files are read again: jobs that are expanded from now on follow their content as it is now."""
    for cached in (_overrides, _recipe, _folder, _protocol):
        cached.cache_clear()


def _known(where: str, names: Sequence[str] | dict[str, Any], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: `{name}` is not one of {', '.join(known) or 'none at all'}.")
