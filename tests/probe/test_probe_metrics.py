"""Why: a score that is wrong by a definition looks as plausible as a right one. Each is checked against numbers worked
by hand, the silhouette against scikit-learn's."""

from dataclasses import fields

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from la4vla.probe.metrics import (
    NAMES,
    Trials,
    consistency,
    distances,
    estimate,
    resamples,
    scores,
    separability,
    silhouette,
)
from la4vla.probe_cases.motion import alignment

UP, DOWN = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])


def once(count: int) -> np.ndarray:
    return np.ones((1, count))


def test_alignment_is_the_open_half_space():
    predicted = np.array([[5, 5, 0.1], [0, 0, -1], [1, 1, 0], [0, 0, 0]], float)
    assert alignment(predicted, np.array([UP, DOWN, UP, UP])).tolist() == [True, True, False, False]


def test_consistency_is_a_cosine_and_zero_without_a_direction():
    predicted = np.array([[1, 0, 1], [0, 0, -3], [0, 0, 1e-9], [0, 0, 1]], float)
    truth = np.array([[0, 0, 2], [0, 0, 2], [0, 0, 2], [0, 0, 0]], float)
    np.testing.assert_allclose(consistency(predicted, truth), [np.sqrt(0.5), -1, 0, 0])


def test_separability_by_hand():
    """On a line: up at 0 and 2, down at 10 and 14, left at 30. Within 2 and 4 (left has no pair), mean 3. Between
    up-down 11, up-left 29, down-left 18, mean 58 / 3; the pairs of directions count alike."""
    line = np.zeros((5, 3))
    line[:, 0] = [0, 2, 10, 14, 30]
    labels = np.array([0, 0, 1, 1, 2])
    np.testing.assert_allclose(separability(distances(line), labels, once(5)), [58 / 9], rtol=1e-7)


def test_silhouette_by_hand_and_as_scikit_learn_has_it():
    line = np.array([[0.0, 0, 0], [2, 0, 0], [10, 0, 0]])
    # 0: a = 2, b = 10; 2: a = 2, b = 8; 10 is alone
    np.testing.assert_allclose(silhouette(distances(line), np.array([0, 0, 1]), once(3)), [(0.8 + 0.75 + 0) / 3])
    draw = np.random.Generator(np.random.Philox(0))
    labels = np.repeat([3, 5, 9, 11], [20, 1, 12, 7])
    points = draw.normal(size=(40, 3)) + labels[:, None] / 4
    np.testing.assert_allclose(silhouette(distances(points), labels, once(40))[0], silhouette_score(points, labels))


def test_one_direction_has_no_separation_to_measure():
    trials = Trials(np.eye(3), np.eye(3), np.tile(UP, (3, 1)), np.zeros(3, int), np.arange(3))
    found = estimate(trials, 0, "one")
    assert np.isnan([found["sr"].value, found["ss"].value, found["sr"].low, found["ss"].high]).all()
    assert found["dar"].value == pytest.approx(1 / 3) and found["dcs"].value == 1


def test_a_trial_drawn_twice_weighs_as_two_but_is_no_pair_of_its_own():
    """Weights on N trials against the same trials written out, without the pairs of a trial and itself."""
    draw = np.random.Generator(np.random.Philox(1))
    labels = np.array([0] * 4 + [1] * 4)
    points = draw.normal(size=(8, 3)) + labels[:, None]
    weights = np.array([2, 1, 0, 1, 3, 0, 1, 0])
    rows = np.repeat(np.arange(8), weights)
    different = rows[:, None] != rows[None, :]
    distance = distances(points)[rows][:, rows]
    own = labels[rows][:, None] == labels[rows][None, :]
    first = (labels[rows] == 0)[:, None] & (labels[rows] == 0)[None, :]
    within = [distance[own & different & first].mean(), distance[own & different & ~first].mean()]
    wanted = distance[~own].mean() / np.mean(within)
    trials = Trials(points, points, np.tile(UP, (8, 1)), labels, np.arange(8))
    found = scores(trials, weights[None].astype(float))
    np.testing.assert_allclose(found["sr"], wanted, rtol=1e-6)
    np.testing.assert_allclose(found["dar"], (points[rows] @ UP > 0).mean())
    inside = np.array([distance[row][own[row] & different[row]].mean() for row in range(len(rows))])
    outside = np.array([distance[row][~own[row]].mean() for row in range(len(rows))])
    np.testing.assert_allclose(found["ss"], ((outside - inside) / np.maximum(outside, inside)).mean())


