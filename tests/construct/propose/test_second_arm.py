"""Why: instructions describe one hand. Where a second arm works in the same episode, a clip of the described hand would
teach that its words mean the other arm's motion as well. So while a dim moves that nothing describes there is no clip,
it is said, and the joints of the described arm can be told apart from it."""

import json
from pathlib import Path

import numpy as np
import pytest

from la4vla.construct.__main__ import run
from la4vla.construct.readers import open_dataset
from la4vla.construct.report import page
from la4vla.data.shards.writer import read_index
from tests.construct.datasets import config_of
from tests.construct.readers.test_plausible import FRAMES, ROBOT, action_of, state_of

IDLE_FROM = 40
"""From this frame on the second arm rests; the described hand then lifts, carries and lets go."""


@pytest.fixture
def config(tmp_path):
    """Two arms: the described one of test_plausible, and another that moves until IDLE_FROM, with a sensor's noise."""
    (tmp_path / "set").mkdir()
    for number in range(2):
        state = state_of(number)
        noise = np.random.default_rng(number).normal(0, 2e-4, (FRAMES, 2))
        other = np.minimum(np.arange(FRAMES), IDLE_FROM)[:, None] / 100 + noise
        action = action_of(state)
        both = np.concatenate([state, other], axis=1), np.concatenate([action, other], axis=1)
        np.savez(tmp_path / f"set/{number}.npz", state=both[0], action=both[1], instruction="move the cup")
    robot = tmp_path / "arms.yaml"
    robot.write_text(ROBOT.replace("gripper]", "gripper, left_x, left_y]"))
    return config_of(tmp_path / "set", "npz", str(robot), shards=1)


def rows(config):
    lines = Path(config.out_dir, "candidates.jsonl").read_text().splitlines()
    return [item for line in lines for item in json.loads(line)["candidates"]]


def test_there_is_no_clip_while_an_undescribed_arm_moves(config, capsys):
    run(config, "shards")
    found = rows(config)
    assert {item["score"] == 0 for item in found if item["start"] < IDLE_FROM} == {True}
    assert all(item["score"] >= 2 for item in found if item["start"] >= IDLE_FROM)
    assert any("`state left_x` moves, and no instruction describes it." in item["reasons"] for item in found)
    starts = [int(key[-5:]) for shard in read_index(Path(config.out_dir, "la")).shards for key in shard.keys]
    assert starts and min(starts) >= IDLE_FROM
    said = (
        "(undescribed, 2 of 2 episodes, first 0): no instruction describes the motion of action left_x, action left_y"
    )
    assert said in capsys.readouterr().out
    page.write(config, open_dataset(config))
    notes = json.loads(Path(config.out_dir, page.NUMBERS).read_text())["notes"]
    assert ("undescribed", 2) in {(note["kind"], note["episodes"]) for note in notes}


def test_the_cure_that_the_note_names_brings_the_clips_back(config):
    robot = Path(config.read.robot)
    robot.write_text(robot.read_text() + "same_arm: [left_x, left_y]\n")
    run(config, "shards")
    assert all(item["score"] >= 2 for item in rows(config))
    assert min(item["start"] for item in rows(config)) == 0
