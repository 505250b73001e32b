"""`la4vla probe DIR`: all conditions, the scores with intervals, the figures; probe.json and probe.html."""

from __future__ import annotations

import importlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from la4vla import __version__
from la4vla.config.checks import within
from la4vla.device import usable_device
from la4vla.page import page
from la4vla.probe import figures, metrics
from la4vla.probe.conditions import CONDITIONS, Condition
from la4vla.probe.hand import hand_way
from la4vla.probe.query import Answers, QuerySettings, demonstration, query
from la4vla.probe.representation import STATES, Representation, distinct_states, represent
from la4vla.probe_cases.cases import CaseClips, CaseList, open_case_clips, read_cases
from la4vla.probe_cases.motion import alignment
from la4vla.serve.policy import ServedPolicy
from la4vla.types import UserError

TEMPLATES = Path(__file__).parent / "templates"
NUMBERS, PAGE = "probe.json", "probe.html"
DRAWN = tuple(condition.name for condition in CONDITIONS if condition.words == "own")
"""Conditions whose paths are drawn: those that tell the clip's own instruction."""


LIBRARIES = ("sklearn", "matplotlib", "jinja2")
INTERVALS = {"samples": "[1, inf)", "seed": "[0, inf)", "states": "[0, inf)"}


@dataclass(frozen=True)
class ProbeRequest:
    """What is probed, with which cases, and how.

    checkpoint   a checkpoint, or a run (then its newest one)
    cases        file of the cases
    out          folder of probe.json and probe.html
    shards       where the cases' folder is now; empty: where it was
    base         where the weights of the checkpoint's adapters lie; empty: where they lay in training
    weights      one of manifest.WHICH_WEIGHTS
    conditions   their names; empty: all
    states       of the representation; 0: no representation
    untrained    whether the checkpoint's architecture gets random weights
    device       of the policy; empty: the best there is
    settings     how each case is put to the policy
    """

    checkpoint: Path
    cases: Path
    out: Path
    shards: str = ""
    base: str = ""
    weights: str = "raw"
    conditions: Sequence[str] = ()
    states: int = STATES
    untrained: bool = False
    device: str = ""
    settings: QuerySettings = field(default_factory=QuerySettings)

    @property
    def page(self) -> Path:
        return self.out / PAGE


def probe(request: ProbeRequest) -> dict[str, Any]:
    """Writes probe.json and probe.html, and returns what probe.json holds. Raises UserError for what does not fit."""
    began = time.perf_counter()
    require_libraries()
    within("--", {**asdict(request.settings), "states": request.states}, INTERVALS)
    conditions = _chosen(request.conditions)
    listed = read_cases(request.cases)
    policy = _policy(request, listed.embodiment)
    case_clips = open_case_clips(listed, policy.views, request.shards)
    check(policy, case_clips)
    states = distinct_states(listed.cases, case_clips)[: request.states]
    if request.states and len(states) < 2:
        raise UserError("the representation needs two different states or more; sample more cases or take --states 0.")
    answers = _answers(policy, conditions, listed, case_clips, request.settings)
    represented = represent(policy, states, request.settings.seed) if states else None
    numbers = {
        "la4vla": __version__,
        "checkpoint": _about(policy, request),
        "cases": {"file": str(request.cases), **_header(listed, case_clips, policy.spec.horizon)},
        "settings": {**asdict(request.settings), "resamples": metrics.RESAMPLES, "covered": metrics.COVERED},
        "conditions": {answer.condition.name: judged(answer, listed, request.settings.seed) for answer in answers},
        "representation": None if represented is None else _shown(represented),
        "displacements": {answer.condition.name: _displacements(answer) for answer in answers},
        "seconds": round(time.perf_counter() - began, 1),
    }
    page.write(request.out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    values = {"title": str(request.checkpoint), "numbers": numbers, **_images(answers, listed, case_clips, represented)}
    page.write(request.page, page.render(TEMPLATES, "probe.html.j2", values))
    return numbers


def _policy(request: ProbeRequest, embodiment: str) -> ServedPolicy:
    device = usable_device(request.device)
    if request.untrained and request.weights != "raw":
        raise UserError("--untrained has random weights and no average of them; leave out --weights.")
    if request.untrained:
        return ServedPolicy.untrained(request.checkpoint, request.settings.seed, device, embodiment)
    return ServedPolicy.load(request.checkpoint, device, request.base, embodiment, request.weights)


def require_libraries() -> None:
    """Raises UserError where a library that draws the page is not installed; called before anything is computed."""
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f'probing needs {name}: pip install "la4vla[probe]".') from error


