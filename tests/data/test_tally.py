"""Why: statistics of a large dataset come from a histogram; a wrong bin, or a quantile that depends on the order of the
clips, would scale every action a little wrongly, and nobody would see it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from la4vla.data.normalize import compute_stats
from la4vla.data.tally import Tally, bin_of, middle_of
from la4vla.types import UserError

FINITE = st.floats(-(2.0**90), 2.0**90, width=32)


def tallied(values: np.ndarray, parts: int, exact: int):
    tally = Tally(tuple(f"d{dim}" for dim in range(values.shape[1])), exact)
    for part in np.array_split(values, parts):
        tally.add(part)
    return tally.stats()


def test_few_values_have_their_own_statistics_to_the_bit():
    values = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    assert tallied(values, 17, 10**6) == compute_stats(("d0", "d1", "d2"), values)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_many_values_have_nearly_theirs_in_any_order(scale):
    draws = np.random.default_rng(1)
    values = np.stack([draws.normal(0, scale, 20000), draws.uniform(-scale, 0, 20000), np.zeros(20000)], 1)
    values[::7, 2] = scale
    values = values.astype(np.float32)
    exact, found, turned = (
        compute_stats(("d0", "d1", "d2"), values),
        tallied(values, 200, 1000),
        tallied(values[::-1], 90, 1000),
    )
    assert (found.q01, found.q99, found.min, found.max, found.count) == (
        *(turned.q01, turned.q99, turned.min, turned.max, turned.count),
    )
    assert (found.min, found.max) == (exact.min, exact.max)
    np.testing.assert_allclose((found.mean, found.std), (exact.mean, exact.std), rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_allclose((found.q01, found.q99), (exact.q01, exact.q99), rtol=2**-12, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, (20,), elements=FINITE))
def test_bins_keep_the_order_and_their_middle_is_near(values):
    bins = bin_of(np.sort(values))
    assert (np.diff(bins) >= 0).all() and (bins >= 0).all() and (bins < 2**20).all()
    for value, number in zip(np.sort(values).tolist(), bins.tolist(), strict=True):
        assert abs(middle_of(number) - value) <= max(2**-12 * abs(value), 1e-37)


def test_bad_values_and_none_at_all_are_refused():
    with pytest.raises(UserError, match="not finite"):
        tallied(np.array([[np.nan]], np.float32), 1, 10)
    with pytest.raises(UserError, match="no frames"):
        Tally(("x",)).stats()
