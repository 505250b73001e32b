"""Keep: which candidates of an episode become clips, by the judge's scores or by people's (FACTS 1.3.5). Pure.

Owns what becomes of several annotators' answers: quality is their mean, a boundary the median of where they want it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.propose.spans import snap
from la4vla.construct.scores import Score
from la4vla.construct.vocabulary import PRIMITIVES, named_direction
from la4vla.types import UserError

VERSION = 2
"""Counts changes of what the same candidates and scores become."""


@dataclass(frozen=True)
class KeptClip:
    """A candidate that becomes a clip. start, end: frames, perhaps moved. scores: people's qualities, if any."""

    start: int
    end: int
    primitive: str
    status: str
    instruction: str
    quality: float
    scores: tuple[int, ...]


def fitting(candidates: Sequence[Candidate], primitives: Sequence[str], direction_purity: float) -> list[Candidate]:
    """Those of the wanted primitives (none named: all) and, if the purity is above 0, those along one direction.

    Raises UserError for a primitive that does not exist.
    """
    if unknown := [name for name in primitives if name not in PRIMITIVES]:
        raise UserError(f"filter.primitives: `{unknown[0]}` does not exist; use some of {', '.join(PRIMITIVES)}.")
    kept = [item for item in candidates if not primitives or item.primitive in primitives]
    return [item for item in kept if purity(item) >= direction_purity] if direction_purity else kept


def purity(item: Candidate) -> float:
    """Cosine of the motion with the one direction that the instruction names; -1 if it names none or several."""
    named_3, moved_3 = named_direction(item.instruction), np.array(item.displacement)
    if np.count_nonzero(named_3) != 1:
        return -1.0
    return float(named_3 @ moved_3 / max(float(np.linalg.norm(moved_3)), 1e-12))


def by_judge(candidates: Sequence[Candidate], min_quality: float) -> dict[str, Any]:
    """The row of an episode: what is kept, in the order of time, and why how many others are not."""
    kept = [_kept_clip(item, item.score, ()) for item in candidates if item.score >= min_quality]
    return _row(kept, Counter(low=len(candidates) - len(kept)))


def by_people(
    candidates: Sequence[Candidate],
    scores: Mapping[str, Sequence[Score]],
    episode: str,
    frames: int,
    stride: int,
    min_quality: float,
    min_frames: int,
) -> dict[str, Any]:
    """As by_judge, from people's scores. scores: by candidate_key. frames: of the episode. stride: of its pictures.

    A boundary goes to the median of the annotators', at a frame with a picture; where two clips then overlap, they meet
    in the middle. One that ends up shorter than `min_frames` is dropped.
    """
    kept, dropped = [], Counter[str]()
    for item in candidates:
        given = scores.get(candidate_key(episode, item.start), ())
        qualities = tuple(score.quality for score in given)
        if not qualities:
            dropped["unreviewed"] += 1
        elif sum(qualities) / len(qualities) < min_quality:
            dropped["low"] += 1
        else:
            start = _moved(item.start, [score.start for score in given], stride)
            end = _moved(item.end, [score.end for score in given], stride)
            moved = replace(item, start=max(start, 0), end=min(end, frames))
            kept.append(_kept_clip(moved, sum(qualities) / len(qualities), qualities))
    apart = _apart(sorted(kept, key=lambda item: (item.start, item.end)), stride)
    long = [item for item in apart if item.end - item.start >= min_frames]
    dropped["short"] = len(kept) - len(long)
    return _row(long, dropped)


def _kept_clip(item: Candidate, quality: float, scores: tuple[int, ...]) -> KeptClip:
    return KeptClip(item.start, item.end, item.primitive, item.status, item.instruction, quality, scores)


def _moved(proposed: int, wanted: Sequence[int], stride: int) -> int:
    """Their median at the nearest picture; as proposed if that is their median (the last end may have no picture)."""
    middle = float(np.median(wanted))
    return proposed if middle == proposed else snap(middle, stride)


def _apart(kept: Sequence[KeptClip], stride: int) -> list[KeptClip]:
    """No two share a frame, so no two have the same name. kept: by start. One of which nothing is left goes."""
    apart: list[KeptClip] = []
    for item in kept:
        start = item.start
        if apart and start < apart[-1].end:
            before = apart[-1]
            start = snap((max(before.start, start) + min(before.end, item.end)) / 2, stride)
            if item.end <= start:
                continue
            apart[-1] = replace(before, end=start)
        apart.append(replace(item, start=start))
    return apart


def _row(kept: Sequence[KeptClip], dropped: Counter[str]) -> dict[str, Any]:
    kept_rows = [{**vars(item), "scores": list(item.scores)} for item in kept]
    return {"kept": kept_rows, "dropped": {name: count for name, count in dropped.items() if count}}