def test_intervals_cover_repeat_and_shrink():
    labels = np.array([0, 1] * 40)
    draw = np.random.Generator(np.random.Philox(2))
    toward = np.where(labels[:, None] == 0, UP, DOWN)
    trials = Trials(toward + draw.normal(size=(80, 3)), toward, toward, labels, np.arange(80))
    found, again, fewer = (
        estimate(trials.of([0, 1]), 0, "a"),
        estimate(trials, 0, "a"),
        estimate(part(trials), 0, "a"),
    )
    assert found == again != estimate(trials, 1, "a")
    for name in NAMES:
        assert found[name].low < found[name].value < found[name].high
        assert found[name].high - found[name].low < fewer[name].high - fewer[name].low
    share = found["dar"].value  # of a share the percentile interval is about that of the normal approximation
    assert found["dar"].high - found["dar"].low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 80), rel=0.15)


def part(trials: Trials) -> Trials:
    return Trials(*(getattr(trials, item.name)[:16] for item in fields(trials)))


def test_directions_keep_their_clips_and_clips_their_trials_in_a_resample():
    labels = np.array([0] * 3 + [1] * 9)
    clips = np.array([0, 1, 2, *[3, 3, 3, 4, 4, 4, 5, 5, 5]])
    weights = resamples(labels, clips, 50, 0, "x")
    assert (weights[:, :3].sum(axis=1) == 3).all() and (weights[:, 3:].sum(axis=1) == 9).all()
    assert (weights[:, 3::3] == weights[:, 4::3]).all() and (weights[:, 3::3] == weights[:, 5::3]).all()
    assert len(np.unique(weights, axis=0)) > 20


def test_copies_of_a_trial_are_no_more_evidence():
    labels = np.array([0, 1] * 10)
    draw = np.random.Generator(np.random.Philox(3))
    toward = np.where(labels[:, None] == 0, UP, DOWN)
    once_each = Trials(toward + 2 * draw.normal(size=(20, 3)), toward, toward, labels, np.arange(20))
    four_times = Trials(*(np.repeat(getattr(once_each, item.name), 4, axis=0) for item in fields(once_each)))
    one, four = estimate(once_each, 0, "a")["dar"], estimate(four_times, 0, "a")["dar"]
    assert one.value == four.value and four.high - four.low == pytest.approx(one.high - one.low, abs=0.051)


def test_no_interval_is_claimed_that_resamples_cannot_show():
    """Wilson's lower end for 8 of 8: 8 / (8 + 1.96^2)."""
    labels = np.array([0, 1] * 4)
    toward = np.where(labels[:, None] == 0, UP, DOWN)
    perfect = estimate(Trials(toward, toward, toward, labels, np.arange(8)), 0, "a")["dar"]
    assert (perfect.value, perfect.high) == (1, 1) and perfect.low == pytest.approx(8 / (8 + 1.96**2), abs=1e-4)
    wrong = estimate(Trials(-toward, toward, toward, labels, np.arange(8)), 0, "a")["dar"]
    assert (wrong.value, wrong.low) == (0, 0) and wrong.high == pytest.approx(1 - perfect.low)
    half = np.concatenate([toward[:4], -toward[4:]])
    one_each = Trials(half, toward, toward, labels, labels)
    found = estimate(one_each, 0, "a")
    assert 0 < found["dar"].value < 1 and all(np.isnan(found[name].low) for name in NAMES)
