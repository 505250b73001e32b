"""`la4vla eval words`: opens what is asked and what judges it, and measures (words.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hierarchy import words
from benchmarks.hierarchy.failures import read_scenes
from benchmarks.hierarchy.intervals import EpisodeMean
from benchmarks.hierarchy.moments import moments
from benchmarks.hierarchy.texts import open_metrics
from la4vla import manifest
from la4vla.config import HierarchicalConfig, load
from la4vla.data.shards.index import Index, read_index
from la4vla.device import usable_device
from la4vla.levels import levels_of
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import Served
from la4vla.types import Scorer, UserError


@dataclass(frozen=True)
class WordsRequest:
    """What is asked. The fields are the command's options (commands.py)."""

    low: str
    clips: Path
    out: Path
    high: Path | None = None
    oracle: bool = False
    flat: bool = False
    data: Path | None = None
    scenes: Path | None = None
    scorer: str = ""
    every: int = 8
    steps: int = 0
    rows: int = 0
    seed: int = 0
    wordnet: Path | None = None
    bert: Path | None = None
    bert_layers: int = 0
    device: str = ""
    base: str = ""

    @property
    def arm(self) -> str:
        return words.HIERARCHICAL if self.high else words.ORACLE if self.oracle else words.FLAT


def measure(request: WordsRequest) -> dict[str, Any]:
    """Writes words.json and words.jsonl into `out`, and returns what the first holds. Raises UserError for a folder
    without images, a policy of another robot and a checkpoint that is not what it should be."""
    if request.every < 1 or request.steps < 0:
        raise UserError(
            f"--every {request.every} --steps {request.steps}: give at least 1 frame, and no steps below 0."
        )
    device = usable_device(request.device)
    metrics = open_metrics(request.wordnet, request.bert, request.bert_layers, str(device))
    held_out = _clips(request.clips)
    policy: Served
    if request.high:
        policy = _hierarchical(request, str(device))
        arm = words.hierarchical(policy)
    else:
        policy = ServedPolicy.load(request.low, device, request.base, held_out.embodiment.name)
        levels = levels_of(manifest.read(manifest.resolve(Path(request.low))).config)
        arm = words.told_by_people(policy, levels, request.arm)
    policy.check(held_out.embodiment, tuple(held_out.views))
    by = words.judges(
        held_out,
        metrics,
        _clips(request.data) if request.data else None,
        read_scenes(request.scenes) if request.scenes else None,
        _scorer(request.scorer, str(device)),
    )
    views = policy.views or tuple(held_out.views)[:1]
    steps = min(request.steps or policy.horizon, policy.horizon)
    chosen = moments(held_out, views, steps, request.every, request.rows)
    answers = words.answer_all(arm, chosen, request.seed)
    robot = held_out.embodiment
    about = {
        "arm": request.arm,
        "low": request.low,
        "high": str(request.high or ""),
        "identity": policy.identity,
        "clips": str(request.clips),
        "views": list(views),
        "every": request.every,
        "seed": request.seed,
        "scorer": request.scorer,
        "units": f"1 is {robot.action.unit}; chunks of {steps} steps at {robot.control_hz:g} Hz",
    }
    return words.write(request.out, words.measured(chosen, answers, by, bool(request.high)), about, metrics)


def summary_table(numbers: Mapping[str, Any]) -> str:
    """For a terminal."""
    shown = [(name, EpisodeMean(**one)) for name, one in numbers["metrics"].items()]
    lines = [f"{name:24}{one.text(4)}" for name, one in shown]
    lines += [f"{column:24}empty; give {how}" for column, how in numbers["missing"].items()]
    return "\n".join([f"{numbers['arm']}: {numbers['rows']} moments of {numbers['episodes']} episodes", *lines])


def _clips(folder: Path) -> Index:
    index = read_index(folder)
    if index.holds != "clips":
        raise UserError(f"{folder}: holds {index.holds}; name a folder of clips.")
    return index


def _hierarchical(request: WordsRequest, device: str) -> Served:
    from la4vla.serve.hierarchical.load import load_hierarchical

    assert request.high is not None
    config: HierarchicalConfig = load(request.high, schema=HierarchicalConfig)
    return load_hierarchical(request.low, config, device, request.base)


def _scorer(spec: str, device: str) -> Scorer | None:
    if not spec:
        return None
    from la4vla.grounding.load import load_scorer

    return load_scorer(spec, device)
