"""A job of a study, and the jobs that every study has: data, conversations, trainings. Nothing is run or written here.

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

from benchmarks.results import protocols
from benchmarks.study.config import StudyConfig
from la4vla import config
from la4vla.config import TrainConfig
from la4vla.construct.ledger import digest
from la4vla.types import UserError

Kind = Literal[
    "construct",
    "train",
    "evaluate",
    "perturb",
    "cases",
    "probe",
    "texts",
    "ceiling",
    "retention",
    "answers",
    "gpla",
    "words",
    "judges",
]


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
    files       that its command reads and that are written before: (path, text)
    """

    name: str
    kind: Kind
    of: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[StudyJob, ...]
    about: dict[str, Any] = field(compare=False)
    files: tuple[tuple[Path, str], ...] = ()


def everything(jobs: Sequence[StudyJob]) -> list[StudyJob]:
    """The jobs and all that they need, each once, what is needed first."""
    by_name: dict[str, StudyJob] = {}
    for job in jobs:
        by_name |= {item.name: item for item in everything(job.needs)}
        by_name[job.name] = job
    return list(by_name.values())


def constructed(study: StudyConfig, name: str) -> StudyJob:
    path = study.construct[name]
    folder = folder_of(path)
    command = (sys.executable, "-m", "la4vla.construct", path)
    return StudyJob(f"construct/{name}", "construct", digest(values_of(path)), folder, command, (), {"data": name})


def told(study: StudyConfig, name: str) -> StudyJob:
    """Conversations about a data set, with the folders of what is held out beside them."""
    texts = study.texts[name]
    data, path = constructed(study, texts.data), study.construct[texts.data]
    changes = (f"texts.folder={name}", *texts.changes)
    command = (sys.executable, "-m", "la4vla.construct", "texts", path, *changes)
    about = {"texts": name, "data": texts.data}
    return StudyJob(f"texts/{name}", "texts", digest(data.of, changes), data.folder / name, command, (data,), about)


def pretrained(study: StudyConfig, name: str, seed: int) -> StudyJob:
    training = study.pretrainings[name]
    seed = seed if training.seed is None else training.seed
    about = {"training": name, "seed": seed}
    return trained(study, f"pretrain/{name}/{seed}", training.recipe, training.changes, seed, None, about)


def trained(
    study: StudyConfig,
    name: str,
    recipe: str,
    own: Sequence[str],
    seed: int,
    start: StudyJob | None,
    about: dict[str, Any],
) -> StudyJob:
    changes = [*study.changes, *own]
    needs = [*data_of(study, recipe_of(recipe, tuple(changes))), *([start] if start else [])]
    of = digest(values_of(recipe), changes, seed, [job.of for job in needs])
    folder = Path(study.out) / f"{name.replace('/', '-')}-{of[:6]}"
    settings = [*changes, f"run.seed={seed}", f"run.dir={folder}"]
    settings += [f"run.init_from={start.folder}"] if start else []
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(study.processes))
    command = (sys.executable, *(launcher if study.processes > 1 else ()), "-m", "la4vla.train", recipe, *settings)
    return StudyJob(name, "train", of, folder, command, tuple(needs), {**about, "recipe": recipe, "settings": settings})


def data_of(study: StudyConfig, recipe: TrainConfig) -> list[StudyJob]:
    """The construct jobs whose folders a training reads. Raises UserError for a folder that no construct job writes."""
    used = {source for stage in recipe.stages.values() for source in stage.mixture}
    used |= {recipe.data.stats_source} - {""}
    folders = {folder_of(path): name for name, path in study.construct.items()}
    talks = {folder_of(study.construct[texts.data]) / name: name for name, texts in study.texts.items()}
    names, spoken = {}, {}
    for source in sorted(used):
        path = Path(recipe.data.sources[source].path)
        parent = path.parent
        if path in talks:
            spoken[talks[path]] = None
            continue
        if parent not in folders:
            raise UserError(f"data.sources.{source}.path is in {parent}, which no config of `construct` writes.")
        names[folders[parent]] = None
    return [*(constructed(study, name) for name in names), *(told(study, name) for name in spoken)]


def evaluation(study: StudyConfig, policy: StudyJob, out: Path) -> tuple[str, ...]:
    """The command that evaluates the policy of a job by the study's protocol."""
    suite = protocol_of(study.protocol).suite
    command = (sys.executable, "-m", "benchmarks", suite, "--checkpoint", str(policy.folder))
    return (*command, "--protocol", study.protocol, "--out", str(out), "--device", study.device)


@cache
def values_of(path: str) -> dict[str, Any]:
    """The values of a file. It and the three below read a file once, since many jobs share it; `reread` forgets."""
    return config.overrides(path)


@cache
def recipe_of(path: str, changes: tuple[str, ...]) -> TrainConfig:
    return config.load(path, changes)


@cache
def folder_of(path: str) -> Path:
    return Path(config.load(path).out_dir)


@cache
def protocol_of(title: str) -> protocols.Protocol:
    return protocols.load(title)


def reread() -> None:
    """Files are read again: jobs that are expanded from now on follow their content as it is now."""
    for cached in (values_of, recipe_of, folder_of, protocol_of):
        cached.cache_clear()
