"""How well a model answers held-out questions about motion: action texts that can be read, their main direction, and
direction words. Greedily: the likeliest token each time.

Where the question holds a plan, the model writes its own first and is asked with that; `main_given` is with the
annotator's. A policy with actions is asked the same sub-tasks at the same images, with the states of its clips; what it
does in the steps of a chunk is compared with what the demonstration did in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import stats
from benchmarks.writing.models import open_model, read_rows, writer
from la4vla import __version__, manifest
from la4vla.action_text.action_text import ActionText
from la4vla.action_text.motion import Motion
from la4vla.construct.vocabulary import DIRECTIONS
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.texts import read_about
from la4vla.data.shards.writer import Clip
from la4vla.device import usable_device
from la4vla.page import page
from la4vla.questions.wordings import ask
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import Observation, TextRow, Turn, UserError
from la4vla.vlm.generate import Writing, write
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import ChatEncoder

NUMBERS = "answers.json"
FAR = 0.025  # m along one axis from which a motion has a main direction (FACTS 2.2)
WORDS = {word for pair in DIRECTIONS for word in pair} | {"none"}
SPARE = 32  # tokens that an answer may be longer than the longest right one


@dataclass(frozen=True)
class AnswersRequest:
    """What is asked.

    model   a place of a model that writes, or a checkpoint of a policy with actions
    texts   folder of conversations, best one that no run trained on
    out     folder of answers.json
    rows    questions of each type at most
    clips   of a policy with actions: the folder of its clips with images
    device  of the model; empty: the best there is
    base    where the weights lie that adapters belong to, if not where they lay in training
    """

    model: str
    texts: Path
    out: Path
    rows: int = 100
    clips: Path | None = None
    device: str = ""
    base: str = ""


def measure(request: AnswersRequest) -> dict[str, Any]:
    """Writes answers.json and returns what it holds: rates by name, and the mean error of a motion in cm.

    Raises UserError for a folder without action texts, and a policy with actions whose clips are not named.
    """
    robot, made = read_index(request.texts, "texts").robot, read_about(request.texts).get("action_text")
    if robot is None or made is None:
        raise UserError(f"{request.texts}: holds no action texts; construct them with actions among texts.questions.")
    action = ActionText.from_dict(made, robot)
    rows = read_rows(request.texts, ["actions"], request.rows)
    if _acts(request.model):
        if request.clips is None:
            raise UserError(f"{request.model} is a policy with actions; name the folder of its clips with --clips.")
        policy = ServedPolicy.load(request.model, usable_device(request.device), request.base, robot.name)
        found = _of_policy(policy, action, rows, request.clips)
        about = {"identity": policy.identity, "step": policy.step}
    else:
        model = open_model(request.model, request.device, request.base)
        found = _of_writer(*writer(model), action, rows, request)
        about = {"identity": model.identity, "step": model.step}
    numbers = {"la4vla": __version__, "model": request.model, **about, "texts": str(request.texts), **found}
    page.write(request.out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    return numbers


def summary_table(numbers: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = [f"{name:14}{stats.Rate(**one)}  n {one['n']}" for name, one in numbers["rates"].items()]
    return "\n".join([*lines, *([f"error {numbers['error_cm']:.1f} cm"] if numbers["error_cm"] is not None else [])])


def main_direction(motion: Motion) -> tuple[int, bool] | None:
    """(axis of forward, left, up; whether to its positive end) of the longest way; None where no way is FAR."""
    moved_3 = motion.move_R3.sum(axis=0)
    axis = int(np.abs(moved_3).argmax())
    return (axis, bool(moved_3[axis] > 0)) if abs(moved_3[axis]) >= FAR else None


def _acts(place: str) -> bool:
    """Whether it is a checkpoint or a run of a policy with actions."""
    folder = Path(place)
    ours = (folder / manifest.MANIFEST).is_file() or (folder / manifest.CHECKPOINTS).is_dir()
    return ours and manifest.read(manifest.resolve(folder)).learner == "policy"


def _of_writer(
    vlm: VlmModel, encoder: ChatEncoder, action: ActionText, rows: Sequence[TextRow], request: AnswersRequest
) -> dict[str, Any]:
    plans = {(row.episode, row.span): row for row in _others(request.texts, "plan")}
    asked_again = [plans.get((row.episode, row.span)) for row in rows]
    known = [plan for plan in asked_again if plan is not None]
    planned = bool(known) and any(
        plan is not None and _with_plan(row, plan, "", action) for row, plan in zip(rows, asked_again, strict=True)
    )
    given = _written(vlm, encoder, rows, rows)
    said = given
    if planned:
        own = iter(_written(vlm, encoder, known, known))
        again = [
            row if plan is None else (_with_plan(row, plan, next(own), action) or row)
            for row, plan in zip(rows, asked_again, strict=True)
        ]
        said = _written(vlm, encoder, again, rows)
    directions = _others(request.texts, "direction")[: request.rows]
    words = _written(vlm, encoder, directions, directions)
    wanted = [action.read(row.answer).motion for row in rows]
    if None in wanted:
        raise UserError(f"{request.texts}: an answer is no action text of its codec; construct the texts again.")
    motions = [action.read(text).motion for text in said]
    pairs = [(one, motion) for one, motion in zip(wanted, motions, strict=True) if one is not None]
    shown = [(one, action.read(text).motion) for one, text in zip(wanted, given, strict=True) if one is not None]
    errors = [
        float(np.abs(one.move_R3.sum(0) - motion.move_R3.sum(0)).mean()) for one, motion in pairs if motion is not None
    ]
    return {
        "rates": {
            "valid": _rate([motion is not None for motion in motions]),
            "main": _rate(_same(pairs)),
            **({"main_given": _rate(_same(shown))} if planned else {}),
            **(
                {
                    "words": _rate(
                        [_named(text) == _named(row.answer) for text, row in zip(words, directions, strict=True)]
                    )
                }
                if directions
                else {}
            ),
        },
        "error_cm": 100 * float(np.mean(errors)) if errors else None,
        "examples": [{"asked": row.answer, "said": text} for row, text in zip(rows[:5], said[:5], strict=True)],
    }


def _of_policy(policy: ServedPolicy, action: ActionText, rows: Sequence[TextRow], folder: Path) -> dict[str, Any]:
    clips = _clips(folder)
    pairs: list[tuple[Motion, Motion | None]] = []
    for number, row in enumerate(rows):
        clip, frame = _at(clips, row)
        if clip is None:
            continue
        seen = Observation(dict(zip(policy.views, row.images, strict=False)), clip.state[frame], row.instruction)
        chunk_TA = policy.infer([seen], [NoiseKey(0, row.task, number, 0)])[0]
        steps = min(len(chunk_TA), len(clip.action) - frame)

        def moved(commands_TA: np.ndarray, states: np.ndarray = clip.state[frame : frame + steps]) -> Motion:
            return action.space.steps(states, commands_TA).motion

        pairs.append((moved(clip.action[frame : frame + steps]), moved(chunk_TA[:steps])))
    if not pairs:
        raise UserError(
            f"{folder}: holds no clip of the sub-tasks that are asked about; name that of the same dataset."
        )
    errors = [float(np.abs(one.move_R3.sum(0) - other.move_R3.sum(0)).mean()) for one, other in pairs if other]
    return {"rates": {"main": _rate(_same(pairs))}, "error_cm": 100 * float(np.mean(errors)), "examples": []}


def _others(folder: Path, question: str) -> list[TextRow]:
    """Rows of a type; none where the folder has none."""
    return [row for row in read_rows(folder, [""]) if row.question == question]


def _with_plan(row: TextRow, plan: TextRow, text: str, action: ActionText) -> TextRow | None:
    """The question about actions with another plan in it; None where it holds none."""
    form = action.config.codec

    def words(plan_text: str) -> str:
        return ask("actions", form, subtask=row.instruction, plan=plan_text)

    question, before = row.turns[-2].text, words(plan.answer)
    if not question.startswith(before):
        return None
    turn = Turn("user", words(" ".join(text.split())) + question[len(before) :], row.turns[-2].images)
    return replace(row, turns=(*row.turns[:-2], turn, row.turns[-1]))


def _written(vlm: VlmModel, encoder: ChatEncoder, rows: Sequence[TextRow], right: Sequence[TextRow]) -> list[str]:
    """right: rows with answers as long as they get."""
    if not rows:
        return []
    longest = max(len(encoder.tokenizer.encode(row.answer)) for row in right)
    written = write(vlm, encoder, [encoder.question(row) for row in rows], Writing(longest + SPARE))
    return [answer.text for answer in written]


def _same(pairs: Sequence[tuple[Motion, Motion | None]]) -> list[bool]:
    """Of each motion with a main direction, whether the other goes the same way. One that cannot be read does not."""
    main: Callable[[Motion], tuple[int, bool] | None] = main_direction
    return [other is not None and main(other) == main(one) for one, other in pairs if main(one) is not None]


def _named(text: str) -> frozenset[str]:
    return frozenset(word for word in text.lower().replace(",", " ").split() if word in WORDS)


def _rate(hits: Sequence[bool]) -> dict[str, Any]:
    rate = stats.rate(hits)
    return asdict(rate) if rate.n else {"successes": 0, "n": 0, "value": 0.0, "low": 0.0, "high": 1.0}


def _clips(folder: Path) -> dict[str, list[Clip]]:
    """Episode -> its clips, without images."""
    index, found = read_index(folder), dict[str, list[Clip]]()
    for number in range(len(index.shards)):
        for clip in read_shard(index, number, ()):
            found.setdefault(clip.episode, []).append(clip)
    return found


def _at(clips: Mapping[str, Sequence[Clip]], row: TextRow) -> tuple[Clip | None, int]:
    """The clip that a row is about, and the frame of it."""
    assert row.span is not None, "questions about actions have it"
    for clip in clips.get(row.episode, ()):
        if clip.span[0] <= row.span[0] < clip.span[1]:
            return clip, row.span[0] - clip.span[0]
    return None, 0
