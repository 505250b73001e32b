"""One page of several measurements: Table 1, what it does not have, and Table 2's examples with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hierarchy import table
from benchmarks.hierarchy.moments import Moment, moments
from benchmarks.hierarchy.words import read
from benchmarks.results import markdown
from la4vla.data.shards.index import read_index
from la4vla.page import page
from la4vla.page.page import data_uri
from la4vla.rng import RngUse, generator
from la4vla.types import UserError

TEMPLATES = Path(__file__).parent / "templates"
PAGE, MARKDOWN = "words.html", "words.md"


@dataclass(frozen=True)
class ShownMoment:
    """An example of Table 2.

    uri    of its image
    said   arm -> its sentence
    blame  arm -> what is wrong with it, in words; empty where nothing is
    """

    key: str
    uri: str
    task: str
    instruction: str
    said: Mapping[str, str]
    blame: Mapping[str, str]


def write(folders: Sequence[tuple[str, Path]], out: Path, examples: int) -> Path:
    """Writes words.html and words.md into `out`. folders: (arm, result folder of `la4vla eval words`); several of one
    arm are its seeds. Raises UserError where they were asked about other moments."""
    arms: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
    for name, folder in folders:
        arms.setdefault(name, []).append(read(folder))
    asked = {name: [row["key"] for row in parts[0][1]] for name, parts in arms.items()}
    first = next(iter(asked))
    for name, parts in arms.items():
        if any([row["key"] for row in rows] != asked[first] for _, rows in parts):
            raise UserError(f"{name} was asked about other moments than {first}; measure both on the same clips.")
    numbers = [one for parts in arms.values() for one, _ in parts]
    sums = {name: table.pooled([one for one, _ in parts]) for name, parts in arms.items()}
    tables = {"Table 1": table.table_1(sums), "Beside it": table.more(sums)}
    values = {
        "title": "Words of a hierarchical policy",
        "numbers": numbers[0],
        "published": table.published(),
        "tables": tables,
        "missing": table.empty_cells(numbers),
        "arms": [name for name, parts in arms.items() if any(row["said"] for row in parts[0][1])],
        "examples": _examples(arms, numbers[0], examples),
    }
    page.write(out / PAGE, page.render(TEMPLATES, "words.html.j2", values))
    page.write(out / MARKDOWN, "\n".join(_markdown(tables, values["missing"])) + "\n")
    return out / PAGE


def _examples(
    arms: Mapping[str, Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]], about: Mapping[str, Any], most: int
) -> list[ShownMoment]:
    """Drawn by the name of the clips, so that nobody picks them, each of another episode while there are some."""
    rows = {name: parts[0][1] for name, parts in arms.items() if any(row["said"] for row in parts[0][1])}
    if not rows or not most:
        return []
    any_rows = next(iter(rows.values()))
    order = generator(0, RngUse.EXAMPLES, "words").permutation(len(any_rows))
    first_of: dict[str, int] = {}
    for place in map(int, order):
        first_of.setdefault(any_rows[place]["episode"], place)
    chosen = [*first_of.values(), *(int(place) for place in order if int(place) not in set(first_of.values()))][:most]
    shown = _moments(about)
    return [
        ShownMoment(
            key=any_rows[place]["key"],
            uri=data_uri("image/jpeg", next(iter(shown[any_rows[place]["key"]].jpegs.values()))),
            task=any_rows[place]["task"],
            instruction=any_rows[place]["instruction"],
            said={name: of[place]["said"] for name, of in rows.items()},
            blame={name: _blame(of[place]["blame"]) for name, of in rows.items()},
        )
        for place in sorted(chosen)
    ]


def _moments(about: Mapping[str, Any]) -> dict[str, Moment]:
    found = moments(read_index(about["clips"]), about["views"], 1, about["every"])
    return {moment.key: moment for moment in found}


def _blame(failures: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(words)}" for name, words in failures.items())


def _markdown(tables: Mapping[str, Sequence[Sequence[str]]], missing: Mapping[str, str]) -> list[str]:
    lines = []
    for title, rows in tables.items():
        lines += [f"## {title}", "", *markdown.table(rows[0], rows[1:]), ""]
    return [*lines, *table.how_to_fill(missing)]
