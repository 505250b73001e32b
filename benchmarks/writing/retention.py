"""What a model still knows: questions about scenes, answered before and after training on robot data.

A question is one whose very words have few different answers in the folder, such as a colour or a side. The model
chooses among them: the answer that it finds likeliest, end of the turn included, whether it sees the images or not
(blind). Chance is one over the number of answers; folders of `construct texts` hold each equally often. A model that
writes is also let write, and its words are compared to the letter, upper and lower case alike.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import stats
from benchmarks.results.stats import Pairs, Rate
from benchmarks.writing.models import AskedModel, answered, open_model, read_rows, writer
from la4vla import __version__
from la4vla.page import page
from la4vla.types import TextRow, UserError
from la4vla.vlm.generate import Writing, write
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import without_images

TEMPLATES = Path(__file__).parent / "templates"
NUMBERS, PAGE = "retention.json", "retention.html"
MOST_ANSWERS = 16  # of a question in its very words; with more it is no question to choose in
SEES, BLIND, WRITES = "sees", "blind", "writes"
ALL = "all"


@dataclass(frozen=True)
class RetentionRequest:
    """What is asked.

    texts      folder of conversations, best one of scenes that no run trained on
    models     places, what the others are compared with first
    out        folder of retention.json and retention.html
    questions  beginnings of the types that are asked
    rows       questions at most; 0: all
    device     of the models; empty: the best there is
    base       where the weights lie that adapters belong to, if not where they lay in training
    """

    texts: Path
    models: Sequence[str]
    out: Path
    questions: Sequence[str] = ("scene_",)
    rows: int = 0
    device: str = ""
    base: str = ""

    @property
    def page(self) -> Path:
        return self.out / PAGE


@dataclass(frozen=True)
class Choice:
    """A question with few answers.

    row      a conversation whose last answer is right
    answers  that its words have in the folder, the right one among them
    """

    row: TextRow
    answers: tuple[str, ...]

    @property
    def right(self) -> int:
        return self.answers.index(self.row.answer)


def measure(request: RetentionRequest) -> dict[str, Any]:
    """Writes retention.json and retention.html, and returns what the JSON holds. Raises UserError for a folder without
    such a question and a model that answers none."""
    choices = choices_of(read_rows(request.texts, request.questions, request.rows))
    asked: list[dict[str, Any]] = []
    first: AskedModel | None = None
    for place in request.models:
        model = open_model(place, request.device, request.base, first)
        first = first or model
        asked.append({"place": place, "identity": model.identity, "step": model.step, "right": answer(model, choices)})
    kinds = [choice.row.question for choice in choices]
    chance = {kind: _chance(choices, kind) for kind in _kinds(kinds)}
    numbers = {
        "la4vla": __version__,
        "texts": str(request.texts),
        "n": len(choices),
        "questions": kinds,
        "keys": [choice.row.key for choice in choices],
        "chance": chance,
        "models": asked,
        "rates": [_rates(kinds, model["right"]) for model in asked],
        "changes": [_changes(kinds, asked[0]["right"], model["right"], chance) for model in asked[1:]],
        "seen": [_seen(kinds, model["right"]) for model in asked],
    }
    page.write(request.out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    page.write(request.page, page.render(TEMPLATES, "retention.html.j2", {"numbers": numbers, "title": "Retention"}))
    return numbers


def choices_of(rows: Sequence[TextRow]) -> list[Choice]:
    """The rows whose question, in its very words, has 2 to MOST_ANSWERS answers. Raises UserError where none has."""
    by_words: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        by_words[row.question, row.turns[-2].text].add(row.answer)
    answers = {words: tuple(sorted(known)) for words, known in by_words.items() if 2 <= len(known) <= MOST_ANSWERS}
    found = [(row, answers.get((row.question, row.turns[-2].text))) for row in rows]
    choices = [Choice(row, known) for row, known in found if known]
    if not choices:
        raise UserError(
            f"no question has between 2 and {MOST_ANSWERS} answers in the folder; name types such as scene_ with "
            "--questions, or construct texts with scene among texts.questions."
        )
    return choices


def answer(model: AskedModel, choices: Sequence[Choice]) -> dict[str, list[bool]]:
    """Condition -> whether each question was answered right."""
    right = {SEES: _chosen(model, choices, False), BLIND: _chosen(model, choices, True)}
    if isinstance(model.module, VlmModel):
        vlm, encoder = writer(model)
        longest = max(len(encoder.tokenizer.encode(text)) for choice in choices for text in choice.answers)
        prompts = [encoder.question(choice.row) for choice in choices]
        written = write(vlm, encoder, prompts, Writing(longest + 4))
        right[WRITES] = [
            said.text.lower() == choice.row.answer.strip().lower()
            for said, choice in zip(written, choices, strict=True)
        ]
    return right


def summary_table(numbers: Mapping[str, Any]) -> str:
    """For a terminal: a line a model and a type of question."""
    lines = [f"{'':24}{'n':>5}{'chance':>9}  {'sees':<24}{'blind':<24}{'writes':<24}"]
    for model, rates in zip(numbers["models"], numbers["rates"], strict=True):
        lines.append(model["place"])
        for kind, cells in rates.items():
            chance = 100 * numbers["chance"][kind]
            shown = "".join(f"{_cell(cells.get(how)):<24}" for how in (SEES, BLIND, WRITES))
            lines.append(f"  {kind:22}{cells[SEES]['n']:5d}{chance:8.1f}%  {shown}".rstrip())
    for model, changes in zip(numbers["models"][1:], numbers["changes"], strict=True):
        one = changes[ALL]
        kept = "" if one["kept"] is None else f", {100 * one['kept']:.0f} % of what was known above chance is kept"
        lines.append(
            f"{model['place']} against {numbers['models'][0]['place']}, same questions: {100 * one['difference']:+.1f} "
            f"points [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}], p {one['p']:.3g}{kept}"
        )
    return "\n".join(lines)


def _chosen(model: AskedModel, choices: Sequence[Choice], blind: bool) -> list[bool]:
    rows, places = [], []
    for choice in choices:
        shown = without_images(choice.row) if blind else choice.row
        places.append(slice(len(rows), len(rows) + len(choice.answers)))
        rows += [answered(shown, text) for text in choice.answers]
    totals = np.array(model.totals(rows))
    return [int(totals[place].argmax()) == choice.right for place, choice in zip(places, choices, strict=True)]


def _kinds(kinds: Sequence[str]) -> list[str]:
    """All together first, then each type."""
    return [ALL, *sorted(set(kinds))]


def _of(kinds: Sequence[str], kind: str, right: Sequence[bool]) -> list[bool]:
    return [hit for of_hit, hit in zip(kinds, right, strict=True) if kind in (ALL, of_hit)]


def _chance(choices: Sequence[Choice], kind: str) -> float:
    return float(np.mean([1 / len(choice.answers) for choice in choices if kind in (ALL, choice.row.question)]))


def _rates(kinds: Sequence[str], right: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    return {
        kind: {how: _rate(stats.rate(_of(kinds, kind, hits))) for how, hits in right.items()} for kind in _kinds(kinds)
    }


def _changes(
    kinds: Sequence[str],
    before: Mapping[str, Sequence[bool]],
    after: Mapping[str, Sequence[bool]],
    chance: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """By type: after minus before with images, on the same questions; and the share of the first rate above chance that
    is left, where it was above chance."""
    found = {}
    for kind in _kinds(kinds):
        was, now = (_of(kinds, kind, one[SEES]) for one in (before, after))
        first, last, guessed = stats.rate(was), stats.rate(now), chance[kind]
        kept = (last.value - guessed) / (first.value - guessed) if first.low > guessed else None
        found[kind] = {**_pairs(stats.pairs(zip(was, now, strict=True))), "kept": kept}
    return found


def _seen(kinds: Sequence[str], right: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    """By type: with images minus blind, on the same questions."""
    return {
        kind: _pairs(stats.pairs(zip(_of(kinds, kind, right[BLIND]), _of(kinds, kind, right[SEES]), strict=True)))
        for kind in _kinds(kinds)
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {"right": rate.successes, "n": rate.n, "value": rate.value, "low": rate.low, "high": rate.high}


def _pairs(pairs: Pairs) -> dict[str, Any]:
    low, high = pairs.interval
    return {"n": pairs.n, "difference": pairs.difference, "low": low, "high": high, "p": pairs.p_value}


def _cell(rate: Mapping[str, Any] | None) -> str:
    return f"{100 * rate['value']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]" if rate else "-"
