"""Why: whoever adds a simulator adds one descriptor. What recording, evaluation, golden frames and the doctor read of
it must agree with its env, and must reach a spawned worker."""

import pickle

import pytest

from la4vla.sim.registry import SIMULATORS, Setting, simulator
from la4vla.types import UserError


@pytest.mark.parametrize("sim", SIMULATORS.values(), ids=SIMULATORS)
def test_a_descriptor_agrees_with_itself_and_survives_the_way_to_a_worker(sim):
    assert pickle.loads(pickle.dumps(sim)) == sim
    tasks = sim.prompts()
    assert set(sim.scenes.drawn) <= set(sim.scenes.settling) <= set(tasks) and sim.scenes.figure in tasks
    settings = (sim.scenes.usual, *sim.scenes.others)
    assert {view for setting in settings for view in setting.views} | set(sim.views) <= set(sim.cameras)
    assert all(Setting.parse(str(setting)) == setting for setting in settings)
    assert len(sim.wait) == len(sim.embodiment.action.names)


def test_an_unknown_simulator_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"^record\.simulator: simulator `gazebo` is not known; use one of meta"):
        simulator("gazebo", "record.simulator")
