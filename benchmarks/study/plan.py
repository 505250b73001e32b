"""The jobs that follow from a study: which of them a part asks for. Nothing is run or written here (jobs.py)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.perturb import perturb
from benchmarks.perturb.perturb import Variant
from benchmarks.study import hierarchy_plan
from benchmarks.study.config import Part, StudyConfig, known_names
from benchmarks.study.jobs import StudyJob, constructed, evaluation, pretrained, protocol_of, told, trained, values_of
from la4vla.construct.ledger import digest

CASES, CEILING = "cases.jsonl", "ceiling.json"

HELD_OUT = "_held_out_scenes"
"""Follows the name of a folder of conversations: the one about scenes that no training sees."""

CEILING_EPISODES = 5  # demonstrations of each task that are told as text and played
SCENE_ROWS = 400  # questions about held-out scenes at most


def expand(study: StudyConfig, parts: Sequence[str] = ()) -> list[StudyJob]:
    """The jobs of these parts (none named: of all parts), in order, each once. What a job needs is in its `needs`."""
    known_names("--part", parts, study.parts)
    jobs: dict[str, StudyJob] = {}
    for name in parts or study.parts:
        for job in _of_part(study, study.parts[name]):
            jobs.setdefault(job.name, job)
    return list(jobs.values())


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
    return [*jobs, *hierarchy_plan.of_part(study, part)]


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


def finetuned(study: StudyConfig, name: str, seed: int) -> StudyJob:
    condition = study.conditions[name]
    start = pretrained(study, condition.pretraining, seed) if condition.pretraining else None
    about = {"arm": name, "pretraining": condition.pretraining, "seed": seed}
    recipe = condition.recipe or study.finetune
    return trained(study, f"finetune/{name}/{seed}", recipe, condition.changes, seed, start, about)


def evaluated(study: StudyConfig, condition: str, seed: int) -> StudyJob:
    """The clean evaluation of a condition, in the folder where the perturbed ones of the same policy look for it."""
    policy = finetuned(study, condition, seed)
    folder = Path(study.out) / "evaluate" / f"{condition}-{seed}-{policy.of[:6]}"
    command = evaluation(study, policy, folder / perturb.CLEAN.folder)
    of = digest(protocol_of(study.protocol).hash, policy.of)
    if acts := study.conditions[condition].acts:
        command, of = (*command, "--text", acts), digest(of, values_of(acts))
    about = {"arm": condition, "seed": seed, "perturbation": perturb.CLEAN.title}
    return StudyJob(
        f"evaluate/{condition}/{seed}", "evaluate", of, folder / perturb.CLEAN.folder, command, (policy,), about
    )


def perturbed(study: StudyConfig, clean: StudyJob, variant: Variant) -> StudyJob:
    folder = clean.folder.parent
    command = (*evaluation(study, clean.needs[0], folder), "--perturb", variant.title)
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