def check(policy: ServedPolicy, case_clips: CaseClips) -> None:
    """Raises UserError where the cases are of another robot than the policy's."""
    theirs = case_clips.index.embodiment
    if differs := policy.embodiment.difference(theirs):
        raise UserError(
            f"the checkpoint was trained on another embodiment than the cases' ({differs.field} is {differs.mine}, the "
            f"cases' is {differs.other}); sample cases from shards like those it was trained on."
        )
    hand_way(theirs, case_clips.robot)


def judged(answers: Answers, listed: CaseList, seed: int) -> dict[str, Any]:
    """One condition's scores: pooled over all directions, and for each pair of opposite ones."""
    condition = answers.condition
    about = {
        "about": condition.about,
        "refusal": answers.refusal,
        "cases": len({(case.clip, case.frame) for case in answers.cases}),
        "trials": len(answers.cases),
        "not_asked": dict(Counter(answers.missing.values())),
        "paper": {of: dict(zip(metrics.NAMES, values, strict=True)) for of, values in condition.paper.items()},
    }
    if answers.refusal:
        return {**about, "pooled": None, "pairs": {}, "mean_of_pairs": None, "obedience": None, "by_nearness": {}}
    pairs = {}
    for axis in dict.fromkeys(case.axis for case in listed.cases):
        part = _estimates(answers, seed, axis)
        if part is not None:
            pairs[axis] = part
    return {
        **about,
        "pooled": _estimates(answers, seed),
        "pairs": pairs,
        "mean_of_pairs": _mean_of_pairs(pairs),
        "obedience": _estimates(answers.obeying(), seed) if condition.words == "opposite" else None,
        "by_nearness": _by_nearness(answers),
    }


def summary_table(numbers: Mapping[str, Any]) -> str:
    """The pooled scores for a terminal, intervals behind them."""
    lines = [f"{'condition':<24}{'cases':>6}  " + "".join(f"{name.upper():<22}" for name in metrics.NAMES)]
    for name, row in numbers["conditions"].items():
        scored = row["refusal"] or "".join(f"{_cell(row['pooled'][key]):<22}" for key in metrics.NAMES)
        lines.append(f"{name:<24}{row['cases']:>6}  {scored}".rstrip())
    if represented := numbers["representation"]:
        lines.append(
            f"what enters the head: silhouette {represented['by_direction']:.2f} by direction, "
            f"{represented['by_state']:.2f} by state"
        )
    return "\n".join(lines)


def _cell(estimate: Mapping[str, float | None]) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f}, {high:.2f})"


def _chosen(names: Sequence[str]) -> list[Condition]:
    known = {condition.name: condition for condition in CONDITIONS}
    for name in names:
        if name not in known:
            raise UserError(f"`{name}` is not a condition; choose among {', '.join(known)}.")
    return [known[name] for name in names] if names else list(CONDITIONS)


def _answers(
    policy: ServedPolicy,
    conditions: Sequence[Condition],
    listed: CaseList,
    case_clips: CaseClips,
    settings: QuerySettings,
) -> list[Answers]:
    total = len(conditions) * len(listed.cases) * settings.samples
    with tqdm(total=total, desc="probing", unit="chunk", disable=None) as bar:
        return [query(policy, condition, listed.cases, case_clips, settings, bar.update) for condition in conditions]


