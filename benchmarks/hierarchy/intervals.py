"""Means over sentences or chunks with intervals by episode.

Rows of an episode share a scene and a goal, so they are not independent: a resample draws whole episodes. A measurement
keeps the sum and the number of values of each episode, from which means of several seeds and paired differences follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from la4vla.rng import RngUse, generator

RESAMPLES = 1000
TAIL = 0.025  # on each side of a 95 % interval

EpisodeSums = Mapping[str, tuple[float, int]]
"""Episode -> sum of its values and how many there are."""


@dataclass(frozen=True)
class EpisodeMean:
    """A mean over rows.

    value      None without any row
    low, high  95 % interval by episode; None with fewer than two episodes
    rows       that have a value
    episodes   that have one
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int
    episodes: int

    def text(self, digits: int = 3) -> str:
        """For tables; empty without a value."""
        if self.value is None:
            return ""
        shown = f"{self.value:.{digits}f}"
        return shown if self.low is None else f"{shown} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def sums(values: Sequence[float | None], episodes: Sequence[str]) -> dict[str, tuple[float, int]]:
    """By episode. values: one a row; None where the measure does not exist for it, which leaves the row out."""
    found: dict[str, tuple[float, int]] = {}
    for value, episode in zip(values, episodes, strict=True):
        if value is not None:
            before, count = found.get(episode, (0.0, 0))
            found[episode] = (before + value, count + 1)
    return found


def pooled(parts: Iterable[EpisodeSums]) -> dict[str, tuple[float, int]]:
    """The rows of several measurements of the same episodes, such as seeds, as one."""
    found: dict[str, tuple[float, int]] = {}
    for part in parts:
        for episode, (total, count) in part.items():
            before, rows = found.get(episode, (0.0, 0))
            found[episode] = (before + total, rows + count)
    return found


def mean(of: EpisodeSums) -> EpisodeMean:
    """Of all rows: each weighs the same."""
    totals_E, counts_E = _columns(of, sorted(of))
    rows = int(counts_E.sum())
    if not rows:
        return EpisodeMean(None, None, None, 0, 0)
    return _estimated(float(totals_E.sum() / rows), lambda drawn_RE: drawn_RE @ totals_E / (drawn_RE @ counts_E), of)


def difference(before: EpisodeSums, after: EpisodeSums) -> EpisodeMean:
    """After minus before over the episodes that both have, drawn together."""
    both = {episode: after[episode] for episode in after if episode in before}
    if not both:
        return EpisodeMean(None, None, None, 0, 0)
    one_E, of_one_E = _columns(before, sorted(both))
    two_E, of_two_E = _columns(after, sorted(both))

    def change(drawn_RE: np.ndarray) -> np.ndarray:
        return drawn_RE @ two_E / (drawn_RE @ of_two_E) - drawn_RE @ one_E / (drawn_RE @ of_one_E)

    return _estimated(float(change(np.ones((1, len(both))))[0]), change, both)


def _estimated(value: float, statistic: Callable[[np.ndarray], np.ndarray], of: EpisodeSums) -> EpisodeMean:
    rows, episodes = sum(count for _, count in of.values()), len(of)
    if episodes < 2:
        return EpisodeMean(value, None, None, rows, episodes)
    return EpisodeMean(value, *interval(statistic, "episodes", episodes), rows, episodes)


def interval(statistic: Callable[[np.ndarray], np.ndarray], name: str, episodes: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a statistic.

    statistic: of resamples float [R, E], how often each holds an episode; gives [R]. name: of their draws.
    """
    draw = generator(0, RngUse.BOOTSTRAP, name, episodes)
    drawn_RE = draw.multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES).astype(float)
    low, high = np.quantile(statistic(drawn_RE), (TAIL, 1 - TAIL))
    return float(low), float(high)


def _columns(of: EpisodeSums, episodes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums [E] and counts [E], in the order of the episodes."""
    return np.array([of[name][0] for name in episodes], float), np.array([of[name][1] for name in episodes], float)
