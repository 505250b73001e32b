"""Areas under the ROC curve with intervals by episode, and shares of right answers among the first k with ties.

Rows of an episode share a scene, so a resample draws whole episodes (benchmarks/hierarchy/intervals.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.hierarchy.intervals import interval


@dataclass(frozen=True)
class Area:
    """How well a score tells true pairs from spoiled ones.

    value      probability that a true pair scores more than a spoiled one, of any deed; a tie is half
    low, high  95 % interval by episode; None with fewer than two episodes
    paired     share of deeds whose own true pair scores more than their spoiled one; a tie is half
    deeds      that have both
    """

    value: float
    low: float | None
    high: float | None
    paired: float
    deeds: int
    episodes: int


def area(true: Sequence[float], spoiled: Sequence[float], episodes: Sequence[str]) -> Area:
    """Row i of all three is of one deed; at least one row."""
    true_N, spoiled_N = np.asarray(true, float), np.asarray(spoiled, float)
    above_NN = (true_N[:, None] > spoiled_N) + 0.5 * (true_N[:, None] == spoiled_N)
    names, of_N = np.unique(np.asarray(episodes), return_inverse=True)
    # Sums over the deeds of one episode and of another: a resample only weighs them.
    inside_EN = (of_N == np.arange(len(names))[:, None]).astype(float)
    wins_EE, counts_E = inside_EN @ above_NN @ inside_EN.T, inside_EN.sum(axis=1)
    value, paired = float(above_NN.mean()), float(np.diagonal(above_NN).mean())
    if len(names) < 2:
        return Area(value, None, None, paired, len(true_N), len(names))

    def areas(drawn_RE: np.ndarray) -> np.ndarray:
        return np.einsum("re,ef,rf->r", drawn_RE, wins_EE, drawn_RE) / (drawn_RE @ counts_E) ** 2

    return Area(value, *interval(areas, "area", len(names)), paired, len(true_N), len(names))


def among_first(scores: np.ndarray, right: np.ndarray, first: int) -> float:
    """Probability that one of the `first` highest scores is a right answer, when ties are put in any order.

    scores: float [M]. right: bool [M], one at least.
    """
    best = scores[right].max()
    better, alike = int((scores > best).sum()), scores == best
    slots = first - better
    if slots <= 0:
        return 0.0
    all_alike, wrong_alike = int(alike.sum()), int((alike & ~right).sum())
    slots = min(slots, all_alike)
    return 1.0 - math.comb(wrong_alike, slots) / math.comb(all_alike, slots)
