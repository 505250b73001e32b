"""Why: a wrong interval or a silently episode-weighted mean changes who wins (the paper's MixPT > LA-VLA flips between
the two means), and nothing else in the project would notice."""

import math

import pytest

from benchmarks.results.stats import Rate, macro, micro, rate, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # scipy.stats.binomtest(k, n).proportion_ci(method="wilson"), rounded
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (437, 500, 0.84205, 0.90023)],
)
def test_wilson_against_reference(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_agrees_with_scipy_everywhere():
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 7, 50):
        for successes in range(n + 1):
            reference = stats.binomtest(successes, n).proportion_ci(method="wilson")
            assert wilson(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_nonsense(successes, n):
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(successes, n)


def counts(successes: int, n: int) -> Rate:
    return rate([True] * successes + [False] * (n - successes))


def test_paper_table_ranking_flips_between_the_means():
    """Table 4 of the paper: rates of the four MT50 buckets of 28, 11, 6 and 5 tasks with 10 episodes each."""
    la_vla = [counts(256, 280), counts(100, 110), counts(40, 60), counts(49, 50)]
    mixpt = [counts(249, 280), counts(104, 110), counts(40, 60), counts(50, 50)]
    assert macro(la_vla).value == pytest.approx(0.8675, abs=5e-4)
    assert macro(mixpt).value == pytest.approx(0.8753, abs=5e-4)
    assert micro(la_vla).value == pytest.approx(0.890, abs=5e-4)
    assert micro(mixpt).value == pytest.approx(0.886, abs=5e-4)


def test_macro_interval_narrows_with_groups_and_ignores_empty_ones():
    one, empty = counts(30, 50), rate([])
    assert math.isnan(empty.value) and empty.n == 0
    assert macro([one]) == one
    assert macro([one, empty]) == one
    four = macro([one] * 4)
    assert four.value == pytest.approx(one.value)
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2)
    assert math.isnan(macro([empty]).value) and math.isnan(micro([]).value)
