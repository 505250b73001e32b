"""The content of a study's YAML, and the check that its names exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from la4vla import config
from la4vla.types import UserError


@dataclass
class Pretraining:
    """A recipe that policies are pretrained with, and its changes."""

    recipe: str = MISSING
    changes: list[str] = field(default_factory=list)  # key=value
    seed: int | None = None  # of the one that all seeds start from, as from a public model; none: each has its own


@dataclass
class StudyCondition:
    """What the tables compare: a finetuning from a pretrained policy, or from none. Rows name it as `arm`."""

    pretraining: str = ""  # a name of `pretrainings`; empty: random weights
    recipe: str = ""  # that it ends with; empty: the study's `finetune`
    acts: str = (
        ""  # YAML file of how it acts (schema text_policy), of a model that writes; empty: a policy with actions
    )
    texts: str = ""  # a name of `texts`: whose held-out action texts it is asked for; empty: none
    changes: list[str] = field(default_factory=list)  # key=value changes of the finetuning
    against: list[str] = field(default_factory=list)  # conditions that the tables compare it with


@dataclass
class Cases:
    """Probe cases drawn from a data set's clips with images."""

    data: str = MISSING  # a name of `construct`
    count: int = 100  # cases (FACTS 1.2)


@dataclass
class TextSet:
    """Conversations about a data set, in a folder of this name beside its clips."""

    data: str = MISSING  # a name of `construct`
    changes: list[str] = field(default_factory=list)  # key=value changes of its config


@dataclass
class Rounds:
    """Rounds of GPLA on a model that writes."""

    config: str = MISSING  # schema gpla; its recipes are not used, but for the folders below
    high: str = MISSING  # a name of `pretrainings`: the model that writes as it begins
    low: str = MISSING  # of those: the policy that acts on what is written
    ground: str = ""  # of those: the scorer; empty: the config's own
    changes: list[str] = field(default_factory=list)  # key=value


@dataclass
class Hierarchy:
    """What acts on words: a low-level policy, and who writes or says them. Rows name it as `arm`."""

    low: str = MISSING  # a name of `pretrainings`
    high: str = ""  # of those or of `rounds`: the model that writes; empty: see `told`
    told: str = ""  # without `high`: oracle (people's or the expert's sentences) | flat (the task alone)
    clips: str = ""  # a name of `construct`: held-out clips on which it is asked; empty: none
    learned: str = ""  # of those: clips that the models learned from
    scorer: str = ""  # a name of `pretrainings`: what scores words against motion, a column
    views: list[str] = field(default_factory=list)  # cameras of the model that writes
    acts: bool = False  # it is evaluated in the study's protocol as well
    against: list[str] = field(default_factory=list)  # arms that the tables compare it with


@dataclass
class JudgedClips:
    """Candidates of a construction, spoiled, and whether its judges see it."""

    data: str = MISSING  # a name of `construct`
    scorer: str = MISSING  # a name of `pretrainings`: the second judge


@dataclass
class Part:
    """Jobs that are run together: every condition or pretraining with every seed."""

    construct: list[str] = field(default_factory=list)  # data sets to write
    texts: list[str] = field(default_factory=list)  # conversations to write
    ceiling: list[str] = field(default_factory=list)  # data sets whose demonstrations are told as text and played
    conditions: list[str] = field(default_factory=list)  # to pretrain, finetune and evaluate
    perturb: list[str] = field(default_factory=list)  # NAME:SEVERITY, under which the conditions run as well
    probe: dict[str, list[str]] = field(default_factory=dict)  # pretraining -> names of `cases`
    hierarchies: list[str] = field(default_factory=list)  # to train, to ask and, where they act, to evaluate
    judges: list[str] = field(default_factory=list)  # judged clips
    seeds: list[int] = field(default_factory=list)


