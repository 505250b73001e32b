"""DAR, DCS, SR and SS of predicted displacements (the paper's appendix 9, FACTS 1.2), with bootstrap intervals.

All four are functions of weights over trials. The point estimate gives every trial weight 1; a bootstrap resample gives
it the number of times that its clip was drawn. So all resamples are a few matrix products, and a trial that was drawn
twice makes no pair with itself at distance zero, which would flatter SR and SS.

Shape letters: N trials, R rows of weights (resamples), C direction labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from la4vla.probe_cases.motion import alignment
from la4vla.rng import RngUse, generator

EPSILON = 1e-8
"""Displacements below it have no direction; it also keeps SR's denominator from zero (FACTS 1.2: both are lost)."""

RESAMPLES = 2000
COVERED = 0.95
NAMES = ("dar", "dcs", "sr", "ss")


@dataclass(frozen=True)
class Trials:
    """What the scores are computed from.

    predicted_N3   endpoint displacements, in the frame and unit of truth_N3
    truth_N3       demonstrated ones
    toward_N3      unit vectors of the directions that the instructions name
    label_N        one integer a direction
    clip_N         one integer a clip. Trials of one clip are alike, so intervals resample clips
    """

    predicted_N3: np.ndarray
    truth_N3: np.ndarray
    toward_N3: np.ndarray
    label_N: np.ndarray
    clip_N: np.ndarray

    def __len__(self) -> int:
        return len(self.label_N)

    def of(self, labels: Sequence[int]) -> Trials:
        """Those with one of `labels`."""
        kept_N = np.isin(self.label_N, labels)
        return Trials(**{item.name: self.__dict__[item.name][kept_N] for item in fields(self)})


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def consistency(predicted_N3: np.ndarray, truth_N3: np.ndarray) -> np.ndarray:
    """float [N]: cosine with the demonstrated displacement, 0 where either is shorter than EPSILON. DCS is the mean."""
    length_N = np.linalg.norm(predicted_N3, axis=1) * np.linalg.norm(truth_N3, axis=1)
    short_N = np.minimum(np.linalg.norm(predicted_N3, axis=1), np.linalg.norm(truth_N3, axis=1)) < EPSILON
    return np.where(short_N, 0.0, (predicted_N3 * truth_N3).sum(axis=1) / np.where(short_N, 1.0, length_N))


def distances(points_ND: np.ndarray) -> np.ndarray:
    """float64 [N, N]: Euclidean."""
    return cdist(points_ND, points_ND)


