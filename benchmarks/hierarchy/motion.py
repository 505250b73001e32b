"""How near a chunk is to the demonstration's: squared and absolute error, and the cosine.

Both in raw units of the robot's actions and normalised. Normalised: the least and the greatest value that a folder's
actions take in a dimension become -1 and 1 (FACTS 2.1: how the paper's numbers were made); a dimension without a range
is left out there. The cosine is of the two chunks as vectors, all steps and dimensions in a row; a chunk of zeros has
none. The paper's were taken of normalised actions, where zero is the middle of the range and not rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from la4vla.data.normalize import Stats

MSE, MAE, COSINE = "MSE", "MAE", "cosine"
NORMALISED, RAW = "normalised", "raw"
NEAR = 1e-8  # range below which a dimension has none (FACTS 4.3)


class ActionRange:
    """Normalises chunks by the least and greatest values of a folder."""

    def __init__(self, stats: Stats) -> None:
        low_A, high_A = np.array(stats.min), np.array(stats.max)
        self._kept = np.flatnonzero(high_A - low_A > NEAR)
        self._low, self._span = low_A[self._kept], (high_A - low_A)[self._kept]

    def normalised(self, chunk_TA: np.ndarray) -> np.ndarray:
        """float64 [T, dims with a range]; in [-1, 1] where the values lie in the folder's range."""
        return 2 * (chunk_TA[:, self._kept].astype(np.float64) - self._low) / self._span - 1


def errors(said_TA: np.ndarray, right_TA: np.ndarray, span: ActionRange) -> dict[str, dict[str, float | None]]:
    """By units and name. The steps of the shorter chunk count; both have one at least."""
    steps = min(len(said_TA), len(right_TA))
    raw = said_TA[:steps].astype(np.float64), right_TA[:steps].astype(np.float64)
    return {
        NORMALISED: _compared(*(span.normalised(chunk_TA) for chunk_TA in raw)),
        RAW: _compared(*raw),
    }


def column(units: str, name: str) -> str:
    """Of tables: `MSE (raw)`."""
    return f"{name} ({units})"


def flat(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """By column."""
    return {column(units, name): value for units, by_name in found.items() for name, value in by_name.items()}


def _compared(said_TA: np.ndarray, right_TA: np.ndarray) -> dict[str, float | None]:
    off_TA = said_TA - right_TA
    lengths = float(np.linalg.norm(said_TA) * np.linalg.norm(right_TA))
    return {
        MSE: float(np.square(off_TA).mean()),
        MAE: float(np.abs(off_TA).mean()),
        COSINE: float((said_TA * right_TA).sum() / lengths) if lengths > NEAR**2 else None,
    }
