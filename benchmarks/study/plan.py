"""The jobs that follow from a study. Nothing is run or written here.

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

from benchmarks.perturb import perturb
from benchmarks.perturb.perturb import Variant
from benchmarks.results import protocols
from benchmarks.study.config import Part, StudyConfig, known_names
from la4vla import config
from la4vla.config import TrainConfig
from la4vla.construct.ledger import digest
from la4vla.types import UserError

CASES, CEILING = "cases.jsonl", "ceiling.json"

HELD_OUT = "_held_out_scenes"
"""Follows the name of a folder of conversations: the one about scenes that no training sees."""

CEILING_EPISODES = 5  # demonstrations of each task that are told as text and played
SCENE_ROWS = 400  # questions about held-out scenes at most

Kind = Literal[
    "construct", "train", "evaluate", "perturb", "cases", "probe", "texts", "ceiling", "retention", "answers"
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
    """

    name: str
    kind: Kind
    of: str
    folder: Path
    command: tuple[str, ...]
    needs: tuple[StudyJob, ...]
    about: dict[str, Any] = field(compare=False)


def expand(study: StudyConfig, parts: Sequence[str] = ()) -> list[StudyJob]:
    """The jobs of these parts (none named: of all parts), in order, each once. What a job needs is in its `needs`."""
    known_names("--part", parts, study.parts)
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
    jobs += [told(study, name) for name in part.texts]
    jobs += [ceiling(study, name) for name in part.ceiling]
    for seed in part.seeds:
        for pretraining, cases in part.probe.items():
            jobs += [probed(study, pretraining, name, seed) for name in cases]
        for name in part.conditions:
            clean = evaluated(study, name, seed)
            jobs += [perturbed(study, clean, item) for item in perturb.parse(part.perturb)] or [clean]
            if study.scenes:
                jobs += [retained(study, name, seed), *answered(study, name, seed)]
    return jobs


def constructed(study: StudyConfig, name: str) -> StudyJob:
    path = study.construct[name]
    folder = _folder(path)
    command = (sys.executable, "-m", "la4vla.construct", path)
    return StudyJob(f"construct/{name}", "construct", digest(_overrides(path)), folder, command, (), {"data": name})


def told(study: StudyConfig, name: str) -> StudyJob:
    """Conversations about a data set, with the folders of what is held out beside them."""
    texts = study.texts[name]
    data, path = constructed(study, texts.data), study.construct[texts.data]
    changes = (f"texts.folder={name}", *texts.changes)
    command = (sys.executable, "-m", "la4vla.construct", "texts", path, *changes)
    about = {"texts": name, "data": texts.data}
    return StudyJob(f"texts/{name}", "texts", digest(data.of, changes), data.folder / name, command, (data,), about)


def ceiling(study: StudyConfig, name: str) -> StudyJob:
    """Demonstrations told as text and played again: the most that a model that writes can reach."""
    data = constructed(study, name)
    of = digest("ceiling", CEILING_EPISODES, data.of)
    folder = Path(study.out) / "ceiling" / f"{name}-{of[:6]}"
    command = (sys.executable, "-m", "benchmarks", "ceiling", study.construct[name])
    command += ("--episodes", str(CEILING_EPISODES), "--json", str(folder / CEILING))
    return StudyJob(f"ceiling/{name}", "ceiling", of, folder, command, (data,), {"data": name})


def retained(study: StudyConfig, condition: str, seed: int) -> StudyJob:
    """Questions about held-out scenes, before and after."""
    start = pretrained(study, study.conditions[condition].pretraining, seed)
    policy, scenes = finetuned(study, condition, seed), told(study, study.scenes)
    of = digest("retention", SCENE_ROWS, scenes.of, start.of, policy.of)
    folder = Path(study.out) / "retention" / f"{condition}-{seed}-{of[:6]}"
    command = (sys.executable, "-m", "benchmarks", "retention", f"{scenes.folder}{HELD_OUT}")
    command += (str(start.folder), str(policy.folder), "--out", str(folder), "--device", study.device)
    command += ("--rows", str(SCENE_ROWS))
    about = {"arm": condition, "seed": seed}
    needs = (start, policy, scenes)
    return StudyJob(f"retention/{condition}/{seed}", "retention", of, folder, command, needs, about)


def answered(study: StudyConfig, condition: str, seed: int) -> list[StudyJob]:
    """Held-out questions about motion; of a policy with actions, the same sub-tasks. None for a condition without."""
    name = study.conditions[condition].texts
    if not name:
        return []
    policy, texts = finetuned(study, condition, seed), told(study, name)
    of = digest("answers", texts.of, policy.of)
    folder = Path(study.out) / "answers" / f"{condition}-{seed}-{of[:6]}"
    command = (sys.executable, "-m", "benchmarks", "answers", str(policy.folder), f"{texts.folder}{HELD_OUT}")
    command += ("--out", str(folder), "--device", study.device)
    if not study.conditions[condition].acts:
        command += ("--clips", str(texts.folder.parent / "vla"))
    about, needs = {"arm": condition, "seed": seed}, (policy, texts)
    return [StudyJob(f"answers/{condition}/{seed}", "answers", of, folder, command, needs, about)]


def pretrained(study: StudyConfig, name: str, seed: int) -> StudyJob:
    training = study.pretrainings[name]
    seed = seed if training.seed is None else training.seed
    about = {"training": name, "seed": seed}
    return _trained(study, f"pretrain/{name}/{seed}", training.recipe, training.changes, seed, None, about)


def finetuned(study: StudyConfig, name: str, seed: int) -> StudyJob:
    condition = study.conditions[name]
    start = pretrained(study, condition.pretraining, seed) if condition.pretraining else None
    about = {"arm": name, "pretraining": condition.pretraining, "seed": seed}
    recipe = condition.recipe or study.finetune
    return _trained(study, f"finetune/{name}/{seed}", recipe, condition.changes, seed, start, about)


def evaluated(study: StudyConfig, condition: str, seed: int) -> StudyJob:
    """The clean evaluation of a condition, in the folder where the perturbed ones of the same policy look for it."""
    policy = finetuned(study, condition, seed)
    protocol = _protocol(study.protocol)
    folder = Path(study.out) / "evaluate" / f"{condition}-{seed}-{policy.of[:6]}"
    command = _evaluation(study, protocol, policy, folder / perturb.CLEAN.folder)
    of = digest(protocol.hash, policy.of)
    if acts := study.conditions[condition].acts:
        command, of = (*command, "--text", acts), digest(of, _overrides(acts))
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
    talks = {_folder(study.construct[texts.data]) / name: name for name, texts in study.texts.items()}
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
