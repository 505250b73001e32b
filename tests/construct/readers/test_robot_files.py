"""Why: a robot file is right only together with the columns that its datasets have. So each that ships is read with a
small set of that layout, of a hand that goes down, grasps, lifts, carries to the left and lets go; a wrong unit, sign
or order would give other words."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la4vla.construct.__main__ import run
from la4vla.construct.propose.candidates import Candidate
from la4vla.construct.readers import open_dataset
from la4vla.construct.readers.plausible import plausibility
from la4vla.construct.robots.robot import ROBOTS, robot_file
from la4vla.directions import words_of
from tests.construct.datasets import config_of
from tests.construct.readers.test_plausible import FRAMES, action_of, state_of
from tests.construct.rlds import group, tensor, text, write_rlds

WORK = state_of(0)  # x y z, rx ry rz, opening
SENTENCE = "move the cup"


def write_lerobot(root, states, actions, fps, sentence=SENTENCE):
    """v2.1 without cameras, one file an episode. states, actions: [episode][T, D]."""
    columns = {"observation.state": states[0].shape[1], "action": actions[0].shape[1]}
    about = {name: {"dtype": "float32", "shape": [size], "names": None} for name, size in columns.items()}
    about |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "task_index")}
    info = {"codebase_version": "v2.1", "fps": fps, "chunks_size": 1000, "features": about, "video_path": None}
    info |= {"data_path": "data/chunk-000/episode_{episode_index:06d}.parquet", "total_episodes": len(states)}
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": sentence}) + "\n")
    rows = [{"episode_index": n, "tasks": [sentence], "length": len(state)} for n, state in enumerate(states)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, (state, action) in enumerate(zip(states, actions, strict=True)):
        frames = np.arange(len(state))
        table = {
            name: pa.FixedSizeListArray.from_arrays(values.astype(np.float32).ravel(), values.shape[1])
            for name, values in (("observation.state", state), ("action", action))
        }
        table |= {"timestamp": (frames / fps).astype(np.float32), "frame_index": frames, "index": frames}
        table |= {name: np.full(len(state), value) for name, value in (("episode_index", number), ("task_index", 0))}
        pq.write_table(pa.table(table), root / f"data/chunk-000/episode_{number:06d}.parquet")
    return root


def candidates_of(config):
    run(config, "filter")
    lines = Path(config.out_dir, "candidates.jsonl").read_text().splitlines()
    return [Candidate.from_dict(item) for line in lines for item in json.loads(line)["candidates"]]


def steps_of(values):
    return np.diff(values, axis=0, append=values[-1:])


def closing():
    return action_of(WORK)[:, 3:] < 0.5


def libero(root):
    """The 8 and 7 numbers of the LeRobot sets."""
    fingers = 0.04 * WORK[:, 6:]
    state = np.concatenate([WORK[:, :6], fingers, -fingers], axis=1)
    action = np.concatenate([steps_of(WORK[:, :3]) / 0.05, np.zeros((FRAMES, 3)), np.where(closing(), 1, -1)], axis=1)
    return config_of(write_lerobot(root, [state], [action], 20), "lerobot", "libero_panda")


def droid(root):
    state = np.concatenate([WORK[:, :6], 1 - WORK[:, 6:]], axis=1)
    action = np.concatenate([action_of(WORK)[:, :3], WORK[:, 3:6], closing()], axis=1)
    return config_of(write_lerobot(root, [state], [action], 15), "lerobot", "droid_franka")


def bridge(root):
    """observation/state and action of the RLDS set; angles are counted from a hand that points down."""
    state = np.concatenate([WORK[:, :3], WORK[:, 3:6] - [np.pi, 0, 0], WORK[:, 6:]], axis=1)
    action = np.concatenate([steps_of(WORK[:, :3]), np.zeros((FRAMES, 3)), ~closing()], axis=1)
    features = group(
        action=tensor("float32", 7), language_instruction=text(), observation=group(state=tensor("float32", 7))
    )
    values = {"steps/action": action.astype(np.float32), "steps/observation/state": state.astype(np.float32)}
    values["steps/language_instruction"] = [SENTENCE.encode()] * FRAMES
    return config_of(write_rlds(root, features, [values]), "rlds", "bridge_widowx", last_step=True)


def so101(root):
    """Joints in degrees and a gripper of 100, in half the size: it reaches 0.4 m."""
    place = WORK[:, :3] / 2 + [0.05, 0, 0]
    commanded = action_of(WORK)
    state = np.concatenate([joints_of(place), 100 * WORK[:, 6:]], axis=1)
    action = np.concatenate([np.roll(state[:, :5], -1, axis=0), 100 * commanded[:, 3:]], axis=1)
    action[-1, :5] = state[-1, :5]
    return config_of(write_lerobot(root, [state], [action], 30), "lerobot", "so101")


def joints_of(place_T3):
    """Degrees [T, 5] at which the SO-101's hand is at these places, by damped least squares."""
    kinematics = robot_file("so101").kinematics
    angles = np.tile([0.0, 0, 20, 60, 0], (len(place_T3), 1))

    def reached(angles):
        return kinematics.poses(dict(zip(kinematics.columns, angles.T, strict=True)))[0]

    for _ in range(25):
        now = reached(angles)
        slope = np.stack([reached(angles + step) - now for step in np.eye(5)], axis=2)
        across = slope @ slope.transpose(0, 2, 1) + 1e-8 * np.eye(3)
        angles += (slope.transpose(0, 2, 1) @ np.linalg.solve(across, (place_T3 - now)[..., None]))[..., 0]
    assert np.abs(reached(angles) - place_T3).max() < 1e-4
    return angles


