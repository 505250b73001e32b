"""Why: how many actions of a chunk are executed is worth 20 points of success, and a chunk that survives its episode
is a bug that only shows as a worse number."""

import time

import numpy as np
import pytest

from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.rollouts import video
from benchmarks.rollouts.rollout import RolloutJob, make_env, roll_out
from tests.benchmarks.fake_env import POINT, protocol


class Script:
    """Answers with chunks of constant actions and writes down at which env step each query came."""

    def __init__(self, value: float, horizon: int = 8):
        self.value, self.horizon, self.asked = value, horizon, []

    def __call__(self, observation, number):
        self.asked.append((number, round(float(observation.state[0]), 6), int(observation.views["eye"].max())))
        return np.full((self.horizon, 1), self.value, np.float32)


def run(ask, video="", variant=CLEAN, **changes):
    job = RolloutJob("easy-a", 0, video, variant)
    env = make_env(POINT, protocol(**changes), ("eye",))
    return roll_out(env, job, protocol(**changes), ask)


@pytest.mark.parametrize("replan_every", [1, 3, 8])
def test_k_actions_are_executed_then_the_policy_sees_the_new_image(replan_every):
    ask = Script(0.0)
    outcome = run(ask, replan_every=replan_every, horizon=10)
    assert [step for _, _, step in ask.asked] == list(range(0, 10, replan_every))
    assert [number for number, _, _ in ask.asked] == list(range(len(ask.asked)))
    assert (outcome.success, outcome.steps, outcome.queries) == (False, 10, len(ask.asked))


def test_success_ends_the_episode_inside_a_chunk():
    ask = Script(1.0)
    outcome = run(ask, replan_every=8)
    start = ask.asked[0][1]
    assert outcome.success and outcome.steps == int(np.ceil((1 - start) / 0.1 - 1e-6))


def test_no_action_outlives_its_episode():
    """The same env, an episode cut inside a chunk, then another: the second one equals its run alone."""
    shared, alone = make_env(POINT, protocol(horizon=6), ("eye",)), make_env(POINT, protocol(horizon=6), ("eye",))
    rules = protocol(horizon=6, replan_every=4)
    first, second, reference = Script(0.7), Script(-0.2), Script(-0.2)
    roll_out(shared, RolloutJob("easy-a", 0), rules, first)
    roll_out(shared, RolloutJob("easy-b", 1), rules, second)
    roll_out(alone, RolloutJob("easy-b", 1), rules, reference)
    assert second.asked == reference.asked


def test_wait_steps_move_nothing_and_are_not_counted():
    ask = Script(0.0)
    outcome = run(ask, wait_steps=5, horizon=8, replan_every=4)
    assert [step for _, _, step in ask.asked] == [5, 9]
    assert outcome.steps == 8


def test_a_recorded_episode_runs_the_same_and_leaves_a_video(tmp_path):
    plain, recorded = Script(0.5), Script(0.5)
    path = tmp_path / "clip.mp4"
    first, second = run(plain), run(recorded, str(path))
    assert plain.asked == recorded.asked and (first.steps, first.success) == (second.steps, second.success)
    frames = video.read(path)
    assert len(frames) == -(-second.steps // 4) + 1
    assert frames[0].shape == (16, 16, 3) and frames[-1].mean() > frames[0].mean()


def test_a_video_shows_what_the_policy_saw(tmp_path):
    path = tmp_path / "clip.mp4"
    run(Script(0.0), str(path), Variant("view_dropout", 5), horizon=12)
    assert all(frame.max() == 0 for frame in video.read(path))


def test_every_query_has_its_latency():
    def slow(observation, number):
        time.sleep(0.05 * number)
        return np.zeros((8, 1), np.float32)

    outcome = run(slow, horizon=12, replan_every=4)
    assert len(outcome.latencies_s) == outcome.queries == 3
    assert outcome.latencies_s[0] < 0.05 <= outcome.latencies_s[1] and outcome.latencies_s[2] >= 0.1
    assert sum(outcome.latencies_s) == pytest.approx(outcome.seconds["policy"])
