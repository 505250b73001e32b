"""`la4vla construct report CONFIG`: an HTML page and a JSON file about what became of a dataset, from its ledgers.

report.json holds every number of report.html (statistics.py). The page adds example clips as strips of images. Both
files depend on ledgers, reviews and episodes only; the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from la4vla.chat.responses import Responses
from la4vla.config import ConstructConfig
from la4vla.construct import steps
from la4vla.construct.episodes import Dataset, Episode
from la4vla.construct.ledger import Ledger, LedgerRow
from la4vla.construct.notes import CountedNote, proposal_notes, reading_notes
from la4vla.construct.propose.candidates import candidate_key
from la4vla.construct.propose.vlm import CACHE
from la4vla.construct.readers.checks import task_name
from la4vla.construct.report.statistics import LedgerRows, statistics
from la4vla.construct.scores import REVIEWS, read_scores
from la4vla.construct.texts.write import written
from la4vla.page import page
from la4vla.page.strips import Example, Plot, plot, strip
from la4vla.rng import RngUse, generator
from la4vla.types import UserError

TEMPLATES = Path(__file__).parent / "templates"
REPORT, NUMBERS = "report.html", "report.json"
EXAMPLES = 2  # clips of each primitive
LISTED = 100  # tasks and episodes on the page; report.json has all of them


def write(config: ConstructConfig, dataset: Dataset) -> Path:
    """Writes out_dir/report.html and report.json from what the steps have made so far; returns the page's path.

    Raises UserError if no episode was read yet, if the scores belong to another dataset, or if an example's images can
    no longer be read.
    """
    out = Path(config.out_dir)
    names = (steps.READ, steps.KEYFRAMES, steps.CANDIDATES, steps.KEPT)
    rows = LedgerRows.of({name: steps.rows(Ledger(out / name), dataset) for name in names})
    if not rows.episodes:
        raise UserError(f"{out}: no episode without faults has been read yet; run `la4vla construct read` first.")
    scores = steps.reviewed(config, rows.proposed())
    outdated = len(read_scores(out / REVIEWS)) - len(scores)
    numbers = {
        "dataset": out.resolve().name,
        "proposer": config.proposer,
        "filter": {name: asdict(config.filter)[name] for name in ("by", "min_quality", "min_grounding")},
        "notes": [asdict(note) for note in _notes(config, dataset, rows)],
        **statistics(
            rows, scores, outdated, Responses(out / CACHE).paid(), config.seed, list(Ledger(out / steps.GROUNDED))
        ),
        "texts": written(out),
    }
    shown = examples(config, dataset, rows)
    told = ("faults", "failed", "rejected")
    named = [item for item in numbers["episodes"] if any(item[what] for what in told)]
    about = {"numbers": numbers, "examples": shown, "named": named, "listed": LISTED}
    html = page.render(TEMPLATES, "report.html.j2", {"title": numbers["dataset"], **about})
    page.write(out / NUMBERS, json.dumps(numbers, indent=1) + "\n")
    page.write(out / REPORT, html)
    return out / REPORT


def _notes(config: ConstructConfig, dataset: Dataset, rows: LedgerRows) -> list[CountedNote]:
    """All notes that the steps have printed. Episodes with faults have none that count."""
    reading = reading_notes(dataset.notes, rows.episodes.values())
    return reading + proposal_notes(config.proposer, rows.keyframes.values(), rows.candidates.values())


def examples(config: ConstructConfig, dataset: Dataset, rows: LedgerRows) -> list[Example]:
    """Up to EXAMPLES clips of each primitive, drawn at random from the seed; the most frequent primitive first.

    They come from the kept clips, or from the candidates while nothing is kept. Raises UserError for an episode that
    has changed.
    """
    kept = [(key, item) for key, row in rows.kept.items() for item in row["kept"]]
    proposed = [(key, item) for key, row in rows.candidates.items() for item in row["candidates"]]
    by_primitive: dict[str, list[tuple[str, LedgerRow]]] = {}
    for key, item in kept or proposed:
        by_primitive.setdefault(item["primitive"], []).append((key, item))
    shown = []
    for primitive, spans in sorted(by_primitive.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        order = generator(config.seed, RngUse.EXAMPLES, primitive).permutation(len(spans))[:EXAMPLES]
        for key, item in (spans[number] for number in sorted(order)):
            episode = dataset.read(key)
            if len(episode) != rows.episodes[key]["frames"]:
                raise UserError(f"{key} has changed its length since it was read; run the other steps again first.")
            shown.append(_example(episode, item))
    return shown


def _example(episode: Episode, item: Mapping[str, Any]) -> Example:
    """A clip as it is shown. item: a candidate or a kept clip of a ledger."""
    start, end = item["start"], item["end"]
    first = -(-start // episode.frame_stride) * episode.frame_stride
    numbers = list(range(first, end, episode.frame_stride))
    strips = []
    for view in episode.views if numbers else ():
        images = episode.frames(view, numbers)
        strips.append(strip(view, {number - start: images[number] for number in numbers}))
    score = f"quality {item['quality']:g}" if "quality" in item else f"automatic score {item['score']:g}"
    return Example(
        key=candidate_key(episode.key, start),
        title=item["primitive"],
        instruction=item["instruction"],
        about=(
            item["status"],
            task_name(episode.task, episode.instruction),
            f"{(end - start) / episode.fps:.2f} s",
            score,
        ),
        strips=tuple(strips),
        plot=_plot(episode, start, end),
    )


def _plot(episode: Episode, start: int, end: int) -> Plot:
    """Curves of each arm's position as the robot sees it; without a position, of all dimensions but the gripper."""
    arms = list(episode.arms)
    spec, state_TS = arms[0].robot.embodiment.state, episode.state[start:end]
    opening_T = None if len(arms) > 1 or arms[0].opening_T is None else arms[0].opening_T[start:end]
    if all(view.robot.embodiment.state.has_position for view in arms):
        paths = [
            view.robot.frame.from_base(view.robot.embodiment.state.translation(view.state[start:end])) for view in arms
        ]
        names = [f"{view.name} arm {way}".removeprefix(" arm ") for view in arms for way in ("forward", "left", "up")]
        return plot(np.concatenate(paths, axis=1), names, spec.unit, opening_T)
    spec = episode.embodiment.state
    dims = [dim for dim, name in enumerate(spec.names) if name != "gripper"]
    return plot(state_TS[:, dims], [spec.names[dim] for dim in dims], "", opening_T)
