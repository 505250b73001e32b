"""What a hierarchical policy says and does on held-out moments, compared with what people said and the robot did.

At each moment the policy is asked as if an episode began there: it sees the image, the state and the task. The sentence
that it writes and the chunk that it gives are written as a row; metrics are means over rows with intervals by episode.
Two arms frame it: `oracle`, the low-level policy told people's sentence, and `flat`, the same told the task alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.hierarchy import intervals, motion
from benchmarks.hierarchy.failures import FAILURES, KnownWords, failures, known_words
from benchmarks.hierarchy.moments import Moment, sentences
from benchmarks.hierarchy.texts import CORPUS_BLEU, TextMetrics
from la4vla import __version__
from la4vla.config.hierarchical import QUESTIONS
from la4vla.data.shards.index import Index, read_stats
from la4vla.levels import Levels, told
from la4vla.page import page
from la4vla.serve.policy_like import NoiseKey, Served, open_episodes
from la4vla.types import Deed, Scorer, UserError

ROWS, NUMBERS = "words.jsonl", "words.json"
AT_ONCE = 16  # moments; changes no number but the last digits
ORACLE, FLAT, HIERARCHICAL = "oracle", "flat", "hierarchical"
SCORE = "grounding"


@dataclass(frozen=True)
class Answered:
    """What a policy made of a moment.

    said   the sentence that it wrote; of an arm that writes none, empty
    chunk  float32 [T, A], raw units
    """

    said: str
    chunk: np.ndarray


@dataclass(frozen=True)
class Judges:
    """What rows are measured with.

    texts   metrics of sentences
    span    normalises actions
    known   what counts as a failure
    scorer  says how well words fit the motion; None: that column is left out
    """

    texts: TextMetrics
    span: motion.ActionRange
    known: KnownWords
    scorer: Scorer | None = None


def judges(
    held_out: Index,
    metrics: TextMetrics,
    data: Index | None = None,
    scenes: Mapping[str, Sequence[str]] | None = None,
    scorer: Scorer | None = None,
) -> Judges:
    """data: folder of clips that the models learned from, whose sentences and least and greatest actions count; None:
    the held-out one's own."""
    known_from = data or held_out
    span = motion.ActionRange(read_stats(known_from.location).action("recorded"))
    said = [*sentences(known_from), *(sentences(held_out) if data else ())]
    return Judges(metrics, span, known_words(said, held_out.embodiment, scenes), scorer)


def hierarchical(policy: Served) -> Callable[[Sequence[Moment], int], list[Answered]]:
    """A policy that writes for itself what it acts on. It is told the task."""
    return lambda chosen, seed: _asked(policy, chosen, [moment.task for moment in chosen], seed, writes=True)


def told_by_people(policy: Served, levels: Levels, arm: str) -> Callable[[Sequence[Moment], int], list[Answered]]:
    """The low-level policy alone. arm: ORACLE or FLAT. levels: what it was trained to be told."""

    def words(moment: Moment) -> str:
        return told(levels, moment.task, moment.instruction if arm == ORACLE else moment.task)

    return lambda chosen, seed: _asked(policy, chosen, [words(moment) for moment in chosen], seed, writes=False)


def _asked(policy: Served, chosen: Sequence[Moment], told: Sequence[str], seed: int, writes: bool) -> list[Answered]:
    """Every moment is an episode of its own, so neither the others nor their order move its sentence or its chunk."""
    keys = [NoiseKey(seed, moment.key, 0, 0) for moment in chosen]
    open_episodes(policy, keys)
    chunks = policy.infer([moment.seen(text) for moment, text in zip(chosen, told, strict=True)], keys)
    if not writes:
        return [Answered("", chunk) for chunk in chunks]
    written = [[item.text for item in said if item.question in QUESTIONS] for said in policy.said()]
    if len(written) < len(chosen) or not all(written):
        raise UserError("the policy wrote no sentence for a moment; evaluate it with --oracle or --flat instead.")
    return [Answered(texts[-1], chunk) for texts, chunk in zip(written, chunks, strict=True)]


def answer_all(
    arm: Callable[[Sequence[Moment], int], list[Answered]], chosen: Sequence[Moment], seed: int
) -> list[Answered]:
    found: list[Answered] = []
    for first in tqdm(range(0, len(chosen), AT_ONCE), desc="moments", unit="batch", disable=None):
        found += arm(chosen[first : first + AT_ONCE], seed)
    return found


