"""Why: a robot file that is wrong about a unit, a sign or a frame gives clips that look right by themselves: all scores
are 3, and no grasp is missed where none is known. So the numbers are held against what an arm can do. Each mistake here
must be said where people look, printed by the step, in report.html and counted in report.json; a sound dataset has no
note."""

import json
from pathlib import Path

import numpy as np
import pytest

from la4vla.construct.__main__ import run
from la4vla.construct.propose.candidates import Candidate
from la4vla.construct.readers import open_dataset
from la4vla.construct.readers.plausible import plausibility
from la4vla.construct.report import page
from tests.construct.datasets import config_of, handed_on, write_lerobot_v3
from tests.construct.recorded import episode

FRAMES, EPISODES = 90, 3
ROBOT = """
frame: {forward: +x, left: +y, up: +z, closed_on_nothing: 0.0, hold_margin: 0.05, open_from: 0.8}
control_hz: 10
state:
  {names: [x, y, z, rx, ry, rz, gripper], reference: absolute, rotation: euler_xyz, rotation_near: [3.1416, 0, 0]}
action: {names: [x, y, z, gripper], reference: absolute}
"""


def state_of(number):
    """Down to an object, which the fingers hold at an opening of 0.4, and up and left with it, where they let it go."""
    at, frames = [0, 30, 40, 60, 78, FRAMES - 1], np.arange(FRAMES)
    corners = np.array([[0.4, 0, 0.4], [0.4, 0, 0.1], [0.4, 0, 0.1], [0.4, 0, 0.4], [0.4, 0.3, 0.4], [0.4, 0.3, 0.4]])
    position = np.stack([np.interp(frames, at, corners[:, axis]) for axis in range(3)], axis=1)
    turn = np.stack([np.full(FRAMES, np.pi), 0.01 * np.sin(frames), 0.02 * np.sin(frames + number)], axis=1)
    opening = np.interp(frames, [0, 31, 36, 79, 84, FRAMES - 1], [1, 1, 0.4, 0.4, 1, 1])
    return np.concatenate([position, turn, opening[:, None]], axis=1)


def action_of(state):
    """The position of the next frame, and the gripper's command a moment before the fingers move."""
    following = np.concatenate([state[1:, :3], state[-1:, :3]])
    closed = (np.arange(FRAMES) >= 30) & (np.arange(FRAMES) < 78)
    return np.concatenate([following, np.where(closed, 0.0, 1.0)[:, None]], axis=1)


def scaled(columns, scale):
    def change(values):
        values[:, columns] *= scale

    return change


def inverted(values):
    values[:, -1] = 1 - values[:, -1]


def as_deltas(values):
    values[:, :3] = np.diff(values[:, :3], axis=0, prepend=values[:1, :3])


def untouched(values):
    pass


MISTAKES = {
    "sound": (untouched, untouched, ("", ""), set()),
    "action's gripper the other way round": (untouched, inverted, ("", ""), {"gripper_inverted", "no_grasp"}),
    "both the other way round": (inverted, inverted, ("", ""), {"no_grasp"}),
    "gripper in 0 .. 255": (scaled([6], 255), untouched, ("", ""), {"state_gripper_range", "no_grasp"}),
    "gripper in metres": (scaled([6], 0.08), untouched, ("", ""), {"gripper_still"}),
    "millimetres": (
        scaled([0, 1, 2], 1000), scaled([0, 1, 2], 1000), ("", ""), {"state_positions", "action_positions"},
    ),
    "millimetres of commands": (untouched, scaled([0, 1, 2], 1000), ("", ""), {"action_positions", "action_apart"}),
    "degrees": (scaled([3, 4, 5], 180 / np.pi), untouched, ("", ""), {"state_angles"}),
    "deltas that are called absolute": (untouched, as_deltas, ("", ""), {"action_apart"}),
    "absolute commands that are called deltas": (
        untouched, untouched, ("[x, y, z, gripper], reference: absolute", "[x, y, z, gripper], reference: delta"),
        {"action_absolute"},
    ),
    "no gripper in the state": (untouched, untouched, ("rz, gripper]", "rz, _]"), {"no_gripper", "no_grasp"}),
    "no gripper in the action": (untouched, untouched, ("y, z, gripper]", "y, z, _]"), {"no_gripper"}),
}  # fmt: skip
OTHERS = {"state_still", "action_still"}  # true of these motions, and no mistake


