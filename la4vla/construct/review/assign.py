"""Assignment: which annotator gets which candidate, in which order, and how far everyone is. Pure functions.

Each annotator draws a number for each candidate, from both names and the seed. The highest draw gets the candidate; if
the candidate is in the overlap, the second highest gets it as well. So shares are even, and a candidate's annotators
depend on its name only: more episodes change no assignment, and one more annotator only takes over a share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from la4vla.config import ReviewConfig
from la4vla.construct.scores import Score
from la4vla.rng import RngUse, seed_sequence


@dataclass(frozen=True)
class Progress:
    """How far somebody is.

    name     an annotator's; empty for everybody together
    done     number of scored candidates; for everybody, by at least one person
    total    number of candidates
    """

    name: str
    done: int
    total: int

    def text(self) -> str:
        share = self.done / self.total if self.total else 1.0
        return f"{self.name or 'everybody':20}{self.done:>8} of {self.total:>7} candidates{share:>8.1%}"


def assigned(candidate: str, config: ReviewConfig, seed: int) -> tuple[str, ...]:
    """The annotators who get a candidate: one or two of the configured ones, none if none are configured."""
    draws = sorted(config.annotators, key=lambda name: _draw(seed, candidate, name), reverse=True)
    both = config.overlap > 0 and _draw(seed, candidate) < config.overlap
    return tuple(draws[: 2 if both else 1])


def shares(candidates: Iterable[str], config: ReviewConfig, seed: int) -> dict[str, list[str]]:
    """Configured annotator -> their candidates, in the given order."""
    mine: dict[str, list[str]] = {name: [] for name in config.annotators}
    for candidate in candidates:
        for name in assigned(candidate, config, seed):
            mine[name].append(candidate)
    return mine


def queue(share: Sequence[str], scores: Iterable[Score], annotator: str) -> list[str]:
    """A share in the order in which to look at it.

    First the candidates that the annotator has not scored, beginning with those that nobody has scored; then the rest.
    """
    mine, others = set[str](), Counter[str]()
    for score in scores:
        if score.annotator == annotator:
            mine.add(score.candidate)
        else:
            others[score.candidate] += 1
    return sorted(share, key=lambda candidate: (candidate in mine, others[candidate]))


def progress(share: Collection[str], scores: Iterable[Score], annotator: str = "") -> Progress:
    """How much of a share the annotator has scored; without an annotator, how much of it anybody has scored."""
    scored = {score.candidate for score in scores if not annotator or score.annotator == annotator}
    return Progress(annotator, len(scored & set(share)), len(share))


def _draw(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on seed and names only."""
    return float(seed_sequence(seed, RngUse.REVIEW, *names).generate_state(1, np.uint32)[0]) / 2**32
