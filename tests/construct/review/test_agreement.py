"""Why: alpha is what a dataset's quality is claimed with. It must be the published formula, not something near it, and
where it means nothing it must say so instead of printing a number."""

from itertools import permutations

import numpy as np
import pytest

from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.review.agreement import Agreement, alpha, measure
from la4vla.construct.scores import Score

CANDIDATES = {f"e-{start:05d}": Proposal(start, start + 10, "move", "EMPTY", "", (0, 0, 0)) for start in range(0, 500)}


def score(unit, annotator, quality, confidence=2, start=None, end=None):
    start, end = unit if start is None else start, unit + 10 if end is None else end
    return Score(f"e-{unit:05d}", annotator, quality, confidence, start, end)


def formula(units):
    """FACTS 1.3.5 word by word: 1 - D_o / D_e, squared differences over ordered pairs, lone scores left out."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum(sum((a - b) ** 2 for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / n
    expected = sum((a - b) ** 2 for a, b in permutations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


def test_alpha_by_hand():
    """Three units (3, 3), (2, 1), (0, 0). Observed: one pair differs by 1, both ways round: 2 / 6. Values 3 3 2 1 0 0:
    sum 9, sum of squares 23, so ordered pairs give 2 (6 * 23 - 81) = 114, over 30. 1 - (1 / 3) / 3.8 = 52 / 57."""
    value, why = alpha([[3, 3], [2, 1], [0, 0]])
    assert value == pytest.approx(52 / 57, abs=1e-12)
    assert why == ""


def test_alpha_is_the_formula_with_any_number_of_annotators():
    draws = np.random.default_rng(0)
    for _ in range(30):
        units = [list(draws.integers(0, 4, draws.integers(1, 5))) for _ in range(12)]
        value, _ = alpha(units)
        assert value == pytest.approx(formula(units), abs=1e-12)


@pytest.mark.parametrize(
    ("units", "why"),
    [([], "two annotators"), ([[3], [0]], "two annotators"), ([[2, 2], [2, 2, 2], [3]], "All scores are equal")],
)
def test_an_undefined_alpha_is_none_with_a_reason(units, why):
    value, reason = alpha(units)
    assert value is None and why in reason


def two_annotators(units, noise, seed):
    draws = np.random.default_rng(seed)
    truth = draws.integers(0, 4, units)
    seen = np.clip(truth[:, None] + draws.integers(-noise, noise + 1, (units, 2)), 0, 3)
    return [score(unit, name, int(seen[unit, i])) for unit in range(units) for i, name in enumerate("ab")]


def test_the_interval_holds_alpha_and_narrows_with_more_units():
    few, many = (measure(two_annotators(units, 1, 1), CANDIDATES, seed=0) for units in (30, 400))
    widths = []
    for result in (few, many):
        low, high = result.interval
        assert low < result.alpha < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert measure(two_annotators(30, 1, 1), CANDIDATES, seed=0) == few, "the seed decides the draws"
    assert measure(two_annotators(30, 1, 1), CANDIDATES, seed=1).interval != few.interval


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """The alpha of a very large sample is the truth; of 40 small samples an interval of 95 % misses few."""
    truth = alpha([[one.quality, two.quality] for one, two in pairs(two_annotators(20000, 1, 99))])[0]
    assert truth is not None
    hits = 0
    for seed in range(40):
        low, high = measure(two_annotators(60, 1, seed), CANDIDATES, seed=0).interval
        hits += low <= truth <= high
    assert hits >= 34


def pairs(scores):
    return zip(scores[::2], scores[1::2], strict=True)


@pytest.mark.parametrize(
    ("value", "band"),
    [
        (1.0, "reliable"),
        (0.8, "reliable"),
        (0.799, "tentative"),
        (0.667, "tentative"),
        (0.666, "unreliable"),
        (-0.5, "unreliable"),
        (None, "undefined"),
    ],
)
def test_bands(value, band):
    assert Agreement(value, "", None, 0, 0, 0, 0, None, None).band == band


def test_monitors_count_people_and_moved_boundaries():
    scores = [
        score(0, "a", 3, confidence=2, start=4),
        score(0, "b", 2, confidence=1),
        score(50, "a", 1, confidence=0, end=58),
    ]
    result = measure(scores, CANDIDATES, 0)
    assert (result.reviewed, result.units, result.scores, result.annotators) == (2, 1, 3, 2)
    assert result.confidence == pytest.approx(1.0)
    assert result.nudge == pytest.approx((4 + 0 + 0 + 0 + 0 + 2) / 6)
    assert result.alpha == pytest.approx(0.0)
    assert result.interval is None, "one unit shows nothing of other candidates"


def test_the_text_has_the_numbers_and_what_they_are_worth():
    sure = measure(two_annotators(40, 0, 1), CANDIDATES, 0).text()
    assert "alpha 1.000 [1.000, 1.000], reliable, on 40 candidates" in sure
    assert "80 scores of 40 candidates by 2 annotators" in sure
    assert "2.00 of 2, boundaries moved by 0.0 frames" in sure
    assert "All scores are equal" in measure([score(0, "a", 2), score(0, "b", 2)], CANDIDATES, 0).text()


def test_nobody_reviewed():
    result = measure([], CANDIDATES, 0)
    assert "nobody" in result.text()
    assert (result.alpha, result.interval, result.confidence, result.nudge) == (None, None, None, None)
    assert "two annotators" in result.why
