"""What a finished job's folder says that a row keeps: counts, losses, operations, outcomes of every episode."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.report import curves
from benchmarks.results import results
from benchmarks.study.plan import CASES, Job, Kind
from la4vla import config, manifest
from la4vla.config import TrainConfig
from la4vla.construct.build import FINGERPRINT
from la4vla.data.mixture import Schedule
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from la4vla.model import flops
from la4vla.model.presets import preset
from la4vla.model.tokenizer import build_prompter
from la4vla.probe.run import NUMBERS
from la4vla.probe_cases.cases import read_cases
from la4vla.types import UserError

"""In a string of outcomes: an episode that has none. 1: success, 0: failure."""


def measure(job: Job) -> dict[str, Any]:
    """Raises UserError where the folder is not complete."""
    measured: dict[Kind, Callable[[Job], dict[str, Any]]] = {
        "construct": shards,
        "train": training,
        "evaluate": outcomes,
        "perturb": outcomes,
        "cases": cases,
        "probe": probe,
    }
    return measured[job.kind](job)


def shards(job: Job) -> dict[str, Any]:
    about = json.loads((job.folder / FINGERPRINT).read_text())
    indexes = {name: read_index(job.folder / name) for name in about["folders"]}
    counts = {
        name: {"clips": index.clips, "frames": index.frames, "samples": index.samples}
        for name, index in indexes.items()
    }
    return {"demonstrations": counts["task"]["clips"], "folders": counts, "primitives": about["primitives"]}


def training(job: Job) -> dict[str, Any]:
    """Samples by source, operations, and the mean loss of the last five lines of the log."""
    recipe: TrainConfig = config.load(job.about["recipe"], job.about["settings"])
    records = curves.read(job.folder)
    steps = sum(stage.steps for stage in recipe.stages.values())
    if records.steps != steps:
        raise UserError(f"{job.folder}: stopped at step {records.steps} of {steps}; run the study again to go on.")
    newest = manifest.newest(job.folder)
    assert newest is not None
    return {
        "samples": samples(recipe),
        "operations": operations(recipe),
        "loss": round(records.last("loss"), 5),
        "policy": manifest.read(newest).weights_sha256,
    }


def samples(recipe: TrainConfig) -> dict[str, int]:
    """Source -> samples that it gives to a whole run."""
    schedule, total = Schedule(recipe), dict[str, int]()
    for stage in recipe.stages:
        for source, count in schedule.total(stage).items():
            total[source] = total.get(source, 0) + count
    return total


def operations(recipe: TrainConfig) -> float:
    """Forward and backward of a whole run (model/flops.py), at each source's mean row length, padding left out."""
    size, schedule, total = preset(recipe.model.preset), Schedule(recipe), 0.0
    lengths = {source: row_length(recipe, source) for source in samples(recipe)}
    for name, stage in recipe.stages.items():
        for source, count in schedule.total(name).items():
            tokens, images = lengths[source]
            cost = flops.forward(size, recipe.model.readout, images, round(tokens))
            total += count * flops.training(cost, stage.train)
    return total


def row_length(recipe: TrainConfig, source: str) -> tuple[float, int]:
    """Mean tokens and images of a sample. Only the clips' words are read."""
    wanted = recipe.data.sources[source]
    index = read_index(wanted.path)
    images = 0 if wanted.kind == "la" else len(wanted.views or index.views)
    encode = build_prompter(recipe.model).encode
    tokens = frames = 0
    for number in range(len(index.shards)):
        for clip in read_shard(index, number, ()):
            tokens += len(clip) * len(encode(clip.instruction, range(images)))
            frames += len(clip)
    return tokens / frames, images


def outcomes(job: Job) -> dict[str, Any]:
    """Every episode's end, a string of 0 and 1 a task in the order of the episodes."""
    run = results.read_run(job.folder)
    rows = {(row.task, row.episode): row for row in results.read_rows(job.folder)}
    protocol = run["protocol"]
    numbers = range(protocol["first_episode"], protocol["first_episode"] + protocol["episodes"])
    tasks = [task for tasks in protocol["groups"].values() for task in tasks]
    ended = {key: row.success for key, row in rows.items() if row.success is not None}
    missing = [(task, number) for task in tasks for number in numbers if (task, number) not in ended]
    if missing:
        raise UserError(f"{job.folder}: {len(missing)} episodes are missing or crashed; run the study again to go on.")
    return {
        "protocol": run["title"],
        "protocol_hash": next(iter(rows.values())).protocol_hash,
        "policy": run["policy"],
        "step": run["step"],
        "gl": run["gl"],
        "n": len(rows),
        "successes": {task: "".join(str(int(ended[task, number])) for number in numbers) for task in tasks},
    }


def cases(job: Job) -> dict[str, Any]:
    """How many, in which directions, of how many tasks."""
    listed = read_cases(job.folder / CASES).cases
    directions = Counter(case.direction for case in listed)
    return {"n": len(listed), "directions": dict(directions), "tasks": len({case.task for case in listed})}


def probe(job: Job) -> dict[str, Any]:
    """The pooled scores of every condition with their intervals; not the trials themselves."""
    found = json.loads((job.folder / NUMBERS).read_text())
    kept = ("cases", "trials", "refusal", "pooled", "obedience", "by_nearness")
    return {
        "policy": found["checkpoint"]["identity"],
        "listed": {
            name: found["cases"][name] for name in ("n", "tasks", "clips", "fingerprint", "demonstrated", "nearness")
        },
        "conditions": {name: {key: one[key] for key in kept} for name, one in found["conditions"].items()},
        "representation": found["representation"],
    }
