"""GPLA's Table 1, the published rows beside measured ones, and the failures that the paper only tells of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.hierarchy import intervals, motion
from benchmarks.hierarchy.texts import BERTSCORE, BLEU, METEOR, NO_SYNONYMS, ROUGE
from benchmarks.hierarchy.words import PER_100, SCORE

PUBLISHED = Path(__file__).parents[1] / "data" / "gpla.json"
TEXT_COLUMNS = (BLEU, ROUGE, METEOR, NO_SYNONYMS, BERTSCORE)
MOTION_COLUMNS = tuple(motion.column(motion.NORMALISED, name) for name in (motion.MSE, motion.MAE, motion.COSINE))
RAW_COLUMNS = tuple(motion.column(motion.RAW, name) for name in (motion.MSE, motion.MAE, motion.COSINE))
COLUMNS = (*TEXT_COLUMNS, *MOTION_COLUMNS)

Sums = Mapping[str, intervals.EpisodeSums]
"""Column -> sums by episode."""


def pooled(measured: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, int]]]:
    """`sums` of several measurements of one arm, such as seeds, as one."""
    columns = dict.fromkeys(name for numbers in measured for name in numbers["sums"])
    return {
        name: intervals.pooled(
            {episode: (one[0], one[1]) for episode, one in numbers["sums"].get(name, {}).items()}
            for numbers in measured
        )
        for name in columns
    }


def table_1(arms: Mapping[str, Sums], with_published: bool = True) -> list[list[str]]:
    """The head, then rows: published ones first, which are of LanguageTable. A cell that nothing measured is empty."""
    known, shown = published(), ["", *COLUMNS]
    rows = [
        [f"{name} (published)", *_published_cells(cells, known["columns"])]
        for name, cells in known["rows"].items()
        if with_published
    ]
    rows += [[name, *(_cell(sums, column) for column in COLUMNS)] for name, sums in arms.items()]
    return [shown, *rows]


def more(arms: Mapping[str, Sums]) -> list[list[str]]:
    """What Table 1 does not have: raw units, failures per 100 sentences, and the score where a scorer was given."""
    columns = [name for name in (*RAW_COLUMNS, *PER_100, SCORE) if any(name in sums for sums in arms.values())]
    digits = {name: 1 if name in PER_100 else 5 if name in RAW_COLUMNS[:2] else 3 for name in columns}
    return [
        ["", *columns],
        *([name, *(_cell(sums, one, digits[one]) for one in columns)] for name, sums in arms.items()),
    ]


def empty_cells(measured: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Column without a value -> what to give to `la4vla eval words` for it to have one."""
    return {column: how for numbers in measured for column, how in numbers["missing"].items()}


def how_to_fill(missing: Mapping[str, str]) -> list[str]:
    """A sentence for each of `empty_cells`."""
    return [f"{column} is empty; `la4vla eval words ... {how}` fills it." for column, how in missing.items()]


@cache
def published() -> dict[str, Any]:
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def _published_cells(cells: Sequence[Any], columns: Sequence[str]) -> list[str]:
    by_column = dict(zip(columns, cells, strict=True))
    by_column |= {
        motion.column(motion.NORMALISED, name): by_column[name] for name in (motion.MSE, motion.MAE, motion.COSINE)
    }
    return [_spread(by_column.get(column)) for column in COLUMNS]


def _spread(cell: Sequence[float] | None) -> str:
    return "" if cell is None else f"{cell[0]:.3f} \u00b1 {cell[1]:.2f}"


def _cell(sums: Sums, column: str, digits: int = 3) -> str:
    return intervals.mean(sums[column]).text(digits) if column in sums else ""
