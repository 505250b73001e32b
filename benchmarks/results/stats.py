"""Success rates with their uncertainty: Wilson intervals, the mean over groups (macro) and over episodes (micro), and
the difference of two runs of the same episodes. Arithmetic only: no file is read here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

SMALL_N = 50
"""With fewer episodes a task, its rate's 95 % interval can reach 14 points to either side and more; commands say so."""


@dataclass(frozen=True)
class Rate:
    """A success rate in [0, 1] of `n` episodes and its 95 % interval [low, high]; all three are NaN where n is 0."""

    successes: int
    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.n == 0:
            return "no episodes"
        return f"{100 * self.value:5.1f} % [{100 * self.low:5.1f}, {100 * self.high:5.1f}]"


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a binomial rate (Wilson 1927), inside [0, 1] also at 0 and n successes.

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def rate(outcomes: Sequence[bool]) -> Rate:
    """The rate of a list of episode outcomes; an empty list is allowed and gives NaN."""
    successes, n = sum(outcomes), len(outcomes)
    if n == 0:
        return Rate(0, 0, math.nan, math.nan, math.nan)
    return Rate(successes, n, successes / n, *wilson(successes, n))


def micro(groups: Sequence[Rate]) -> Rate:
    """All episodes of all groups as one sample: every episode weighs the same."""
    successes, n = sum(group.successes for group in groups), sum(group.n for group in groups)
    return Rate(successes, n, successes / n, *wilson(successes, n)) if n else rate([])


def macro(groups: Sequence[Rate]) -> Rate:
    """The unweighted mean of the groups' rates: every group with episodes weighs the same.

    The interval is MOVER's (Zou and Donner 2008) over the groups' Wilson intervals: squares of the distances from each
    rate to its own limit add up, so a group of few episodes widens it as it should. `successes` and `n` are the sums.
    """
    present = [group for group in groups if group.n]
    if not present:
        return rate([])
    weight = 1 / len(present)
    value = weight * sum(group.value for group in present)
    below = weight * math.sqrt(sum((group.value - group.low) ** 2 for group in present))
    above = weight * math.sqrt(sum((group.high - group.value) ** 2 for group in present))
    successes, n = sum(group.successes for group in present), sum(group.n for group in present)
    return Rate(successes, n, value, max(0.0, value - below), min(1.0, value + above))


@dataclass(frozen=True)
class Pairs:
    """Outcomes of the same episodes in two runs, A and B: how many both solved, only one of them, and neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def rate_a(self) -> float:
        return (self.both + self.only_a) / self.n

    @property
    def rate_b(self) -> float:
        return (self.both + self.only_b) / self.n

    @property
    def difference(self) -> float:
        """Rate of B minus rate of A."""
        return (self.only_b - self.only_a) / self.n

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar: how likely discordant pairs are to split so unevenly if A and B are equally good.
        1 where none is discordant."""
        from scipy.stats import binomtest

        discordant = self.only_a + self.only_b
        return float(binomtest(self.only_a, discordant, 0.5).pvalue) if discordant else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of `difference`: Newcombe's square-and-add of the two Wilson intervals, with the correlation of the
        pairs, corrected for continuity (Newcombe 1998, Statistics in Medicine 17:2635, method 10)."""
        low_a, high_a = wilson(self.both + self.only_a, self.n)
        low_b, high_b = wilson(self.both + self.only_b, self.n)
        below_a, above_a = self.rate_a - low_a, high_a - self.rate_a
        below_b, above_b = self.rate_b - low_b, high_b - self.rate_b
        phi = self._correlation()
        down = math.sqrt(max(0.0, below_b**2 - 2 * phi * below_b * above_a + above_a**2))
        up = math.sqrt(max(0.0, above_b**2 - 2 * phi * above_b * below_a + below_a**2))
        return max(-1.0, self.difference - down), min(1.0, self.difference + up)

    def _correlation(self) -> float:
        margins = (self.both + self.only_a) * (self.only_b + self.neither)
        margins *= (self.both + self.only_b) * (self.only_a + self.neither)
        product = self.both * self.neither - self.only_a * self.only_b
        corrected = max(product - self.n / 2, 0.0) if product > 0 else product
        return corrected / math.sqrt(margins) if margins else 0.0


def sign_flip(differences: Sequence[float]) -> float:
    """Exact two-sided p of a mean of paired differences (Fisher's randomisation test): the share of all 2^n choices of
    signs whose sum is at least as far from 0. For clusters, one difference each: tasks, not episodes. n: 1 to 20."""
    assert 1 <= len(differences) <= 20
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return float((np.abs(sums) >= abs(sum(differences)) - 1e-12).mean())


def pairs(outcomes: Iterable[tuple[bool, bool]]) -> Pairs:
    """(success in A, success in B) of every episode that both ran."""
    counts = Counter(outcomes)
    return Pairs(counts[True, True], counts[True, False], counts[False, True], counts[False, False])
