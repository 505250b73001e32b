"""`la4vla eval grounding`: retrieval and corruption tests of scorers on held-out clips.

    motion -> sentence   all distinct sentences, ranked for a motion in its scene
    sentence -> motion   all motions, ranked for a sentence
Right is what means the same (deeds.py, `meaning`), so a synonym is no error. R@k: a right one is among the first k.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.grounding import figure
from benchmarks.grounding.corrupt import CORRUPTIONS, corrupted
from benchmarks.grounding.deeds import ClipDeed, meaning, read_deeds
from benchmarks.grounding.estimates import among_first, area
from benchmarks.hierarchy.intervals import mean, sums
from la4vla import __version__
from la4vla.construct.robots.robot import robot_frame
from la4vla.data.shards.index import Index, read_index
from la4vla.grounding.load import RULES, load_scorer
from la4vla.grounding.scorer import GroundingScorer
from la4vla.page import page
from la4vla.types import Scorer, UserError

NUMBERS, FIGURE, TABLE = "grounding.json", "grounding.svg", "grounding.md"
FIRST = (1, 5)
WAYS = ("motion -> sentence", "sentence -> motion")
HORIZON = 8  # actions of a deed, where no grounding model says (FACTS 2.1)


@dataclass(frozen=True)
class GroundingRequest:
    """What is asked.

    clips    folder of clips with images, best one of episodes that no run trained on
    scorers  as `load_scorer` takes them, each perhaps behind `NAME=`; `rules` alone is of the folder's own robot
    out      folder of grounding.json, grounding.md and grounding.svg
    deeds    clips at most; 0: all
    view     in which scenes are seen; empty: the only one
    robot    robot file, for a robot that is not among ours
    seed     of what spoiled pairs get
    """

    clips: Path
    scorers: Sequence[str]
    out: Path
    deeds: int = 200
    view: str = ""
    robot: str = ""
    seed: int = 0
    device: str = ""


def measure(request: GroundingRequest) -> dict[str, Any]:
    """Writes the three files and returns what the JSON holds. Raises UserError for what does not fit."""
    index = read_index(request.clips)
    scorers = _open(request, index)
    horizon = min((one.horizon for one in scorers.values() if isinstance(one, GroundingScorer)), default=HORIZON)
    deeds = read_deeds(index, _view(request, index), horizon, request.deeds)
    sentences = sorted({item.deed.sentence for item in deeds})
    if len({meaning(sentence) for sentence in sentences}) < 2:
        raise UserError(f"{request.clips}: its clips say one thing, which nothing can be told from; name other clips.")
    spoiled = {name: corrupted(deeds, name, index.embodiment, request.seed) for name in CORRUPTIONS}
    numbers = {
        "la4vla": __version__,
        "clips": str(request.clips),
        "deeds": len(deeds),
        "episodes": len({item.episode for item in deeds}),
        "sentences": len(sentences),
        "meanings": len({meaning(sentence) for sentence in sentences}),
        "horizon": horizon,
        "seed": request.seed,
        "chance": _retrieval(np.zeros((len(deeds), len(sentences))), deeds, sentences),
        "scorers": {
            label: {
                "kind": one.name,
                "identity": one.identity if isinstance(one, GroundingScorer) else "",
                "retrieval": _retrieval(_matrix(one, deeds, sentences), deeds, sentences),
                "corruptions": _corruptions(one, deeds, spoiled),
            }
            for label, one in scorers.items()
        },
    }
    page.write(request.out / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    page.write(request.out / TABLE, table(numbers))
    (request.out / FIGURE).write_bytes(figure.draw(numbers["scorers"], CORRUPTIONS))
    return numbers


def table(numbers: Mapping[str, Any]) -> str:
    """Markdown: a row a scorer. Intervals are 95 %, by episode."""
    named = [f"{way} R@{first}" for way in WAYS for first in FIRST]
    lines = [
        f"{numbers['deeds']} motions of {numbers['episodes']} episodes, {numbers['sentences']} sentences of "
        f"{numbers['meanings']} meanings.",
        "",
        "| AUC against | " + " | ".join(CORRUPTIONS) + " |",
        "|---" * (len(CORRUPTIONS) + 1) + "|",
        *(f"| {label} | {_areas(one['corruptions'])} |" for label, one in numbers["scorers"].items()),
        "",
        "| retrieval | " + " | ".join(named) + " |",
        "|---" * (len(named) + 1) + "|",
        *(f"| {label} | {_shares(one['retrieval'])} |" for label, one in numbers["scorers"].items()),
        f"| chance | {_shares(numbers['chance'], intervals=False)} |",
    ]
    return "\n".join(lines) + "\n"


def _open(request: GroundingRequest, index: Index) -> dict[str, Scorer]:
    """Label -> scorer. Raises UserError for a label that occurs twice, and a grounding model of another robot."""
    found: dict[str, Scorer] = {}
    for given in request.scorers:
        label, _, spec = given.rpartition("=")
        if spec == RULES:
            frame = robot_frame(request.robot or index.embodiment.name)
            spec = f"{RULES}:{request.clips}@{frame.forward},{frame.left},{frame.up}"
        scorer = load_scorer(spec, request.device)
        label = label or scorer.name
        if label in found:
            raise UserError(f"two scorers are called {label}; write NAME={spec} for one of them.")
        if isinstance(scorer, GroundingScorer) and (differs := scorer.embodiment.difference(index.embodiment)):
            raise UserError(
                f"{spec} judges motions of `{scorer.embodiment.name}`, whose {differs.field} is {differs.mine}; "
                f"{request.clips} has {differs.other}; give clips of its robot."
            )
        found[label] = scorer
    return found


def _view(request: GroundingRequest, index: Index) -> str:
    if not request.view and len(index.views) != 1:
        raise UserError(f"{request.clips} has {len(index.views)} views ({', '.join(index.views)}); give --view.")
    return request.view or next(iter(index.views))


def _matrix(scorer: Scorer, deeds: Sequence[ClipDeed], sentences: Sequence[str]) -> np.ndarray:
    """Score of every motion with every sentence, [deeds, sentences]."""
    every = [replace(item.deed, sentence=sentence) for item in deeds for sentence in sentences]
    return scorer.scores(every).reshape(len(deeds), len(sentences))


def _retrieval(scores_NM: np.ndarray, deeds: Sequence[ClipDeed], sentences: Sequence[str]) -> dict[str, Any]:
    """Way -> R@k -> share with its interval."""
    of_sentence, of_deed = [meaning(sentence) for sentence in sentences], [item.meaning for item in deeds]
    right_NM = np.array([[one == other for other in of_sentence] for one in of_deed])
    episodes, own = [item.episode for item in deeds], [sentences.index(item.deed.sentence) for item in deeds]
    found: dict[str, Any] = {way: {} for way in WAYS}
    for first in FIRST:
        hits = {
            WAYS[0]: [among_first(*row, first) for row in zip(scores_NM, right_NM, strict=True)],
            WAYS[1]: [among_first(scores_NM[:, column], right_NM[:, column], first) for column in own],
        }
        for way, of_way in hits.items():
            found[way][f"R@{first}"] = asdict(mean(sums(of_way, episodes)))
    return found


def _corruptions(scorer: Scorer, deeds: Sequence[ClipDeed], spoiled: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Corruption -> area; None where no deed could be spoiled so."""
    true_N = scorer.scores([item.deed for item in deeds])
    found: dict[str, Any] = {}
    for name, changed in spoiled.items():
        at = [number for number, one in enumerate(changed) if one is not None]
        scores = scorer.scores([changed[number] for number in at])
        episodes = [deeds[number].episode for number in at]
        found[name] = asdict(area(true_N[at].tolist(), scores.tolist(), episodes)) if at else None
    return found


def _areas(found: Mapping[str, Any]) -> str:
    return " | ".join(_with_interval(found[name]) if found[name] else "" for name in CORRUPTIONS)


def _shares(found: Mapping[str, Any], intervals: bool = True) -> str:
    cells = [found[way][f"R@{first}"] for way in WAYS for first in FIRST]
    return " | ".join(_with_interval(one) if intervals else f"{one['value']:.3f}" for one in cells)


def _with_interval(one: Mapping[str, Any]) -> str:
    between = "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"
    return f"{one['value']:.3f}{between}"
