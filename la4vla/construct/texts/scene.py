"""Questions about scenes, from what the simulator says of them: colour, side, distance, number, open or closed.

They are balanced: of each question in its very words, every answer occurs equally often in a folder, so that an answer
without looking is right by chance alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from la4vla.config import ConstructConfig
from la4vla.construct import steps
from la4vla.construct.episodes import Dataset, Episode
from la4vla.construct.ledger import Ledger, digest
from la4vla.construct.recording import scenes
from la4vla.construct.recording.simulators import simulator
from la4vla.construct.recording.store import episode_path
from la4vla.construct.texts.rows import Draft
from la4vla.questions.wordings import ask
from la4vla.rng import RngUse, generator
from la4vla.types import UserError

TOYS = "_toys"
"""Follows the name of a view whose image shows toys; its number is that of the image, no frame."""

SHOWN = 0.002  # of an image's pixels that a toy must have to be asked about
APART = 0.05  # m between two toys, along the axis that is asked about
SCENE = "scene_"
"""Begins the names of these types of questions."""


def facts(config: ConstructConfig, dataset: Dataset, keys: Sequence[str]) -> Ledger:
    """Brings the ledger of scenes up to date, in worker processes. Raises UserError where no simulator recorded the
    episodes, or where none is here that renders."""
    if config.read.format != "recorded":
        raise UserError(
            f"texts.questions names scene, which a simulator is asked for, and read.format is {config.read.format}; "
            "take scene out, or use recorded demonstrations."
        )
    out, record = Path(config.out_dir), config.record
    shown = [record.simulator, list(record.views), record.image_size, record.fast, config.jpeg_quality]
    of = digest(scenes.VERSION, config.texts.scenes, config.seed, shown)
    wanted = {key: digest(of, dataset.stamp(key)) for key in keys}
    ledger = Ledger(out / scenes.LEDGER)
    if all(ledger.get(key, of_row) is not None for key, of_row in wanted.items()):
        ledger.forget_all_but(wanted)
        return ledger
    simulator(record.simulator).prepare()
    with ProcessPoolExecutor(record.processes, mp_context=get_context("spawn")) as pool:

        def row(key: str) -> dict[str, Any]:
            task, number = key.rsplit("-", 1)
            path = episode_path(Path(config.read.path), task, int(number))
            images = out / scenes.IMAGES / f"{key}.npz"
            job = scenes.SceneJob(path, record, config.jpeg_quality, config.texts.scenes, config.seed, images)
            return pool.submit(scenes.look, job).result()

        return steps.fill("looking at scenes", out / scenes.LEDGER, wanted, row, record.processes)


def drafts(seen: Mapping[str, Any], episode: Episode, views: Sequence[str], seed: int, held_out: bool) -> list[Draft]:
    """All questions about an episode's scenes, before they are balanced. seen: its row of the ledger of scenes."""
    made = [*_states(seen, views), *_about_toys(seen, views, generator(seed, RngUse.TEXTS, episode.key, "pairs"))]
    drafted = []
    for number, (question, fields, answer, images) in enumerate(made):
        draw = generator(seed, RngUse.TEXTS, episode.key, question, number).random()
        text = ask(question, "", held_out, draw, **fields)
        drafted.append(Draft(question, text, answer, images, (0, len(episode)), ""))
    return drafted


Question = tuple[str, dict[str, str], str, tuple[tuple[str, int], ...]]
"""Type, fields of the wording, answer, images."""


def _states(seen: Mapping[str, Any], views: Sequence[str]) -> Iterator[Question]:
    """Of the episode's first and last image."""
    for things, frame in ((seen["start"], 0), (seen["end"], seen["last"])):
        for thing in things:
            if thing["state"]:
                fields = {"name": thing["name"], "one": thing["states"][0], "other": thing["states"][1]}
                yield f"{SCENE}state", fields, thing["state"], tuple((view, frame) for view in views)


def _about_toys(seen: Mapping[str, Any], views: Sequence[str], draws: np.random.Generator) -> Iterator[Question]:
    for number, things in enumerate(seen["toys"]):
        images = tuple((f"{view}{TOYS}", number) for view in views)
        toys = [thing for thing in things if thing["colour"]]
        names = [toy["name"] for toy in toys]
        clear = [toy for toy in toys if toy["pixels"] >= SHOWN * seen["pixels"]]
        if len(clear) == len(toys):
            yield f"{SCENE}count", {}, str(len(toys)), images
        for toy in clear:
            if names.count(toy["name"]) == 1:
                yield f"{SCENE}colour", {"name": toy["name"]}, toy["colour"], images
        for pair in combinations(clear, 2):
            first, second = sorted(pair, key=lambda toy: toy["colour"])
            fields = {"one": first["colour"], "other": second["colour"]}
            one, other = (second, first) if draws.random() < 0.5 else (first, second)
            left = one["place"][1] - other["place"][1]
            if abs(left) >= APART:
                asked = {"one": one["colour"], "other": other["colour"]}
                yield f"{SCENE}side", asked, "left" if left > 0 else "right", images
            near = float(np.hypot(*second["place"][:2]) - np.hypot(*first["place"][:2]))
            if abs(near) >= APART:
                yield f"{SCENE}nearer", fields, (first if near > 0 else second)["colour"], images


def balanced(rows: Sequence[Mapping[str, Any]], seed: int) -> set[int]:
    """Numbers of the rows that stay: all that are no question about a scene, and of each question about scenes, in its
    very words and its split, equally many of every answer that it has. A question with one answer goes.

    rows: of the ledger, all of a dataset.
    """
    keep: set[int] = set()
    by_text: dict[tuple[str, str], dict[str, list[int]]] = {}
    for number, row in enumerate(rows):
        if not row["question"].startswith(SCENE):
            keep.add(number)
            continue
        text = row["messages"][0]["text"]
        by_text.setdefault((row["split"], text), {}).setdefault(row["answer"], []).append(number)
    for (split, text), answers in by_text.items():
        if len(answers) < 2:
            continue
        least = min(len(numbers) for numbers in answers.values())
        for answer, numbers in sorted(answers.items()):
            draws = generator(seed, RngUse.TEXTS, "balance", split, text, answer)
            keep |= {numbers[place] for place in draws.permutation(len(numbers))[:least]}
    return keep
