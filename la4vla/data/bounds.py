"""Normalisation to bounds as the release computes it (FACTS 4.3), for imported checkpoints.

Not the same as `Normalize` with min_max where a dimension never moved: the released state is -1 there and its actions
are 0; ours are 0. Refuses nothing: the statistics were checked when they were read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from la4vla.data.normalize import Normalize, Stats
from la4vla.types import Sample

EPSILON = np.float32(1e-8)


@dataclass(frozen=True)
class ReleasedBounds(Normalize):
    """x -> clip(2 (x - min) / (max - min + 1e-8) - 1, -1, 1), and back. `mode` is min_max."""

    def __call__(self, sample: Sample) -> Sample:
        state = _scaled(sample.state, self.state)
        if sample.action is None:
            return sample.but(state=state)
        action = _scaled(sample.action, self.action)
        low, high = _ends(self.action)
        action[..., np.abs(high - low) < EPSILON] = 0.0
        action[~sample.action_valid] = 0.0
        return sample.but(state=state, action=action)

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        low, high = _ends(self.action)
        return (action_TA + 1) / 2 * (high - low + EPSILON) + low

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> ReleasedBounds:
        plain = Normalize.from_dict(raw)
        return ReleasedBounds(plain.mode, plain.state, plain.action)


def _ends(stats: Stats) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(stats.min, np.float32), np.asarray(stats.max, np.float32)


def _scaled(values: np.ndarray, stats: Stats) -> np.ndarray:
    low, high = _ends(stats)
    return np.clip(2 * (values - low) / (high - low + EPSILON) - 1, -1.0, 1.0).astype(np.float32)
