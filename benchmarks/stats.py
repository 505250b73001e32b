"""Success rates with their uncertainty: Wilson intervals, the mean over groups (macro) and over episodes (micro).

Owns the arithmetic only: it never reads a file and never sees a policy. Comparison of two runs is paired and lives
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

SMALL_N = 50
"""Episodes per task below which a rate moves by more than +-14 points: commands then print one line of
warning."""


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
