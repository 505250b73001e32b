"""What a folder of conversations holds: numbers for `la4vla data stats`, a page for `preview`, faults for `verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from tqdm import tqdm

from la4vla.data.shards.index import Index
from la4vla.data.shards.read import read_texts
from la4vla.data.shards.texts import ROWS, TextRecord, fault, read_about
from la4vla.page import page
from la4vla.page.strips import Strip, strip
from la4vla.rng import RngUse, generator
from la4vla.types import UserError

EXAMPLES = 3  # of each type of question on a page
SEED = 0  # the same folder gives the same page
TEMPLATES = Path(__file__).parent / "templates"
TOP = 5  # answers that are listed


@dataclass(frozen=True)
class QuestionFacts:
    """All rows of one type of question. The lengths are of whole rows and of answers, in tokens or words.

    blind  share of the rows whose answer is the most frequent one to the very same question, images aside: what a
           reader gets right without looking
    """

    name: str
    rows: int
    images: float
    lengths: tuple[int, ...]
    answers: tuple[int, ...]
    distinct: int
    blind: float
    top: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class TextExample:
    """A row on a page: strips as page.strips makes them, and what was said."""

    key: str
    about: tuple[str, ...]
    strips: tuple[Strip, ...]
    turns: tuple[tuple[str, str], ...]


def facts_of(index: Index, words: Callable[[str], int]) -> list[QuestionFacts]:
    """By type of question, the most frequent first. words: length of a text. Raises UserError for a folder without rows
    or with damaged shards."""
    if not index.clips:
        raise UserError(f"{index.location}: holds no conversation; write some into it.")
    by_question: dict[str, list[tuple[str, str, int, int, int]]] = {}
    for row in _rows(index):
        asked = "\n".join(turn.text for turn in row.turns[:-1])
        total, answered = sum(words(turn.text) for turn in row.turns), words(row.answer)
        by_question.setdefault(row.question, []).append((asked, row.answer, total, answered, len(row.images)))
    return sorted((_facts(name, rows) for name, rows in by_question.items()), key=lambda item: -item.rows)


def describe_texts(index: Index, words: Callable[[str], int]) -> str:
    """The report of `la4vla data stats`."""
    questions = facts_of(index, words)
    size = sum(shard.size for shard in index.shards) / 2**20
    robot = f"of {index.robot.name}" if index.robot else "of no robot"
    views = ", ".join(f"{name} {_pixels(view.height, view.width)}" for name, view in index.views.items()) or "none"
    lines = [
        f"{index.location}: conversations {robot}, views {views}",
        f"  {index.clips:,} rows in {len(index.shards)} shards, {size:,.1f} MiB",
        "",
        f"{'question':<20}{'rows':>8}{'images':>8}{'tokens a row':>15}{'an answer':>12}{'answers':>9}{'blind':>8}",
    ]
    for item in questions:
        lines.append(
            f"{item.name:<20}{item.rows:>8,}{item.images:>8.1f}{_spread(item.lengths):>15}{_spread(item.answers):>12}"
            f"{item.distinct:>9,}{item.blind:>8.0%}"
        )
    lines += [
        "tokens: median and maximum, without images; answers: different ones; blind: right answers of a reader who",
        "knows the most frequent answer to each question and sees no image",
    ]
    return "\n".join(lines)


def preview_texts(index: Index, words: Callable[[str], int]) -> str:
    """The page of `la4vla data preview`."""
    about = read_about(index.location)
    values = {
        "title": index.location,
        "folder": {
            "robot": index.robot.name if index.robot else "",
            "rows": index.clips,
            "shards": len(index.shards),
            "mib": sum(shard.size for shard in index.shards) / 2**20,
            "views": [f"{name} {_pixels(view.height, view.width)}" for name, view in index.views.items()],
        },
        "questions": facts_of(index, words),
        "examples": _examples(index),
        "about": {name: value for name, value in about.items() if value is not None and name != ROWS},
    }
    return page.render(TEMPLATES, "conversations.html.j2", values)


def row_problems(index: Index, row: TextRecord) -> list[str]:
    """What is wrong with a row, one sentence each."""
    problems = [f"{row.key}: {wrong}"] if (wrong := fault(row)) else []
    for image in row.images:
        try:
            height, width, _ = simplejpeg.decode_jpeg(image.jpeg).shape
        except ValueError as error:
            problems.append(f"{row.key}: view {image.view}, image {image.t} cannot be decoded ({error})")
            continue
        if image.view not in index.views:
            problems.append(f"{row.key}: view {image.view} is not in the index")
        elif index.views[image.view].height not in (0, height) or index.views[image.view].width not in (0, width):
            problems.append(f"{row.key}: view {image.view}, image {image.t} is {height} x {width}, unlike the index")
    return problems


def about_problems(index: Index) -> list[str]:
    """What is wrong with the folder's own description."""
    try:
        read_about(index.location)
    except UserError as error:
        return [str(error)]
    return []


def _rows(index: Index) -> Iterator[TextRecord]:
    for number in tqdm(range(len(index.shards)), desc="reading", unit="shard", disable=None):
        yield from read_texts(index, number)


def _facts(name: str, rows: Sequence[tuple[str, str, int, int, int]]) -> QuestionFacts:
    asked: dict[str, Counter[str]] = {}
    for question, answer, *_ in rows:
        asked.setdefault(question, Counter())[answer] += 1
    answers = Counter(answer for _, answer, *_ in rows)
    return QuestionFacts(
        name=name,
        rows=len(rows),
        images=sum(images for *_, images in rows) / len(rows),
        lengths=tuple(total for _, _, total, _, _ in rows),
        answers=tuple(answered for _, _, _, answered, _ in rows),
        distinct=len(answers),
        blind=sum(counts.most_common(1)[0][1] for counts in asked.values()) / len(rows),
        top=tuple(sorted(answers.items(), key=lambda item: (-item[1], item[0]))[:TOP]),
    )


def _examples(index: Index) -> dict[str, list[TextExample]]:
    """Type of question -> rows drawn by chance."""
    by_question: dict[str, list[tuple[int, str]]] = {}
    for number in range(len(index.shards)):
        for row in read_texts(index, number):
            by_question.setdefault(row.question, []).append((number, row.key))
    chosen: dict[int, set[str]] = {}
    for question, places in by_question.items():
        for place in generator(SEED, RngUse.EXAMPLES, question).permutation(len(places))[:EXAMPLES]:
            number, key = places[place]
            chosen.setdefault(number, set()).add(key)
    shown: dict[str, list[TextExample]] = {question: [] for question in by_question}
    for number, keys in sorted(chosen.items()):
        for row in read_texts(index, number):
            if row.key in keys:
                shown[row.question].append(_example(row))
    return shown


def _example(row: TextRecord) -> TextExample:
    strips = tuple(strip(image.view, {image.t: image.jpeg}) for image in row.images)
    scores = [f"{name} {value:g}" for name, value in (row.scores or {}).items()]
    about = tuple(fact for fact in (row.task, row.instruction, *scores) if fact)
    return TextExample(row.key, about, strips, tuple((turn.role, turn.text) for turn in row.turns))


def _pixels(height: int, width: int) -> str:
    return f"{height} x {width}" if height else "of several sizes"


def _spread(values: Sequence[int]) -> str:
    return f"{np.median(values):g} / {max(values)}"
