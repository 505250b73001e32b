"""Statistics of values that come in parts, in bounded memory and in any order.

Up to EXACT values they are those of all values together (normalize.compute_stats). Beyond that, quantiles come from a
histogram over the upper 20 bits of float32, 8 MB a dimension: a quantile is off by at most 2^-12 of its size. Count,
extremes and the histogram do not depend on the order of the parts; mean and deviation do, to rounding.
"""

from __future__ import annotations

import numpy as np

from la4vla.data.normalize import Stats, compute_stats
from la4vla.types import UserError

EXACT = 2**26
"""Values (frames x dims) that are kept; a quarter of a gigabyte."""
BITS = 20  # of float32, from the sign on
SHIFT = 32 - BITS
QUANTILES = (0.01, 0.99)


class Tally:
    """names: of the dimensions."""

    def __init__(self, names: tuple[str, ...], exact: int = EXACT) -> None:
        self._names, self._exact = names, exact
        self._kept: list[np.ndarray] = []
        self._count = 0
        self._bins: np.ndarray | None = None
        self._mean, self._squares = np.zeros(len(names)), np.zeros(len(names))
        self._low, self._high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        self._tallied = 0

    def add(self, values_FD: np.ndarray) -> None:
        """float32 [F, D]. Raises UserError for values that are not finite."""
        if not np.isfinite(values_FD).all():
            raise UserError("a state or action is not finite; drop that clip before writing shards.")
        self._count += len(values_FD)
        self._kept.append(values_FD.copy())
        if self._count * len(self._names) > self._exact and (self._bins is None or len(self._kept) >= 64):
            self._tally()

    def stats(self) -> Stats:
        """Raises UserError where nothing was added."""
        if self._bins is None:
            return compute_stats(self._names, np.concatenate(self._kept) if self._kept else np.zeros((0, 0)))
        self._tally()
        low, high = (tuple(self._quantile(dim, q) for dim in range(len(self._names))) for q in QUANTILES)
        return Stats(
            names=self._names,
            count=self._count,
            mean=tuple(self._mean.tolist()),
            std=tuple(np.sqrt(self._squares / self._count).tolist()),
            min=tuple(self._low.tolist()),
            max=tuple(self._high.tolist()),
            q01=low,
            q99=high,
        )

    def _tally(self) -> None:
        """Moves what is kept into the histogram."""
        if not self._kept:
            return
        values_FD, self._kept = np.concatenate(self._kept), []
        if self._bins is None:
            self._bins = np.zeros((len(self._names), 2**BITS), np.int64)
        for dim, bins in enumerate(self._bins):
            bins += np.bincount(bin_of(values_FD[:, dim]), minlength=2**BITS)
        wide, count = values_FD.astype(np.float64), len(values_FD)
        mean = wide.mean(0)
        step, total = mean - self._mean, self._tallied + count
        self._squares += ((wide - mean) ** 2).sum(0) + step**2 * self._tallied * count / total
        self._mean += step * count / total
        self._tallied = total
        self._low, self._high = np.minimum(self._low, wide.min(0)), np.maximum(self._high, wide.max(0))

    def _quantile(self, dim: int, q: float) -> float:
        """As numpy's linear one, with the middle of a bin for every value in it."""
        assert self._bins is not None
        ranks, place = np.cumsum(self._bins[dim]), q * (self._count - 1)
        below, above = (int(np.searchsorted(ranks, rank, side="right")) for rank in (int(place), -int(-place // 1)))
        part = place - int(place)
        found = (1 - part) * middle_of(below) + part * middle_of(above)
        return float(np.clip(found, self._low[dim], self._high[dim]))


def bin_of(values_F: np.ndarray) -> np.ndarray:
    """float32 [F] -> int64 [F] in [0, 2^BITS), in the order of the values."""
    bits = (values_F.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # -0 becomes 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> SHIFT).astype(np.int64)


def middle_of(number: int) -> float:
    """The middle of a bin of finite values."""
    ends = np.array([number << SHIFT, (number << SHIFT) | (2**SHIFT - 1)], np.uint32)
    bits = np.where(ends >> 31, ends & np.uint32(2**31 - 1), ~ends)
    return float(bits.astype(np.uint32).view(np.float32).astype(np.float64).mean())
