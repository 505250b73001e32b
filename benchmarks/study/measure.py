"""Reads the results of a job for its row from the job's folder: counts, losses, operations, outcomes of every
episode."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.hierarchy import words
from benchmarks.report import curves
from benchmarks.results import latency, results
from benchmarks.results.rubric import Rubric
from benchmarks.study.hierarchy_plan import JUDGES
from benchmarks.study.jobs import Kind, StudyJob
from benchmarks.study.plan import CASES, CEILING
from benchmarks.writing import answers, retention
from la4vla import config, manifest
from la4vla.config import TrainConfig
from la4vla.construct.build import FINGERPRINT
from la4vla.construct.texts import write as texts
from la4vla.data.mixture import Schedule
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from la4vla.gpla.candidates import from_jsonl
from la4vla.gpla.learner import CANDIDATES
from la4vla.gpla.report import RoundNumbers
from la4vla.model import flops
from la4vla.model.presets import size_of
from la4vla.model.tokenizer import build_prompter
from la4vla.probe.run import NUMBERS
from la4vla.probe_cases.cases import read_cases
from la4vla.types import UserError


def measure(job: StudyJob) -> dict[str, Any]:
    """The results of a job that has ended, JSON-able. Raises UserError where its folder is not complete."""
    readers: dict[Kind, Callable[[StudyJob], dict[str, Any]]] = {
        "construct": shards,
        "train": training,
        "evaluate": outcomes,
        "perturb": outcomes,
        "cases": cases,
        "probe": probe,
        "texts": conversations,
        "ceiling": replayed,
        "retention": retained,
        "answers": answered,
        "gpla": rounds,
        "words": worded,
        "judges": judged,
    }
    return readers[job.kind](job)


def shards(job: StudyJob) -> dict[str, Any]:
    """Demonstrations, clips, frames and samples that a construction wrote, and clips by primitive."""
    about = json.loads((job.folder / FINGERPRINT).read_text())
    indexes = {name: read_index(job.folder / name) for name in about["folders"]}
    counts = {
        name: {"clips": index.clips, "frames": index.frames, "samples": index.samples}
        for name, index in indexes.items()
    }
    return {"demonstrations": counts["task"]["clips"], "folders": counts, "primitives": about["primitives"]}


def training(job: StudyJob) -> dict[str, Any]:
    """Samples by source, operations, the mean loss of the log's last five lines, and the identity of the weights."""
    recipe: TrainConfig = config.load(job.about["recipe"], job.about["settings"])
    records = curves.read(job.folder)
    steps = sum(stage.steps for stage in recipe.stages.values())
    if records.steps != steps:
        raise UserError(f"{job.folder}: stopped at step {records.steps} of {steps}; run the study again to go on.")
    newest = manifest.newest(job.folder)
    assert newest is not None
    return {
        "samples": samples(recipe),
        "operations": None if talks(recipe) or recipe.learner != "policy" else operations(recipe),
        "loss": round(records.last("loss"), 5),
        "policy": manifest.read(newest).weights_sha256,
    }


def samples(recipe: TrainConfig) -> dict[str, int]:
    """Source -> samples that a whole run reads of it."""
    schedule, total = Schedule(recipe), dict[str, int]()
    for stage in recipe.stages:
        for source, count in schedule.total(stage).items():
            total[source] = total.get(source, 0) + count
    return total


def talks(recipe: TrainConfig) -> bool:
    """Whether it reads conversations, whose operations are not computed here."""
    return any(recipe.data.sources[source].kind == "text" for source in samples(recipe))


def operations(recipe: TrainConfig) -> float:
    """Floating-point operations of a whole run (model/flops.py), at each source's mean row length without padding."""
    size, schedule, total = size_of(recipe.model), Schedule(recipe), 0.0
    lengths = {source: row_length(recipe, source) for source in samples(recipe)}
    for name, stage in recipe.stages.items():
        for source, count in schedule.total(name).items():
            tokens, images = lengths[source]
            cost = flops.forward(size, recipe.model.readout, images, round(tokens))
            total += count * flops.training(cost, stage.train)
    return total


def row_length(recipe: TrainConfig, source: str) -> tuple[float, int]:
    """Mean tokens and images of a source's samples. Only the clips' instructions are read."""
    read = recipe.data.sources[source]
    index = read_index(read.path)
    images = 0 if read.kind == "la" else len(read.views or index.views)
    encode = build_prompter(recipe.model).encode
    tokens = frames = 0
    for number in range(len(index.shards)):
        for clip in read_shard(index, number, ()):
            tokens += len(clip) * len(encode(clip.instruction, range(images)))
            frames += len(clip)
    return tokens / frames, images