def measured(chosen: Sequence[Moment], answers: Sequence[Answered], by: Judges, writes: bool) -> list[dict[str, Any]]:
    """A row for each moment. `values` by column, None where the measure does not exist; `blame` by failure."""
    moved = [
        motion.flat(motion.errors(answer.chunk, moment.chunk, by.span))
        for moment, answer in zip(chosen, answers, strict=True)
    ]
    said = [answer.said for answer in answers]
    near = by.texts.of(said, [moment.instruction for moment in chosen]) if writes else {}
    blamed = [
        failures(text, by.known, moment.episode) if writes else {} for text, moment in zip(said, chosen, strict=True)
    ]
    scores = _scores(chosen, answers, by.scorer, writes)
    return [
        {
            "key": moment.key,
            "episode": moment.episode,
            "task": moment.task,
            "instruction": moment.instruction,
            "frame": moment.frame,
            "said": said[row],
            "chunk": answers[row].chunk.tolist(),
            "right": moment.chunk.tolist(),
            "values": {
                **{name: values[row] for name, values in near.items()},
                **moved[row],
                **({SCORE: scores[row]} if scores else {}),
                **{_per_100(name): 100.0 * bool(words) for name, words in blamed[row].items()},
            },
            "blame": {name: words for name, words in blamed[row].items() if words},
        }
        for row, moment in enumerate(chosen)
    ]


def _scores(
    chosen: Sequence[Moment], answers: Sequence[Answered], scorer: Scorer | None, writes: bool
) -> list[float | None] | None:
    """How well each chunk fits its sentence; of an arm that writes none, the sentence that it was told by people. A
    sentence that the scorer cannot take, such as one that never ends, has no score. Raises UserError where none has."""
    if scorer is None:
        return None
    deeds = [
        moment.deed(answer.said if writes else moment.instruction, answer.chunk[: len(moment.chunk)])
        for moment, answer in zip(chosen, answers, strict=True)
    ]
    found = scored(scorer, deeds)
    if all(score is None for score in found):
        scorer.scores(deeds[:1])
    return found


def scored(scorer: Scorer, deeds: Sequence[Deed]) -> list[float | None]:
    """One score a deed; None for a deed that the scorer refuses."""
    try:
        return [float(score) for score in scorer.scores(deeds)]
    except UserError:
        half = len(deeds) // 2
        return [*scored(scorer, deeds[:half]), *scored(scorer, deeds[half:])] if half else [None]


def summary(rows: Sequence[Mapping[str, Any]], metrics: TextMetrics) -> dict[str, Any]:
    """`metrics` by column with their intervals, `sums` by column and episode, and `corpus BLEU` of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row["values"]))
    episodes = [row["episode"] for row in rows]
    sums = {name: intervals.sums([row["values"].get(name) for row in rows], episodes) for name in columns}
    said, right = [row["said"] for row in rows], [row["instruction"] for row in rows]
    return {
        "metrics": {name: asdict(intervals.mean(of)) for name, of in sums.items()},
        "sums": {name: {episode: list(one) for episode, one in of.items()} for name, of in sums.items()},
        CORPUS_BLEU: metrics.corpus_bleu(said, right) if any(said) else None,
    }


def write(
    out: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], metrics: TextMetrics
) -> dict[str, Any]:
    """Writes words.jsonl and words.json, and returns what the latter holds. about: what was asked of what."""
    numbers = {
        "la4vla": __version__,
        **about,
        "libraries": metrics.about,
        "missing": metrics.missing,
        "rows": len(rows),
        "episodes": len({row["episode"] for row in rows}),
        **summary(rows, metrics),
    }
    page.write(out / ROWS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    page.write(out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    return numbers


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers and rows of a folder that `write` wrote. Raises UserError where there are none."""
    try:
        numbers = json.loads((out / NUMBERS).read_text())
        return numbers, [json.loads(line) for line in (out / ROWS).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: no measured words ({error}); make them with `la4vla eval words`.") from error


def _per_100(failure: str) -> str:
    return f"{failure} per 100"


PER_100 = tuple(_per_100(name) for name in FAILURES)