def dataset(tmp_path, mistake):
    """A config for a folder of npz files with that mistake."""
    change_state, change_action, (old, new), _ = MISTAKES[mistake]
    (tmp_path / "set").mkdir()
    for number in range(EPISODES):
        state = state_of(number)
        action = action_of(state)
        change_state(state)
        change_action(action)
        about = {"instruction": "move the cup", "task": "cup"}
        np.savez(tmp_path / f"set/{number}.npz", state=state, action=action, **about)
    robot = tmp_path / "arm.yaml"
    assert old in ROBOT
    robot.write_text(ROBOT.replace(old, new))
    return config_of(tmp_path / "set", "npz", str(robot), shards=1)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_said_once_wherever_people_look(tmp_path, capsys, mistake):
    config = dataset(tmp_path, mistake)
    run(config, "filter")
    printed = [line.split("(")[1].split(",")[0] for line in capsys.readouterr().out.splitlines() if line[:4] == "note"]
    page.write(config, open_dataset(config))
    notes = json.loads(Path(config.out_dir, page.NUMBERS).read_text())["notes"]
    html = Path(config.out_dir, page.REPORT).read_text()
    assert {note["kind"] for note in notes} - OTHERS == MISTAKES[mistake][3]
    assert sorted(printed) == sorted(note["kind"] for note in notes), "printed once, as in report.json"
    for note in notes:
        assert note["episodes"] == EPISODES and note["first"] == "0"
        assert html.count(note["text"].replace("'", "&#39;")) == 1


def test_the_cure_that_a_note_names_ends_the_note(tmp_path):
    config = dataset(tmp_path, "millimetres")
    robot = Path(config.read.robot)
    text = robot.read_text().replace("reference: absolute", "reference: absolute, length_unit: 0.001")
    robot.write_text(text)
    assert kinds(config) == set()
    robot.write_text(text.replace("length_unit: 0.001", "length_unit: 1"))
    assert kinds(config) == {"state_positions", "action_positions"}


def test_swapping_the_ends_as_the_note_says_brings_the_grasps_back(tmp_path):
    config = dataset(tmp_path, "action's gripper the other way round")
    robot = Path(config.read.robot)
    ends = "[x, y, z, gripper], reference: absolute, gripper_open: 0, gripper_closed: 1"
    robot.write_text(robot.read_text().replace("[x, y, z, gripper], reference: absolute", ends))
    assert kinds(config) == set()
    assert "grasp" in {item.primitive for item in candidates(config)}


def test_degrees_are_read_as_the_note_says(tmp_path):
    config = dataset(tmp_path, "degrees")
    robot = Path(config.read.robot)
    robot.write_text(robot.read_text().replace("rotation: euler_xyz", "rotation: euler_xyz, angle_unit: deg"))
    assert kinds(config) == set()


def test_what_is_sound_has_no_note():
    assert plausibility(episode(1000)) == []


def test_a_droid_set_has_no_note(tmp_path):
    config = config_of(write_lerobot_v3(tmp_path / "set"), "lerobot", "droid_franka")
    read = open_dataset(config)
    made = [read.read(key) for key in read.keys]
    assert not [note for item in made for note in (*item.notes, *plausibility(item))]
    assert handed_on(np.zeros((1, 7)))[0, 6] == 1


def kinds(config):
    read = open_dataset(config)
    made = [read.read(key) for key in read.keys]
    return {note.kind for item in made for note in (*item.notes, *plausibility(item))}


def candidates(config):
    run(config, "propose")
    lines = Path(config.out_dir, "candidates.jsonl").read_text().splitlines()
    return [Candidate.from_dict(item) for line in lines for item in json.loads(line)["candidates"]]


def test_the_command_stands_for_a_gripper_that_is_not_measured(tmp_path):
    made = candidates(dataset(tmp_path, "no gripper in the state"))
    lifted = [item for item in made if item.start == 40]
    assert lifted and all("closed gripper" in item.instruction for item in lifted)
    assert {item.status for item in lifted} == {""}, "a command does not tell whether something is held"
    assert "HOLDING" not in {item.status for item in made}


def test_a_measured_opening_tells_of_grasps_without_commands(tmp_path):
    made = candidates(dataset(tmp_path, "no gripper in the action"))
    assert {"grasp", "lift", "transport", "place"} <= {item.primitive for item in made}
    assert all(item.score >= 2 for item in made)


def test_nothing_is_said_of_a_gripper_that_nobody_sees(tmp_path):
    config = dataset(tmp_path, "sound")
    Path(config.read.robot).write_text(
        ROBOT.replace("rz, gripper]", "rz, _]").replace("z, gripper], ref", "z, _], ref")
    )
    made = candidates(config)
    assert made and {item.status for item in made} == {""}
    assert all("gripper" not in item.instruction and "hold" not in item.instruction for item in made)
    assert any("arm" in item.instruction for item in made)
    assert min(item.score for item in made) >= 2
    run(config, "shards")
    page.write(config, open_dataset(config))
    notes = json.loads(Path(config.out_dir, page.NUMBERS).read_text())["notes"]
    (note,) = [item for item in notes if item["kind"] == "no_gripper"]
    assert "no gripper in the state and action: instructions do not mention it" in note["text"]
