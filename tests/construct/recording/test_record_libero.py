"""Why: LIBERO has 50 stored states a task, so episode 1000 is state 0 again: demonstrations of a state that is
evaluated would make a success rate out of memory. And a LIBERO store must hold both views and what was executed."""

from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from benchmarks.results import protocols
from la4vla.config import ConstructConfig, ReadConfig, RecordConfig
from la4vla.construct.__main__ import run
from la4vla.construct.readers import open_dataset
from la4vla.construct.recording.record import RecordingJob, _identity, _missing, record, roll_out
from la4vla.construct.recording.simulators import simulator
from la4vla.construct.recording.store import check_store, episode_path, open_store
from la4vla.sim.libero import BLOCK, CAMERAS, LiberoEnv
from la4vla.types import UserError

TASK = "libero_object_03"
SETTINGS = RecordConfig(simulator="libero", tasks=[TASK], episodes=40, image_size=32, frame_stride=20, fast=True)


def test_no_demonstration_starts_where_the_held_out_protocol_does(tmp_path):
    evaluated = {episode % BLOCK for episode in protocols.load("libero/heldout-v1").episode_indices}
    numbers = _missing(tmp_path, SETTINGS)[TASK]
    assert len(numbers) == 40 and not evaluated & {number % BLOCK for number in numbers}
    assert numbers[0] == 1020 and numbers[30] == 1070
    told = RecordConfig(**{**vars(SETTINGS), "held_out": True})
    assert _missing(tmp_path, told)[TASK][0] == 1000


def test_metaworld_leaves_the_evaluated_states_alone(tmp_path):
    held_out = simulator("metaworld").held_out
    assert all(held_out(episode) for episode in protocols.load("metaworld/mt50-v1").episode_indices)
    settings = RecordConfig(tasks=["reach-v3"], episodes=2, first_episode=0)
    assert list(islice(_missing(tmp_path, settings)["reach-v3"], 2)) == [1000, 1001]


def test_a_store_of_before_libero_is_metaworlds(tmp_path):
    config = ConstructConfig(read=ReadConfig(path=str(tmp_path)), out_dir="", record=RecordConfig())
    identity = _identity(config, simulator("metaworld").embodiment)
    old = {name: value for name, value in identity.items() if name not in ("simulator", "views", "held_out")}
    open_store(tmp_path, {**old, "view": "corner4", "embodiment": "metaworld_sawyer"})
    check_store(tmp_path, identity)
    with pytest.raises(UserError, match="simulator=metaworld, not libero"):
        check_store(tmp_path, {**identity, "simulator": "libero"})


def store_of(folder, name, embodiment):
    """A config, and its store as store.json tells of it."""
    settings = RecordConfig(simulator=name, tasks=[simulator(name).scenes.figure], episodes=1)
    config = ConstructConfig(read=ReadConfig(path=str(folder)), out_dir=str(folder / "out"), record=settings)
    open_store(folder, {**_identity(config, simulator(name).embodiment), "embodiment": embodiment, "gl_backend": "egl"})
    path = episode_path(folder, simulator(name).scenes.figure, 1020)
    path.parent.mkdir()
    path.touch()
    return config


@pytest.mark.parametrize("name", ["libero", "metaworld"])
@pytest.mark.parametrize("bare", [True, False])
def test_a_store_whose_rotations_are_written_otherwise_is_refused(tmp_path, name, bare):
    """A store with a bare name has no rotation_near: nobody knows how it wrote the turn of a hand that points down."""
    embodiment = simulator(name).embodiment
    config = store_of(tmp_path, name, embodiment.name if bare else embodiment.to_dict())
    if name == "metaworld" or not bare:
        record(config)
        assert list(open_dataset(config).keys) == [f"{simulator(name).scenes.figure}-001020"]
        return
    for use in (record, open_dataset, lambda config: run(config, "shards")):
        with pytest.raises(UserError, match=r"state\.rotation_near=\[0.*, not \[3\.1416.*record anew"):
            use(config)


def test_a_store_of_another_robot_is_refused(tmp_path):
    config = store_of(tmp_path, "libero", "libero_panda")
    config.record.simulator, config.record.tasks = "metaworld", ["reach-v3"]
    with pytest.raises(UserError, match=r"embodiment\.name=libero_panda, not metaworld_sawyer"):
        open_dataset(config)
    faster = replace(simulator("libero").embodiment, control_hz=10.0)
    config = store_of(tmp_path / "faster", "libero", faster.to_dict())
    with pytest.raises(UserError, match=r"embodiment\.control_hz=10\.0, not 20\.0"):
        record(config)


@pytest.mark.sim
def test_an_episode_holds_both_views_and_replays(libero):
    number = 1020
    with closing(LiberoEnv(CAMERAS, 32, 410, True)) as env:
        episode = roll_out(env, RecordingJob("", TASK, number, SETTINGS, 90))
        assert episode is not None and episode.views == CAMERAS and episode.script is None
        assert [len(episode.frames(view, range(0, len(episode), 20))) for view in CAMERAS] == [
            -(-len(episode) // 20)
        ] * 2
        env.reset(TASK, number)
        for _ in range(10):
            state = env.step(np.array([0, 0, 0, 0, 0, 0, -1])).state
        successes = []
        for stored, action in zip(episode.state, episode.executed, strict=True):
            np.testing.assert_array_equal(state, stored)
            result = env.step(action)
            state = result.state
            successes.append(result.success)
    assert successes.index(True) == len(episode) - 6
