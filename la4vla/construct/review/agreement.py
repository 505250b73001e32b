"""Agreement: how reliable several people's scores of the same candidates are (FACTS 1.3.5).

Owns Krippendorff's alpha of the quality (interval metric, the `krippendorff` library) with its confidence interval, and
the means of confidence and moved boundaries. It only informs; steps.filter_candidates decides what is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.scores import QUALITIES, Score
from la4vla.rng import RngUse, generator
from la4vla.types import UserError

BANDS = ((0.8, "reliable"), (0.667, "tentative"), (float("-inf"), "unreliable"))
"""(least alpha, name of the band): Krippendorff's own limits (FACTS 1.3.5)."""

_RESAMPLES = 1000  # of the bootstrap; the ends of a 95 % interval are then the 25th values from either side
_FEWEST = 10  # units; resamples of fewer are too much alike to stand for other candidates
_MOSTLY = 0.95  # share of the resamples in which alpha must be defined, else there is no interval


@dataclass(frozen=True)
class Agreement:
    """How people's scores agree.

    alpha         Krippendorff's alpha; None if it is undefined
    why           a sentence that says why alpha is undefined; empty if it is defined
    interval      95 % confidence interval of alpha; None if there are too few units
    reviewed      number of candidates with a score
    units         number of candidates with two or more scores; alpha counts only these
    scores        number of scores
    annotators    number of annotators
    confidence    mean, 0 .. 2
    nudge         mean distance in frames by which a boundary was moved; unmoved boundaries count as 0
    """

    alpha: float | None
    why: str
    interval: tuple[float, float] | None
    reviewed: int
    units: int
    scores: int
    annotators: int
    confidence: float | None
    nudge: float | None

    @property
    def band(self) -> str:
        """reliable, tentative, unreliable or undefined."""
        if self.alpha is None:
            return "undefined"
        return next(name for least, name in BANDS if self.alpha >= least)

    def text(self) -> str:
        """The numbers in three lines; one line if nobody has scored anything."""
        if not self.scores:
            return "agreement: nobody has scored anything yet"
        value = self.why
        if self.alpha is not None:
            between = "" if self.interval is None else " [{:.3f}, {:.3f}]".format(*self.interval)
            value = f"Krippendorff's alpha {self.alpha:.3f}{between}, {self.band}, on {self.units} candidates"
        confidence = "-" if self.confidence is None else f"{self.confidence:.2f} of 2"
        nudge = "-" if self.nudge is None else f"{self.nudge:.1f} frames"
        return (
            f"agreement: {value}\n"
            f"{self.scores} scores of {self.reviewed} candidates by {self.annotators} annotators\n"
            f"mean confidence {confidence}, boundaries moved by {nudge} on average"
        )


def measure(scores: Sequence[Score], candidates: Mapping[str, Proposal], seed: int) -> Agreement:
    """The agreement of the scores.

    scores: at most one of each (candidate, annotator). candidates: by candidate_key, at least those with a score. seed:
    for the bootstrap. Raises UserError without the `krippendorff` library.
    """
    by_candidate: defaultdict[str, list[int]] = defaultdict(list)
    for score in scores:
        by_candidate[score.candidate].append(score.quality)
    units = [qualities for qualities in by_candidate.values() if len(qualities) > 1]
    value, why = alpha(units)
    moved = [
        abs(ours - theirs)
        for score in scores
        for ours, theirs in (
            (score.start, candidates[score.candidate].start),
            (score.end, candidates[score.candidate].end),
        )
    ]
    return Agreement(
        alpha=value,
        why=why,
        interval=None if value is None else _interval(units, seed),
        reviewed=len(by_candidate),
        units=len(units),
        scores=len(scores),
        annotators=len({score.annotator for score in scores}),
        confidence=float(np.mean([score.confidence for score in scores])) if scores else None,
        nudge=float(np.mean(moved)) if moved else None,
    )


def alpha(units: Sequence[Sequence[int]]) -> tuple[float | None, str]:
    """(Krippendorff's alpha of the units' qualities, empty text), or (None, why it is undefined).

    An alpha of 1 is perfect agreement, 0 is chance. Units with fewer than two qualities are left out.
    """
    counts_UQ = _counts([unit for unit in units if len(unit) > 1])
    if not len(counts_UQ):
        return (
            None,
            "No candidate has been scored by two annotators; review.overlap sets the share that two people get.",
        )
    if not _varies(counts_UQ):
        return None, "All scores are equal: alpha compares disagreement with chance, and here chance has none either."
    return _alpha(counts_UQ), ""


def _counts(units: Sequence[Sequence[int]]) -> np.ndarray:
    """How often each unit got each quality, int64 [U, Q]."""
    rows = [np.bincount(unit, minlength=len(QUALITIES)) for unit in units]
    return np.array(rows, np.int64).reshape(len(rows), len(QUALITIES))


def _varies(counts_UQ: np.ndarray) -> bool:
    return int((counts_UQ.sum(axis=0) > 0).sum()) > 1


def _alpha(counts_UQ: np.ndarray) -> float:
    try:
        import krippendorff
    except ImportError as error:
        raise UserError('agreement needs more packages; run pip install "la4vla[construct]".') from error
    domain = list(QUALITIES)
    return float(krippendorff.alpha(value_counts=counts_UQ, value_domain=domain, level_of_measurement="interval"))


def _interval(units: Sequence[Sequence[int]], seed: int) -> tuple[float, float] | None:
    """The 95 % interval, by drawing units with replacement. None with too few units, or if many draws have equal scores
    only."""
    if len(units) < _FEWEST:
        return None
    counts_UQ = _counts(units)
    draws = generator(seed, RngUse.BOOTSTRAP, "alpha")
    resamples = (counts_UQ[draws.integers(len(counts_UQ), size=len(counts_UQ))] for _ in range(_RESAMPLES))
    alphas = [_alpha(drawn_UQ) for drawn_UQ in resamples if _varies(drawn_UQ)]
    if len(alphas) < _MOSTLY * _RESAMPLES:
        return None
    low, high = np.quantile(alphas, [0.025, 0.975])
    return float(low), float(high)
