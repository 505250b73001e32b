"""Why: a released checkpoint gets its own client's pictures and numbers or its rate means nothing; and nobody else may
ever get them, since some hold what no camera sees."""

import numpy as np
import pytest

from benchmarks.perturb.perturb import CLEAN
from benchmarks.results.results import Results
from benchmarks.rollouts import client_view
from benchmarks.rollouts.evaluate import EvaluationCondition, make_row
from benchmarks.rollouts.rollout import RolloutJob, check_served
from benchmarks.rollouts.runner import Runner
from la4vla.types import UserError
from tests.benchmarks.fake_env import CLIENTS_EMBODIMENT, EMBODIMENT, POINT, protocol

IMAGE = np.random.Generator(np.random.Philox(1)).integers(0, 256, (6, 6, 3), np.uint8)


def test_a_picture_is_turned_cropped_resized_and_swapped():
    same = client_view.picture(IMAGE, protocol())
    np.testing.assert_array_equal(same, IMAGE)
    seen = client_view.picture(IMAGE, protocol(image_size=6, orientation="mirrored", channels="bgr", crop=4))
    for row in range(4):
        for column in range(4):
            assert seen[row, column].tolist() == IMAGE[1 + row, 4 - column, ::-1].tolist()
    larger = client_view.picture(IMAGE, protocol(image_size=6, crop=2, shown_size=4))
    assert larger.shape == (4, 4, 3)
    near, far = IMAGE[2, 2].astype(float), IMAGE[2, 3].astype(float)
    np.testing.assert_allclose(larger[0, 1], 0.75 * near + 0.25 * far, atol=1)  # bilinear, not the nearest pixel


class Watching:
    """Pushes back, since its client turns actions round. Remembers what it was asked."""

    def __init__(self, embodiment) -> None:
        self.embodiment, self.seen = embodiment, []

    def check(self, embodiment, views) -> None:
        if embodiment != self.embodiment:
            raise UserError("the embodiment is another")

    def open(self, episode) -> None:
        pass

    def infer(self, observations, noise_keys) -> list[np.ndarray]:
        self.seen += observations
        return [np.full((4, 1), -1.0, np.float32) for _ in observations]

    def said(self):
        return []


def run(policy, tmp_path, **changes):
    with Runner(POINT, protocol(**changes), policy, ("eye",), 1, tmp_path) as runner:
        return next(iter(runner.run([RolloutJob("easy-a", 0)])))


@pytest.mark.slow
def test_a_clients_policy_sees_its_numbers_and_its_row_says_so(tmp_path):
    policy = Watching(CLIENTS_EMBODIMENT)
    end = run(policy, tmp_path, state="backwards", channels="bgr")
    assert end.outcome and end.outcome.success, "its actions were not turned round"
    first = policy.seen[0].state
    assert first.shape == (2,) and first[0] + first[1] == pytest.approx(1.0)
    assert len(end.outcome.final_state) == 1, "the row holds the simulator's own state"
    rules = protocol(state="backwards", channels="bgr")
    stored = Results(tmp_path / "rows", rules.hash, "id", "clean")
    row = make_row(end, rules, EvaluationCondition(CLEAN, tmp_path, stored, "id", 0, {}, "none"))
    given = {"orientation": "upright", "channels": "bgr", "crop": 0, "shown_size": 0, "state": "backwards"}
    assert row.inputs == given and row.protocol_hash != protocol().hash
    with pytest.raises(UserError, match="embodiment"):
        run(Watching(EMBODIMENT), tmp_path, state="backwards")
    ours = Watching(EMBODIMENT)
    run(ours, tmp_path)
    assert {seen.state.shape for seen in ours.seen} == {(1,)}, "another protocol's policy got the client's numbers"


def test_a_state_that_the_simulator_does_not_have_is_refused():
    with pytest.raises(UserError, match="state `sideways` is none of point; use one of own, backwards"):
        check_served(protocol(state="sideways"), POINT)