def outcomes(job: StudyJob) -> dict[str, Any]:
    """Outcomes of all episodes: for each task a string of 0 (failure) and 1 (success) in the order of the episodes.

    Raises UserError where an episode is missing or crashed.
    """
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
        **written(list(rows.values())),
        "successes": {task: "".join(str(int(ended[task, number])) for number in numbers) for task in tasks},
    }


def written(rows: Sequence[results.Row]) -> dict[str, Any]:
    """Of a policy, seconds a decision and what episodes earned; nothing where its rows tell neither."""
    seconds, credit = latency.times(rows), Rubric.load().summarise(rows)
    return {
        **({"decision_s": asdict(seconds)} if seconds else {}),
        **({"credit": round(credit["all"].credit, 4), "planned": asdict(credit["all"].planned)} if credit else {}),
    }


def cases(job: StudyJob) -> dict[str, Any]:
    """Number of cases, by direction, and of how many tasks."""
    listed = read_cases(job.folder / CASES).cases
    directions = Counter(case.direction for case in listed)
    return {"n": len(listed), "directions": dict(directions), "tasks": len({case.task for case in listed})}


def probe(job: StudyJob) -> dict[str, Any]:
    """The pooled scores of every probe condition with their intervals, without the single trials."""
    numbers = json.loads((job.folder / NUMBERS).read_text())
    fields = ("cases", "trials", "refusal", "pooled", "obedience", "by_nearness")
    return {
        "policy": numbers["checkpoint"]["identity"],
        "listed": {
            name: numbers["cases"][name] for name in ("n", "tasks", "clips", "fingerprint", "demonstrated", "nearness")
        },
        "conditions": {name: {key: one[key] for key in fields} for name, one in numbers["conditions"].items()},
        "representation": numbers["representation"],
    }


def conversations(job: StudyJob) -> dict[str, Any]:
    """Rows by type of question and split."""
    made = texts.written(job.folder.parent)[job.folder.name]
    return {"counts": made["counts"], "dropped": made["dropped"]}


def replayed(job: StudyJob) -> dict[str, Any]:
    """Successes of demonstrations, of their commands and of their texts, by codec and motion."""
    rows = json.loads((job.folder / CEILING).read_text())
    return {
        "conditions": {
            row["condition"]: {
                "successes": sum(map(sum, row["tasks"].values())),
                "n": sum(map(len, row["tasks"].values())),
            }
            for row in rows
        }
    }


def retained(job: StudyJob) -> dict[str, Any]:
    """Rates by type of question before and after, and every outcome as a string of 0 and 1."""
    numbers = json.loads((job.folder / retention.NUMBERS).read_text())
    return {
        "n": numbers["n"],
        "chance": numbers["chance"],
        "rates": dict(zip(("before", "after"), numbers["rates"], strict=True)),
        "change": numbers["changes"][0],
        "outcomes": {
            when: {how: "".join(str(int(hit)) for hit in hits) for how, hits in model["right"].items()}
            for when, model in zip(("before", "after"), numbers["models"], strict=True)
        },
    }


def answered(job: StudyJob) -> dict[str, Any]:
    """Rates of what was said about motion."""
    numbers = json.loads((job.folder / answers.NUMBERS).read_text())
    return {name: numbers[name] for name in ("identity", "rates", "error_cm", "examples")}


def rounds(job: StudyJob) -> dict[str, Any]:
    """The first and the last round: scores, pairs, what was left out; and the identity of the weights.

    Raises UserError for a folder without rounds.
    """
    # Imported only where a study has rounds: it brings the trainer.

    files = sorted((job.folder / CANDIDATES).glob("round_*.jsonl"))
    newest = manifest.newest(job.folder)
    if not files or newest is None:
        raise UserError(f"{job.folder}: no finished round in it; run the study again to go on.")
    ends = [RoundNumbers.of(from_jsonl(path.read_bytes(), str(path))) for path in (files[0], files[-1])]
    return {
        "count": len(files),
        **dict(zip(("first", "last"), map(asdict, ends), strict=True)),
        "policy": manifest.read(newest).weights_sha256,
    }


def worded(job: StudyJob) -> dict[str, Any]:
    """Sums of every metric by episode, and some sentences."""
    numbers, rows = words.read(job.folder)
    sums = {
        name: {episode: [round(total, 6), count] for episode, (total, count) in of.items()}
        for name, of in numbers["sums"].items()
    }
    return {
        "n": numbers["rows"],
        "episodes": numbers["episodes"],
        "identity": numbers["identity"],
        "missing": numbers["missing"],
        "corpus_bleu": numbers[words.CORPUS_BLEU],
        "sums": sums,
        "said": [{name: row[name] for name in ("task", "instruction", "said")} for row in rows[:: len(rows) // 4 or 1]],
    }


def judged(job: StudyJob) -> dict[str, Any]:
    """What each judge loses and catches."""
    numbers = json.loads((job.folder / JUDGES).read_text())
    return {name: numbers[name] for name in ("scorer", "good", "judges")}