def _estimates(answers: Answers, seed: int, axis: str = "") -> dict[str, Any] | None:
    """Of all trials, or those of one axis; None where there is none."""
    labels = sorted({case.direction for case in answers.cases})
    chosen = [labels.index(case.direction) for case in answers.cases if not axis or case.axis == axis]
    if not chosen:
        return None
    trials = answers.trials(labels).of(chosen)
    estimates = metrics.estimate(trials, seed, f"{answers.condition.name} {axis}")
    return {"trials": len(trials), **{name: _finite(asdict(item)) for name, item in estimates.items()}}


def _by_nearness(answers: Answers) -> dict[str, dict[str, float]]:
    """Nearness (`FrameOf`) -> DAR of the cases that showed another clip's frame of that nearness; empty where cases
    showed their own image or none."""
    right_by_nearness: dict[str, list[bool]] = {}
    if frames := answers.frames:
        trials = answers.trials(sorted({case.direction for case in answers.cases}))
        for frame, right in zip(frames, alignment(trials.predicted_N3, trials.toward_N3), strict=True):
            right_by_nearness.setdefault(frame.nearness, []).append(bool(right))
    return {near: {"trials": len(right), "dar": float(np.mean(right))} for near, right in right_by_nearness.items()}


def _mean_of_pairs(pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The other reading of "average results" (FACTS 1.2): the mean of the scores of each pair of directions."""
    means = {}
    for name in metrics.NAMES:
        values = [pair[name]["value"] for pair in pairs.values() if pair[name]["value"] is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def _about(policy: ServedPolicy, request: ProbeRequest) -> dict[str, Any]:
    return {
        "path": str(request.checkpoint),
        "identity": policy.identity,
        "step": policy.step,
        "kind": policy.kind,
        "views": list(policy.views),
        "flow_steps": policy.processor.flow.steps,
        "horizon": policy.spec.horizon,
    }


def _header(listed: CaseList, case_clips: CaseClips, horizon: int) -> dict[str, Any]:
    """What the page says of the cases. `demonstrated` is the DAR of the demonstrations over the same horizon, which a
    policy that copies them reaches."""
    way = hand_way(case_clips.index.embodiment, case_clips.robot)
    ends_N3 = np.array([demonstration(case, case_clips, horizon, way)[-1] for case in listed.cases])
    toward_N3 = np.array([case.toward for case in listed.cases])
    return {
        "n": len(listed.cases),
        "folder": listed.folder,
        "fingerprint": listed.fingerprint,
        "embodiment": listed.embodiment,
        "drawn": dict(listed.settings),
        "directions": dict(Counter(case.direction for case in listed.cases)),
        "tasks": len({case.task for case in listed.cases}),
        "nearness": listed.nearness(),
        "clips": len({case.clip for case in listed.cases}),
        "demonstrated": float(alignment(ends_N3, toward_N3).mean()),
    }


def _shown(represented: Representation) -> dict[str, Any]:
    return {
        "states": len(set(represented.state_M.tolist())),
        "points": len(represented.state_M),
        "by_direction": represented.by_direction,
        "by_state": represented.by_state,
        "explained": represented.explained,
        "perplexity": represented.perplexity,
    }


def _displacements(answers: Answers) -> list[dict[str, Any]]:
    """Every trial, so that others can compute scores of their own."""
    return [
        {
            "clip": case.clip,
            "frame": case.frame,
            "direction": case.direction,
            "predicted": path[-1].tolist(),
            "demonstrated": truth.tolist(),
        }
        for case, path, truth in zip(answers.cases, answers.paths, answers.truth_N3, strict=True)
    ]


def _images(
    answers: Sequence[Answers], listed: CaseList, case_clips: CaseClips, represented: Representation | None
) -> dict[str, Any]:
    unit = case_clips.index.embodiment.action.unit
    shown = [answer for answer in answers if answer.condition.name in DRAWN and not answer.refusal]
    paths = {}
    for axis in dict.fromkeys(case.axis for case in listed.cases) if shown else ():
        paths[axis] = _uri(figures.opposite_commands(shown, listed.axes, axis, unit))
    return {"paths": paths, "map": None if represented is None else _uri(figures.representation(represented))}


def _uri(svg: bytes) -> str:
    return page.data_uri("image/svg+xml", svg)
