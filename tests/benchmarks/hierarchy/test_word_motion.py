"""Why: Table 1's last columns hang on what is normalised and over what a mean is taken; both can be reckoned by
hand."""

import numpy as np
import pytest

from benchmarks.hierarchy import motion
from benchmarks.hierarchy.intervals import difference, mean, pooled, sums
from la4vla.data.normalize import compute_stats

# x goes from -0.2 to 0.2, y from 0 to 0.1; the third dim never moves.
STATS = compute_stats(("x", "y", "grip"), np.array([[-0.2, 0.0, 1.0], [0.2, 0.1, 1.0]]))


def test_errors_by_hand():
    right = np.array([[0.2, 0.0, 1.0], [0.0, 0.1, 1.0]], np.float32)
    said = np.array([[0.1, 0.0, 1.0], [0.0, 0.1, 1.0], [9, 9, 9]], np.float32)  # a step past the demonstration's end
    found = motion.errors(said, right, motion.ActionRange(STATS))
    # Normalised right: (1, -1), (0, 1); said: (0.5, -1), (0, 1): one of four values is half off.
    assert found[motion.NORMALISED][motion.MSE] == pytest.approx(0.25 / 4)
    assert found[motion.NORMALISED][motion.MAE] == pytest.approx(0.5 / 4)
    assert found[motion.NORMALISED][motion.COSINE] == pytest.approx((0.5 + 1 + 1) / np.sqrt((0.25 + 2) * 3))
    assert found[motion.RAW][motion.MSE] == pytest.approx(0.01 / 6)
    assert found[motion.RAW][motion.MAE] == pytest.approx(0.1 / 6)


def test_rest_has_no_cosine():
    still = np.zeros((2, 3), np.float32)
    found = motion.errors(still, still, motion.ActionRange(STATS))
    assert found[motion.RAW] == {motion.MSE: 0.0, motion.MAE: 0.0, motion.COSINE: None}
    assert motion.flat(found)["cosine (raw)"] is None


def test_a_mean_weighs_rows_and_its_interval_draws_episodes():
    episodes = ["a"] * 8 + ["b"] * 2
    one = mean(sums([1.0] * 8 + [0.0, None], episodes))
    assert (one.value, one.rows, one.episodes) == (pytest.approx(8 / 9), 9, 2)
    assert (one.low, one.high) == (0.0, 1.0)  # of two episodes, a quarter of the draws holds one of them alone
    apart = mean(sums([1.0, 0.0] * 20, [str(number // 2) for number in range(40)]))
    assert (apart.low, apart.high) == (0.5, 0.5)  # every episode has the same mean
    assert mean(sums([1.0, 0.0], ["a", "a"])).low is None and mean(sums([None], ["a"])).value is None


def test_a_difference_is_paired_by_episode():
    before = sums([0.1, 0.5, 0.9], ["a", "b", "c"])
    change = difference(before, sums([0.2, 0.6, 1.0, 7.0], ["a", "b", "c", "other"]))
    assert change.value == pytest.approx(0.1) and change.episodes == 3
    assert (change.low, change.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert difference(before, sums([1.0], ["other"])).value is None
    assert pooled([before, before])["a"] == (pytest.approx(0.2), 2)
