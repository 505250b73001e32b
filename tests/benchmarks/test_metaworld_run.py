"""Why: the real simulator through the real runner. The expert must win here, or every success rate is suspect; and an
episode must be the same alone and in a full run (metaworld's own `reset(seed)` would break that silently)."""

from dataclasses import replace

import pytest

from benchmarks import evaluate, protocols, results
from benchmarks.evaluate import Request
from benchmarks.metaworld import SUITE
from la4vla.sim.metaworld import EMBODIMENT, buckets
from tests.hand_checkpoint import write_checkpoint

pytestmark = [pytest.mark.sim, pytest.mark.slow]
TASKS = ("reach-v3", "window-open-v3")


def request_(out, **changes) -> Request:
    protocol = protocols.load("metaworld/quickstart-v1", ["groups={easy: [reach-v3, window-open-v3]}", "horizon=100"])
    base = Request(
        suite=SUITE, protocol=protocol, checkpoint=None, untrained=False, out=out, workers=2, tasks=(), episodes=2,
        videos=0, device="cpu", command="",
    )  # fmt: skip
    return replace(base, **changes)


def keyed(folder):
    return {(row.task, row.episode): row for row in results.read_rows(folder)}


def test_the_expert_succeeds_through_the_runner(tmp_path):
    summary = evaluate.evaluate(request_(tmp_path))
    assert (summary.micro.successes, summary.micro.n) == (4, 4)
    assert all(row.gl in ("egl", "osmesa", "glfw") for row in results.read_rows(tmp_path))


def test_an_episode_alone_is_the_episode_of_a_full_run(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", EMBODIMENT, ("corner4",))
    short = protocols.load("metaworld/quickstart-v1", ["groups={easy: [reach-v3, window-open-v3]}", "horizon=24"])
    base = request_(tmp_path / "full", protocol=short, checkpoint=checkpoint)
    evaluate.evaluate(base)
    full = keyed(tmp_path / "full")
    assert len(full) == 4 and all(row.queries == 3 for row in full.values())
    evaluate.evaluate(replace(base, out=tmp_path / "alone", workers=1, tasks=("window-open-v3",), episodes=1))
    alone, whole = keyed(tmp_path / "alone")["window-open-v3", 0], full["window-open-v3", 0]
    assert (alone.success, alone.steps) == (whole.success, whole.steps)
    assert alone.final_state == pytest.approx(whole.final_state, abs=1e-4)
    assert alone.final_state != pytest.approx(full["window-open-v3", 1].final_state, abs=1e-4)


def test_groups_are_the_simulators_buckets():
    protocol = protocols.load("metaworld/mt50-v1")
    assert {task: protocol.group_of(task) for task in protocol.tasks} == buckets()