LAYOUTS = {"libero": libero, "droid": droid, "bridge": bridge, "so101": so101}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shipped_robot_file_fits_its_datasets(tmp_path, layout):
    config = LAYOUTS[layout](tmp_path / "set")
    found = candidates_of(config)
    assert [item.primitive for item in found] == ["move", "grasp", "lift", "transport", "place"]
    for item, way in zip(found, ("down", "", "up", "left", ""), strict=True):
        assert item.score >= 2, item
        assert way in words_of(item.instruction) or not way, item.instruction
        assert {"right", "forward", "backward"}.isdisjoint(words_of(item.instruction)), item.instruction
    scale = 0.5 if layout == "so101" else 1.0
    assert np.abs(np.array(found[2].displacement) - [0, 0, 0.3 * scale]).max() < 0.04
    assert all(item.arm == "" and "arm" not in item.to_dict() for item in found)
    dataset = open_dataset(config)
    notes = {note.kind for key in dataset.keys for note in plausibility(dataset.read(key))}
    assert not notes, notes


@pytest.mark.parametrize("name", sorted(path.stem for path in ROBOTS.glob("*.yaml")))
def test_every_shipped_robot_file_loads_and_knows_where_its_hands_are(name):
    robot = robot_file(name).robot
    vectors = (robot.embodiment.state, robot.embodiment.action)
    assert all(len(set(spec.names)) == len(spec.names) for spec in vectors)
    arms = [arm.kinematics for arm in robot.arms] or [robot.kinematics]
    assert robot.embodiment.state.has_position or all(arms)


def test_joints_in_radians_that_are_called_degrees_are_a_note_and_the_other_way_round_a_fault(tmp_path):
    config = so101(tmp_path / "degrees")
    wrong = tmp_path / "so101.yaml"
    text = (ROBOTS / "so101.yaml").read_text().replace("models/so101.xml", str(ROBOTS / "models/so101.xml"))
    wrong.write_text(text.replace("unit: deg", "unit: rad"))
    config.read.robot = str(wrong)
    with pytest.raises(ValueError, match=r"1 of 1 episodes have faults.*joint shoulder_pan at -2.26 .*unit: deg"):
        run(config, "read")
    table = next((tmp_path / "degrees").rglob("*.parquet"))
    rows = pq.read_table(table)
    radians = np.radians(np.stack(rows["observation.state"].to_pylist())).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(radians.ravel(), 6)
    pq.write_table(
        rows.set_column(rows.schema.get_field_index("observation.state"), "observation.state", column), table
    )
    config.read.robot = "so101"
    dataset = open_dataset(config)
    notes = {note.kind: note.text for note in plausibility(dataset.read(dataset.keys[0]))}
    assert "must say unit: rad" in notes["joint_degrees"]


def test_another_model_makes_the_steps_anew(tmp_path):
    config = so101(tmp_path / "set")
    dataset = open_dataset(config)
    before = dataset.stamp(dataset.keys[0])
    (tmp_path / "arm.xml").write_text((ROBOTS / "models/so101.xml").read_text().replace("0.0624", "0.0625"))
    robot = tmp_path / "so101.yaml"
    for model, same in ((ROBOTS / "models/so101.xml", True), (tmp_path / "arm.xml", False)):
        robot.write_text((ROBOTS / "so101.yaml").read_text().replace("models/so101.xml", str(model)))
        texts = robot_file(str(robot)).text.replace(str(model), "models/so101.xml")
        assert (texts == robot_file("so101").text) == same
    config.read.robot = str(robot)
    assert open_dataset(config).stamp(dataset.keys[0]) != before
