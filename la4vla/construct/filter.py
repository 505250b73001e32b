"""Filter: which candidates of an episode become clips, by a judge's scores or by people's (FACTS 1.3.5).

Pure functions. Of several annotators' answers, a clip's quality is the mean, and each boundary is the median.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from la4vla.construct.arm_words import arm_of
from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.propose.spans import snap
from la4vla.construct.scores import Score
from la4vla.construct.vocabulary import BOTH_ARMS, PRIMITIVES, named_direction
from la4vla.types import UserError

VERSION = 2
"""Raised when the same candidates and scores would become other clips."""


@dataclass(frozen=True)
class KeptClip:
    """A candidate that becomes a clip.

    start, end     span [start, end) in frames, perhaps moved by annotators
    primitive      name of an action
    status         of the object at the end
    instruction    its sentence
    quality        0 .. 3, the judge's score or the annotators' mean
    scores         the annotators' qualities; empty if the judge decided
    """

    start: int
    end: int
    primitive: str
    status: str
    instruction: str
    quality: float
    scores: tuple[int, ...]


def fitting(
    candidates: Sequence[Candidate], primitives: Sequence[str], direction_purity: float, arms: Sequence[str] = ()
) -> list[Candidate]:
    """The candidates of the wanted primitives and arms that move along the one direction they name.

    primitives, arms: empty for all. direction_purity: least `purity`, 0 to allow any motion. Raises UserError for a
    primitive that does not exist.
    """
    known = (*PRIMITIVES, BOTH_ARMS.name)
    if unknown := [name for name in primitives if name not in known]:
        raise UserError(f"filter.primitives: `{unknown[0]}` does not exist; use some of {', '.join(known)}.")
    of_kind = [
        item
        for item in candidates
        if (not primitives or item.primitive in primitives) and (not arms or arm_of(item.instruction) in arms)
    ]
    return [item for item in of_kind if purity(item) >= direction_purity] if direction_purity else of_kind


def purity(item: Candidate) -> float:
    """Cosine between the motion and the one direction that the instruction names; -1 if it names none or several."""
    named_3, moved_3 = named_direction(item.instruction), np.array(item.displacement)
    if np.count_nonzero(named_3) != 1:
        return -1.0
    return float(named_3 @ moved_3 / max(float(np.linalg.norm(moved_3)), 1e-12))


def by_judge(candidates: Sequence[Candidate], min_quality: float) -> dict[str, Any]:
    """The ledger row of an episode: the kept clips in the order of time, and how many were dropped for which reason."""
    kept = [_kept_clip(item, item.score, ()) for item in candidates if item.score >= min_quality]
    return _row(kept, Counter(low=len(candidates) - len(kept)))


def by_grounding(
    candidates: Sequence[Candidate], scores: Mapping[str, float], episode: str, least: float, min_quality: float
) -> dict[str, Any]:
    """The ledger row of an episode by the second judge's scores, as by_judge gives it.

    scores: candidate_key -> its score. least: of the scores. min_quality: of the first judge; 0 to let all pass.
    """
    fit = [item for item in candidates if scores[candidate_key(episode, item.start)] >= least]
    kept = [_kept_clip(item, item.score, ()) for item in fit if item.score >= min_quality]
    return _row(kept, Counter(ungrounded=len(candidates) - len(fit), low=len(fit) - len(kept)))


def by_people(
    candidates: Sequence[Candidate],
    scores: Mapping[str, Sequence[Score]],
    episode: str,
    frames: int,
    stride: int,
    min_quality: float,
    min_frames: int,
) -> dict[str, Any]:
    """The ledger row of an episode by people's scores, as by_judge gives it.

    scores: candidate_key -> its scores. frames: length of the episode. stride: every how many frames there is an image.
    Each boundary moves to the annotators' median, at a frame with an image. Two clips that then overlap meet in the
    middle. A clip that ends up shorter than `min_frames` is dropped.
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
    """The frame with an image nearest to the median of `wanted`.

    If the median is the proposed boundary, it stays: the end of an episode need not have an image.
    """
    middle = float(np.median(wanted))
    return proposed if middle == proposed else snap(middle, stride)


def _apart(kept: Sequence[KeptClip], stride: int) -> list[KeptClip]:
    """The clips, cut so that no two share a frame; then no two have the same key. kept: in the order of their starts.

    A clip of which nothing is left is dropped.
    """
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
