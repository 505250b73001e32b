"""Why: LIBERO's fixtures and grippers remember earlier episodes; a rate that depends on who ran before is no rate."""

from dataclasses import replace

import pytest

from benchmarks.results import protocols
from benchmarks.rollouts.rollout import RolloutJob
from benchmarks.rollouts.runner import Runner
from la4vla.sim.libero import CAMERAS, task_table
from la4vla.sim.registry import SIMULATORS
from la4vla.types import UserError

SMOKE = protocols.load("libero/smoke-v1")


def final_states(out, workers, jobs):
    with Runner(SIMULATORS["libero"], replace(SMOKE, horizon=30), None, (), workers, out) as runner:
        ends = list(runner.run(jobs))
    assert all(end.outcome for end in ends), [end.error for end in ends]
    return {(end.job.task, end.job.episode): end.outcome.final_state for end in ends}


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.thorough
def test_an_episode_is_the_same_alone_and_at_any_parallelism(tmp_path, libero):
    """Two tasks, two states each; the expert, so that all that differs is the simulator's."""
    jobs = [RolloutJob(task, episode) for task, episode in protocols.select(SMOKE, [], None)]
    both = final_states(tmp_path / "two", 2, jobs)
    assert both == final_states(tmp_path / "one", 1, jobs[::-1])
    assert len(set(both.values())) == 4
    alone = final_states(tmp_path / "alone", 1, jobs[-1:])
    assert alone.items() <= both.items()


@pytest.mark.parametrize("title", [title for title in protocols.titles() if title.startswith("libero/")])
def test_protocols_name_tasks_cameras_and_an_action_that_exist(title):
    protocol = protocols.load(title)
    assert set(protocol.tasks) <= {row["task"] for row in task_table()}
    assert tuple(protocol.views) == CAMERAS and len(protocol.wait_action) == 7
    assert max(protocol.horizon_of(task) for task in protocol.tasks) + protocol.wait_steps <= 1000


def test_openvla_has_its_horizons():
    protocol = protocols.load("libero/openvla-v1")
    tasks = ("libero_spatial_00", "libero_object_09", "libero_goal_00", "libero_10_00")
    assert [protocol.horizon_of(task) for task in tasks] == [220, 280, 300, 520]
    assert len(protocols.select(protocol, [], None)) == 2000


def test_a_horizon_of_no_group_is_an_error():
    with pytest.raises(UserError, match="only groups that"):
        protocols.load("libero/openvla-v1", ["horizons={libero_11: 3}"])
