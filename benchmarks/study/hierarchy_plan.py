"""The jobs of hierarchical policies: rounds of GPLA, words on held-out clips, rollouts, judges of clips."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.perturb.perturb import CLEAN
from benchmarks.study.config import Hierarchy, Part, StudyConfig
from benchmarks.study.jobs import StudyJob, constructed, evaluation, pretrained, protocol_of, values_of
from la4vla.construct.ledger import digest

STEPS = 8  # actions of a chunk that are compared, and frames between two moments (FACTS 2.1: horizon 8)
MOST_TOKENS = 24  # of a sentence, as of the rounds' candidates
JUDGES = "judges.json"
HIGH = "high.yaml"


def of_part(study: StudyConfig, part: Part) -> list[StudyJob]:
    jobs = []
    for seed in part.seeds:
        for name in part.hierarchies:
            arm = study.hierarchies[name]
            jobs += [worded(study, name, seed)] if arm.clips else []
            jobs += [acted(study, name, seed)] if arm.acts else []
        jobs += [judged(study, name, seed) for name in part.judges]
    return jobs


def rounds(study: StudyConfig, name: str, seed: int) -> StudyJob:
    """Candidates and preferences from a model that writes."""
    asked = study.rounds[name]
    high, low = (pretrained(study, one, seed) for one in (asked.high, asked.low))
    ground = pretrained(study, asked.ground, seed) if asked.ground else None
    needs = (high, low, *([ground] if ground else []))
    of = digest("gpla", values_of(asked.config), list(asked.changes), seed, [job.of for job in needs])
    folder = Path(study.out) / f"gpla-{name}-{seed}-{of[:6]}"
    settings = [*asked.changes, f"dir={folder}", f"seed={seed}"]
    settings += [f"{place}.changes=[run.dir={job.folder}]" for place, job in (("high", high), ("low", low))]
    settings += [f"scorer={ground.folder}", "ground.config=''"] if ground else []
    command = (sys.executable, "-m", "la4vla.gpla", "rounds", asked.config, *settings)
    about = {"rounds": name, "seed": seed, "config": asked.config, "settings": settings}
    return StudyJob(f"gpla/{name}/{seed}", "gpla", of, folder, command, needs, about)


def worded(study: StudyConfig, name: str, seed: int) -> StudyJob:
    """What an arm says and does on held-out clips."""
    arm = study.hierarchies[name]
    needs = [*_models(study, arm, seed), constructed(study, arm.clips)]
    needs += [constructed(study, arm.learned)] if arm.learned else []
    scorer = pretrained(study, arm.scorer, seed) if arm.scorer else None
    needs += [scorer] if scorer else []
    of = digest("words", STEPS, MOST_TOKENS, arm.told, list(arm.views), seed, [job.of for job in needs])
    folder = Path(study.out) / "words" / f"{name}-{seed}-{of[:6]}"
    command = (sys.executable, "-m", "benchmarks", "words", str(needs[0].folder))
    command += (str(constructed(study, arm.clips).folder / "vla"), "--out", str(folder), "--device", study.device)
    command += ("--every", str(STEPS), "--steps", str(STEPS), "--seed", str(seed))
    command += ("--data", str(constructed(study, arm.learned).folder / "vla")) if arm.learned else ()
    command += ("--scorer", str(scorer.folder)) if scorer else ()
    high = Path(study.out) / "words" / f"{folder.name}-{HIGH}"
    command += ("--high", str(high)) if arm.high else (f"--{arm.told}",)
    files = ((high, _high(study, arm, seed)),) if arm.high else ()
    about = {"arm": name, "seed": seed}
    return StudyJob(f"words/{name}/{seed}", "words", of, folder, command, tuple(needs), about, files)


def acted(study: StudyConfig, name: str, seed: int) -> StudyJob:
    """The arm's success in the study's protocol."""
    arm = study.hierarchies[name]
    needs = _models(study, arm, seed)
    of = digest(protocol_of(study.protocol).hash, MOST_TOKENS, arm.told, list(arm.views), [job.of for job in needs])
    folder = Path(study.out) / "evaluate" / f"{name}-{seed}-{of[:6]}"
    command = evaluation(study, needs[0], folder)
    high = Path(study.out) / "evaluate" / f"{folder.name}-{HIGH}"
    files = () if arm.told == "flat" else ((high, _high(study, arm, seed)),)
    command += ("--high", str(high)) if files else ()
    about = {"arm": name, "seed": seed, "perturbation": CLEAN.title}
    return StudyJob(f"evaluate/{name}/{seed}", "evaluate", of, folder, command, tuple(needs), about, files)


def judged(study: StudyConfig, name: str, seed: int) -> StudyJob:
    """Spoiled clips that the judges catch."""
    asked = study.judges[name]
    data, scorer = constructed(study, asked.data), pretrained(study, asked.scorer, seed)
    of = digest("judges", data.of, scorer.of)
    folder = Path(study.out) / "judges" / f"{name}-{seed}-{of[:6]}"
    command = (sys.executable, "-m", "benchmarks", "judges", study.construct[asked.data])
    command += ("--json", str(folder / JUDGES), f"grounding.scorer={scorer.folder}")
    about = {"clips": name, "seed": seed}
    return StudyJob(f"judges/{name}/{seed}", "judges", of, folder, command, (data, scorer), about)


def _models(study: StudyConfig, arm: Hierarchy, seed: int) -> list[StudyJob]:
    """The low-level policy first, then the model that writes."""
    return [pretrained(study, arm.low, seed), *([_writer(study, arm.high, seed)] if arm.high else [])]


def _writer(study: StudyConfig, name: str, seed: int) -> StudyJob:
    return rounds(study, name, seed) if name in study.rounds else pretrained(study, name, seed)


def _high(study: StudyConfig, arm: Hierarchy, seed: int) -> str:
    """The file that `--high` takes. JSON is YAML."""
    settings: dict[str, Any] = {"schema": "hierarchical"}
    if not arm.high:
        return json.dumps({**settings, "instructor": "oracle"}) + "\n"
    folder = _writer(study, arm.high, seed).folder
    return (
        json.dumps({**settings, "high": str(folder), "views": list(arm.views), "next": {"max_tokens": MOST_TOKENS}})
        + "\n"
    )