def separability(distance_NN: np.ndarray, label_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """SR, float [R]: mean distance between directions over mean distance within them; NaN for a single direction.

    Within: mean over pairs, then over directions (those with two trials or more). Between: mean over pairs, then over
    pairs of directions.
    """
    member_CN = _members(label_N)
    weight_RCN = weight_RN[:, None, :] * member_CN
    size_RC = weight_RCN.sum(axis=2)
    sums_RCC = np.einsum("rcn,nm,rdm->rcd", weight_RCN, distance_NN, weight_RCN, optimize=True)
    pairs_RC = size_RC**2 - (weight_RCN**2).sum(axis=2)
    diagonal = np.arange(len(member_CN))
    within_R = _mean(_ratio(sums_RCC[:, diagonal, diagonal], pairs_RC))
    first, second = np.triu_indices(len(member_CN), 1)
    between_R = _mean(_ratio(sums_RCC[:, first, second], size_RC[:, first] * size_RC[:, second]))
    return between_R / (within_R + EPSILON)


def silhouette(distance_NN: np.ndarray, label_N: np.ndarray, weight_RN: np.ndarray) -> np.ndarray:
    """SS, float [R]: mean over trials of (b - a) / max(a, b); a: mean distance to its own direction's others, b: to the
    nearest other direction. 0 for a trial alone in its direction; NaN for a single direction."""
    member_CN = _members(label_N)
    if len(member_CN) < 2:
        return np.full(len(weight_RN), np.nan)
    own_N = member_CN.argmax(axis=0)
    nearest_RN = np.full(weight_RN.shape, np.inf)
    inside_RN = np.zeros(weight_RN.shape)
    for number, member_N in enumerate(member_CN):
        weight_of_RN = weight_RN * member_N
        size_R1 = weight_of_RN.sum(axis=1, keepdims=True)
        sum_RN = weight_of_RN @ distance_NN
        mine_N = own_N == number
        inside_RN = np.where(mine_N, _ratio(sum_RN, size_R1 - weight_RN), inside_RN)
        nearest_RN = np.where(mine_N, nearest_RN, np.fmin(nearest_RN, _ratio(sum_RN, size_R1)))
    alone_RN = np.isnan(inside_RN)
    largest_RN = np.maximum(np.where(alone_RN, 0.0, inside_RN), nearest_RN)
    gap_RN = np.where(alone_RN | (largest_RN == 0.0), 0.0, nearest_RN - inside_RN)
    value_RN = gap_RN / np.where(largest_RN == 0.0, 1.0, largest_RN)
    return (weight_RN * value_RN).sum(axis=1) / weight_RN.sum(axis=1)


def scores(trials: Trials, weight_RN: np.ndarray) -> dict[str, np.ndarray]:
    """NAMES -> float [R]."""
    total_R = weight_RN.sum(axis=1)
    distance_NN = distances(trials.predicted_N3)
    return {
        "dar": weight_RN @ alignment(trials.predicted_N3, trials.toward_N3) / total_R,
        "dcs": weight_RN @ consistency(trials.predicted_N3, trials.truth_N3) / total_R,
        "sr": separability(distance_NN, trials.label_N, weight_RN),
        "ss": silhouette(distance_NN, trials.label_N, weight_RN),
    }


def resamples(label_N: np.ndarray, clip_N: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """float [count, N]: how often each trial was drawn. A clip's trials are drawn together; each direction is resampled
    by itself and keeps its number of clips."""
    draw = generator(seed, RngUse.RESAMPLE, name)
    weight_RN = np.zeros((count, len(label_N)))
    for label in np.unique(label_N):
        places = np.flatnonzero(label_N == label)
        clips, clip_of = np.unique(clip_N[places], return_inverse=True)
        drawn_RC = draw.multinomial(len(clips), np.full(len(clips), 1 / len(clips)), size=count)
        weight_RN[:, places] = drawn_RC[:, clip_of]
    return weight_RN


def estimate(trials: Trials, seed: int, name: str) -> dict[str, Estimate]:
    """NAMES -> value with a percentile interval over clips. seed, name: of the resampling. At least one trial.

    One clip in each direction gives no interval, because every resample is the same. A DAR of 0 or 1, which every
    resample repeats too, gets Wilson's interval for as many clips.
    """
    point = scores(trials, np.ones((1, len(trials))))
    spread = scores(trials, resamples(trials.label_N, trials.clip_N, RESAMPLES, seed, name))
    tail = (1 - COVERED) / 2
    repeated = len(np.unique(trials.clip_N)) > len(np.unique(trials.label_N))
    estimates = {}
    for key in NAMES:
        known_R = spread[key][np.isfinite(spread[key])]
        low, high = np.quantile(known_R, (tail, 1 - tail)) if len(known_R) and repeated else (np.nan, np.nan)
        estimates[key] = Estimate(float(point[key][0]), float(low), float(high))
    if estimates["dar"].value in (0.0, 1.0):
        clips = len(np.unique(trials.clip_N))
        all_or_none = binomtest(clips if estimates["dar"].value else 0, clips).proportion_ci(COVERED, "wilson")
        estimates["dar"] = Estimate(estimates["dar"].value, float(all_or_none.low), float(all_or_none.high))
    return estimates


def _members(label_N: np.ndarray) -> np.ndarray:
    """float [C, N]: 1 where a trial has the label."""
    return (np.unique(label_N)[:, None] == label_N[None, :]).astype(np.float64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to divide by."""
    shape = np.broadcast(numerator, denominator).shape
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)


def _mean(values_RC: np.ndarray) -> np.ndarray:
    """float [R]: over the entries that are not NaN; NaN where none is left."""
    known_RC = ~np.isnan(values_RC)
    return _ratio(np.where(known_RC, values_RC, 0.0).sum(axis=1), known_RC.sum(axis=1))