@dataclass
class StudyConfig:
    """The content of a study's YAML."""

    name: str = MISSING  # written into every row; rows of several studies share files
    out: str = MISSING  # folder of runs and results
    rows: str = MISSING  # folder of the rows
    protocol: str = MISSING  # of every evaluation
    finetune: str = ""  # recipe that conditions end with, where they name none
    scenes: str = ""  # a name of `texts`: whose held-out scenes every condition is asked about; empty: none
    processes: int = 2  # ranks of a training
    device: str = "cpu"  # cpu | cuda
    changes: list[str] = field(default_factory=list)  # key=value changes of every training
    minutes: dict[str, float] = field(default_factory=dict)  # kind of job -> minutes of one, where no row tells
    construct: dict[str, str] = field(default_factory=dict)  # data set -> config
    texts: dict[str, TextSet] = field(default_factory=dict)
    pretrainings: dict[str, Pretraining] = field(default_factory=dict)
    conditions: dict[str, StudyCondition] = field(default_factory=dict)
    cases: dict[str, Cases] = field(default_factory=dict)
    rounds: dict[str, Rounds] = field(default_factory=dict)
    hierarchies: dict[str, Hierarchy] = field(default_factory=dict)
    judges: dict[str, JudgedClips] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)  # run in the order of the file


def load(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study that a YAML file describes. Raises UserError for a name that does not exist."""
    study: StudyConfig = config.load(path, overrides, schema=StudyConfig)
    if study.device not in ("cpu", "cuda"):
        raise UserError(f"{path}: device `{study.device}` is neither cpu nor cuda.")
    for name, part in study.parts.items():
        where = f"{path}: parts.{name}"
        known_names(f"{where}.construct", part.construct, study.construct)
        known_names(f"{where}.texts", part.texts, study.texts)
        known_names(f"{where}.ceiling", part.ceiling, study.construct)
        known_names(f"{where}.conditions", part.conditions, study.conditions)
        known_names(f"{where}.probe", part.probe, study.pretrainings)
        known_names(f"{where}.hierarchies", part.hierarchies, study.hierarchies)
        known_names(f"{where}.judges", part.judges, study.judges)
        for cases in part.probe.values():
            known_names(f"{where}.probe", cases, study.cases)
    for name, condition in study.conditions.items():
        known_names(f"{path}: conditions.{name}.against", condition.against, study.conditions)
        known_names(
            f"{path}: conditions.{name}.pretraining",
            [condition.pretraining] if condition.pretraining else [],
            study.pretrainings,
        )
        known_names(f"{path}: conditions.{name}.texts", [condition.texts] if condition.texts else [], study.texts)
        if study.scenes and not condition.pretraining:
            raise UserError(f"{path}: conditions.{name} has no pretraining, so nothing of it can be kept; give it one.")
    _check_hierarchies(path, study)
    known_names(f"{path}: scenes", [study.scenes] if study.scenes else [], study.texts)
    for name, texts in study.texts.items():
        known_names(f"{path}: texts.{name}.data", [texts.data], study.construct)
    for name, cases in study.cases.items():
        known_names(f"{path}: cases.{name}.data", [cases.data], study.construct)
    return study


def _check_hierarchies(path: str | Path, study: StudyConfig) -> None:
    """Raises UserError for a name that does not exist, and an arm with no words or with two sources of them."""
    for name, rounds in study.rounds.items():
        used = [rounds.high, rounds.low, *([rounds.ground] if rounds.ground else [])]
        known_names(f"{path}: rounds.{name}", used, study.pretrainings)
    for name, arm in study.hierarchies.items():
        where = f"{path}: hierarchies.{name}"
        known_names(where, [arm.low, *([arm.scorer] if arm.scorer else [])], study.pretrainings)
        known_names(where, [arm.high] if arm.high else [], {**study.pretrainings, **study.rounds})
        known_names(where, [data for data in (arm.clips, arm.learned) if data], study.construct)
        known_names(f"{where}.against", arm.against, study.hierarchies)
        if bool(arm.high) == bool(arm.told) or arm.told not in ("", "oracle", "flat"):
            raise UserError(f"{where}: set `high`, the model that writes, or `told` to oracle or flat, not both.")
        if arm.high and not arm.views:
            raise UserError(f"{where}.views is empty; name the cameras that {arm.high} is shown.")
    for name, judged in study.judges.items():
        known_names(f"{path}: judges.{name}.data", [judged.data], study.construct)
        known_names(f"{path}: judges.{name}.scorer", [judged.scorer], study.pretrainings)


def known_names(where: str, names: Sequence[str] | dict[str, Any], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}: `{name}` is not one of {', '.join(known) or 'none at all'}.")
