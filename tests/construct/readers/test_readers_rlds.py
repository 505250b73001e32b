"""Why: RLDS is how most robot data is published, and readers of it need TensorFlow or guess: strings that lose their
last bytes, files that end too early, an action that RLDS does not define, sentences of the wrong level. Here are real
episodes with known sums, and small files with the features of Bridge and DROID."""

import json
import shutil
import zlib

import numpy as np
import pytest
import simplejpeg

from la4vla.config import load
from la4vla.construct import steps
from la4vla.construct.episodes import BadEpisode, Caption
from la4vla.construct.readers import open_dataset
from la4vla.construct.readers.example import parse_example, parse_sequence
from la4vla.types import UserError
from tests.construct.datasets import config_of
from tests.construct.rlds import (
    SAMPLE,
    TABLE,
    example,
    field,
    group,
    jpeg,
    picture,
    sequence,
    tensor,
    text,
    write_records,
    write_rlds,
)

OF_TABLE = {
    "state": ["observation/effector_translation"],
    "instruction": ["observation/instruction"],
    "views": {"front": "observation/rgb"},
}
CHAINS = {**OF_TABLE, "episode_id": "episode_id"}


def table(root=TABLE, captions=None, **read):
    made = config_of(root / "language_table/0.0.1", "rlds", "language_table", **{**OF_TABLE, **read})
    made.read.captions = str(root / "captions.json") if captions is None else captions
    made.read.episode_id = "episode_id" if made.read.captions.endswith(".json") else ""
    return open_dataset(made)


def check_facts(root, expected):
    """Sums and captions of episodes.json, which whoever recorded them wrote."""
    dataset, facts = table(root, last_step=True), json.loads((root / "episodes.json").read_text())
    by_goal = {(item["long_horizon_instruction"], item["steps"]): item for item in facts}
    total = np.zeros(3, int)
    for key in dataset.keys:
        episode = dataset.read(key)
        fact = by_goal.pop((episode.instruction, len(episode)))
        assert episode.action[0] == pytest.approx(fact["first_action"], abs=1e-7)
        assert episode.state[:, 0].sum() == pytest.approx(fact["sum_effector_x"], abs=1e-3)
        assert episode.action.sum(0) == pytest.approx(fact["sum_action"], abs=1e-5)
        spans = [Caption(item["start"], item["end"], item["instruction"]) for item in fact["captions"]]
        assert list(episode.captions) == spans and not dataset.video_faults(episode)
        total += (1, len(episode), len(spans))
    assert tuple(total) == expected and not by_goal


def test_real_episodes_are_what_their_facts_say():
    check_facts(TABLE, (3, 167, 7))
    dataset = table()
    episode = dataset.read("train-000000")
    assert (episode.views, episode.fps, episode.embodiment.action.names) == (("front",), 10.0, ("x", "y"))
    assert len(episode) == 39, "RLDS does not define the action of the last step"
    assert (episode.captions[-1].end, dataset.image_sizes(episode)) == (39, {"front": (180, 320)})
    first, last = (episode.frames("front", [t])[t] for t in (0, 38))
    assert first[:3] == b"\xff\xd8\xff" and first != last
    assert simplejpeg.decode_jpeg(last).shape == (180, 320, 3)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of 49 LanguageTable episodes is not here")
def test_the_whole_sample_is_what_its_facts_say():
    check_facts(SAMPLE, (49, 6304, 133))


def test_the_picture_shows_forward_below_and_the_robots_left_at_the_right():
    """So the robot's file is right about its axes: what moves between pictures is where the states say."""
    episode = table(last_step=True).read("train-000001")
    grey = np.array(
        [
            simplejpeg.decode_jpeg(image, colorspace="GRAY")[..., 0]
            for _, image in sorted(episode.frames("front", range(len(episode))).items())
        ],
        float,
    )
    change = np.abs(grey[4:] - grey[:-4])
    change[change < 25] = 0
    weight = change.sum((1, 2))
    down = (change.sum(2) * np.arange(180)).sum(1) / weight
    right = (change.sum(1) * np.arange(320)).sum(1) / weight
    forward, left, _ = episode.robot.frame.from_base(episode.embodiment.state.translation(episode.state))[2:-2].T
    assert np.corrcoef(forward, down)[0, 1] > 0.9 and np.corrcoef(left, right)[0, 1] > 0.9


def public_form(tmp_path, sentences=None):
    """The tiny episodes as the public data comes: a clip for each caption, which says its own sentence at every step;
    goals in records beside them, which are those of the README."""
    raw = json.loads((TABLE / "captions.json").read_text())["episodes"]
    dataset, episodes = table(last_step=True), []
    for key, about in zip(dataset.keys, raw, strict=True):
        episode = dataset.read(key)
        images = episode.frames("front", range(len(episode)))
        for item in about["captions"]:
            span = range(item["start"], item["end"] + 1)
            code = np.zeros((len(span), 512), np.int64)
            said = item["instruction"].encode()
            code[:, : len(said)] = np.frombuffer(said, np.uint8)
            episodes.append(
                {
                    "steps/action": episode.action[span.start : span.stop],
                    "steps/observation/effector_translation": episode.state[span.start : span.stop],
                    "steps/observation/instruction": code,
                    "steps/observation/rgb": [images[t] for t in span],
                }
            )
    of_step = group(
        action=tensor("float32", 2),
        observation=group(
            effector_translation=tensor("float32", 2), instruction=tensor("int32", 512), rgb=picture(180, 320)
        ),
    )
    root = tmp_path / "public"
    write_rlds(root / "language_table/0.0.1", of_step, episodes, files=(4, 3))
    return root, [
        (item["instruction"], about["long_horizon_instruction"]) for about in raw for item in about["captions"]
    ]


def test_clips_find_their_goals_by_sentence_and_first_picture(tmp_path):
    """The records of the tiny cut have the goal of its first episode alone."""
    root, expected = public_form(tmp_path)
    dataset = table(root, captions=str(TABLE / "captions"))
    for key, (low, goal) in zip(dataset.keys[:2], expected, strict=False):
        episode = dataset.read(key)
        assert episode.instruction == goal and episode.captions == (Caption(0, len(episode), low),)
    with pytest.raises(BadEpisode, match="has no goal for `push the star to the top side of the blue block` with the"):
        dataset.read(dataset.keys[2])
    plain = table(root, captions="")
    assert [plain.read(key).instruction for key in plain.keys] == [low for low, _ in expected]


def test_goals_may_stand_in_the_context(tmp_path):
    root, _ = public_form(tmp_path)
    record = json.loads((TABLE / "captions.json").read_text())["episodes"][0]
    images = table(last_step=True).read("train-000000").frames("front", range(40))
    lows = [item["instruction"].encode() for item in record["captions"]]
    starts = np.array([item["start"] for item in record["captions"]])
    context = {"long_horizon_instruction": [b"other  goal"], "captions": lows, "start_times": starts}
    whole, captions = {**context, "frames": [images[t] for t in range(40)]}, tmp_path / "captions.tfrecord"
    write_records(captions, [sequence(whole, {})])
    dataset = table(root, captions=str(captions))
    assert [dataset.read(key).instruction for key in dataset.keys[:2]] == ["other goal"] * 2
    write_records(captions, [sequence(whole, {}), sequence({**whole, "long_horizon_instruction": [b"third"]}, {})])
    with pytest.raises(BadEpisode, match=r"has two goals for .*, `other goal` and `third`"):
        dataset = table(root, captions=str(captions))
        dataset.read(dataset.keys[0])
    write_records(captions, [sequence(context, {})])
    with pytest.raises(UserError, match=r"record 0 is none of captions \(it has no 'frames'"):
        table(root, captions=str(captions))


BRIDGE = group(
    action=tensor("float32", 7),
    language_instruction=text(),
    is_last=tensor("bool"),
    observation=group(state=tensor("float32", 7), image_0=picture(16, 24), depth_0=picture(16, 24, 1, "uint16", "png")),
)
DROID = group(
    action=tensor("float64", 7),
    action_dict=group(cartesian_position=tensor("float64", 6), gripper_position=tensor("float64", 1)),
    observation=group(
        cartesian_position=tensor("float64", 6),
        gripper_position=tensor("float64", 1, encoding="zlib"),
        exterior_image_1_left=picture(16, 24),
    ),
    **{name: text() for name in ("language_instruction", "language_instruction_2", "language_instruction_3")},
)


def bridge(tmp_path, sentence=b"put the pot on the \xc3\xa9tag\xc3\xa8re\0", count=6):
    robot = tmp_path / "widowx.yaml"
    names = "{names: [x, y, z, rx, ry, rz, gripper], reference: %s, rotation: euler_xyz}"
    robot.write_text(
        "frame: {forward: +x, left: +y, up: +z, closed_on_nothing: 0.1, hold_margin: 0.05, open_from: 0.8}\n"
        f"control_hz: 5\nstate: {names % 'absolute'}\naction: {names % 'delta'}\n"
    )
    values = np.arange(count * 7, dtype=np.float32).reshape(count, 7) / 100
    made = {
        "steps/action": values / 10,
        "steps/observation/state": values,
        "steps/observation/image_0": [jpeg(10 * t) for t in range(count)],
        "steps/observation/depth_0": [b"\x89PNG"] * count,
        "steps/language_instruction": [sentence] * count,
        "steps/is_last": np.arange(count) == count - 1,
    }
    write_rlds(tmp_path / "bridge/1.0.0", BRIDGE, [made], episode_metadata=group(file_path=text()))
    return config_of(tmp_path / "bridge/1.0.0", "rlds", str(robot), last_step=True), values


def test_bridges_layout(tmp_path):
    config, values = bridge(tmp_path)
    dataset = open_dataset(config)
    episode = dataset.read("train-000000")
    assert episode.instruction == "put the pot on the étagère\0", "trailing zeros of a string are its own"
    assert np.allclose(episode.state, values) and np.allclose(episode.action, values / 10) and len(episode) == 6
    assert episode.views == ("observation_image_0",) and [note.kind for note in dataset.notes] == ["no_camera"]
    assert round(simplejpeg.decode_jpeg(episode.frames("observation_image_0", [4])[4]).mean()) == 40


def test_droids_layout(tmp_path):
    count = 5
    pose = np.arange(count * 6, dtype=np.float64).reshape(count, 6) / 100
    made = {
        "steps/action": np.zeros((count, 7)),
        "steps/action_dict/cartesian_position": pose + 0.5,
        "steps/action_dict/gripper_position": np.full((count, 1), 0.25),
        "steps/observation/cartesian_position": pose,
        "steps/observation/gripper_position": [zlib.compress(np.array([1.0]).tobytes())] * count,
        "steps/observation/exterior_image_1_left": [jpeg(10 * t) for t in range(count)],
        "steps/language_instruction": [b""] * count,
        "steps/language_instruction_2": [b"close the drawer"] * count,
        "steps/language_instruction_3": [b"shut it"] * count,
    }
    parts = ("cartesian_position", "gripper_position")
    config = config_of(
        write_rlds(tmp_path / "droid/1.0.0", DROID, [made, made], files=(1, 1)),
        "rlds",
        "droid_franka",
        state=[f"observation/{name}" for name in parts],
        action=[f"action_dict/{name}" for name in parts],
        instruction=["language_instruction", "language_instruction_2", "language_instruction_3"],
        views={"left": "observation/exterior_image_1_left"},
        last_step=True,
    )
    dataset = open_dataset(config)
    assert list(dataset.keys) == ["train-000000", "train-000001"]
    episode = dataset.read("train-000001")
    assert (episode.instruction, episode.number, episode.views) == ("close the drawer", 1, ("left",))
    assert np.allclose(episode.state[:, :3], pose[:, :3]) and np.allclose(episode.state[:, 6], 0)
    assert np.allclose(episode.action[:, :3], pose[:, :3] + 0.5) and np.allclose(episode.action[:, 6], 0.75)


def test_a_sentence_that_changes_names_parts_of_the_episode(tmp_path):
    config, _ = bridge(tmp_path)
    config.read.subtasks = "language_instruction"
    said = [b"open it", b"open it", b"", b"close it", b"close it", b"close it"]
    path = tmp_path / "bridge/1.0.0/made-train.tfrecord-00000-of-00001"
    made = {"steps/action": np.zeros((6, 7)), "steps/observation/state": np.zeros((6, 7))}
    made |= {"steps/observation/image_0": [jpeg(1)] * 6, "steps/language_instruction": said}
    write_records(path, [example(made)])
    episode = open_dataset(config).read("train-000000")
    assert episode.captions == (Caption(0, 2, "open it"), Caption(3, 6, "close it"))
    assert episode.instruction == "open it, then close it"
    config.read.subtasks = ""
    with pytest.raises(BadEpisode, match="language_instruction changes at step 2, so it names parts of the episode"):
        open_dataset(config).read("train-000000")


def spoil_record(data):
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def spoil_length(data):
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("spoil", "words", "sound"),
    [
        (lambda data: data[:-100], "is truncated in record 1, at byte", 1),
        (lambda data: data + b"1234", "is truncated in record 2, at byte", 0),
        (spoil_record, "record 1 has another checksum than it says", 1),
        (spoil_length, "the length of record 0 has another checksum than it says", 0),
    ],
)
def test_a_damaged_file_is_one_sentence_and_leaves_its_episodes_out(tmp_path, spoil, words, sound):
    root = tmp_path / "set"
    shutil.copytree(TABLE, root)
    path = next((root / "language_table/0.0.1").glob("*-00000-of-00002"))
    path.write_bytes(spoil(path.read_bytes()))
    made = config_of(root / "language_table/0.0.1", "rlds", "language_table", max_bad_episodes=2, **OF_TABLE)
    dataset = open_dataset(made)
    faults = [row["faults"] for row in steps.rows(steps.read(made, dataset), dataset)]
    assert [bool(found) for found in faults] == [not sound, True, False]
    assert all(len(found) == 1 and words in found[0] and "\n" not in found[0] for found in faults if found)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps/observation/state", None, "record 0 has no steps/observation/state, which features.json names"),
        ("steps/observation/state", np.zeros(41), "holds 41 numbers, and 6 steps of shape .7. are 42"),
        ("steps/observation/image_0", [b"x"] * 5, "observation/image_0 has 5 values for 6 steps"),
        ("steps/action", [b"x"] * 6, "action holds byte strings, and features.json says float32"),
        ("steps/language_instruction", [b"\xff"] * 6, "language_instruction is not UTF-8"),
    ],
)
def test_a_record_that_is_not_what_features_json_says_is_a_fault(tmp_path, name, value, words):
    config, values = bridge(tmp_path)
    made = {"steps/action": values, "steps/observation/state": values, "steps/observation/image_0": [jpeg(1)] * 6}
    made |= {"steps/language_instruction": [b"go"] * 6, name: value}
    path = tmp_path / "bridge/1.0.0/made-train.tfrecord-00000-of-00001"
    write_records(path, [example({key: item for key, item in made.items() if item is not None})])
    config.read.max_bad_episodes = 1
    dataset = open_dataset(config)
    (row,) = steps.rows(steps.read(config, dataset), dataset)
    assert len(row["faults"]) == 1
    with pytest.raises(BadEpisode, match=words):
        raise BadEpisode(row["faults"][0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, "read.split is test; .* has train"),
        ({"state": ["observation/pose"]}, "no tensor `observation/pose` in its steps; it has action, is_last"),
        ({"instruction": ["observation/state"]}, "no text `observation/state`"),
        ({"views": {"a": "observation/rgb"}}, "no view `observation/rgb`"),
        ({"captions": "nowhere.json"}, "no file or folder nowhere.json"),
        ({"path": "."}, "must name the folder of one version of an RLDS dataset"),
    ],
)
def test_a_name_that_is_not_there_is_one_sentence(tmp_path, changes, words):
    config, _ = bridge(tmp_path)
    for name, value in changes.items():
        setattr(config.read, name, value)
    with pytest.raises(UserError, match=words):
        open_dataset(config)


def test_captions_of_another_episode_are_refused(tmp_path):
    root = tmp_path / "set"
    shutil.copytree(TABLE, root)
    raw = json.loads((root / "captions.json").read_text())
    raw["episodes"][0]["steps"] += 1
    raw["episodes"][1]["captions"][0]["end"] += 1
    raw["episodes"][2]["episode_id"] = "another"
    (root / "captions.json").write_text(json.dumps(raw))
    dataset = table(root)
    for key, words in zip(
        dataset.keys, ("has 41 steps, and it has 40", "0 and 36 overlap", "no captions of"), strict=True
    ):
        with pytest.raises(BadEpisode, match=words):
            dataset.read(key)


def test_protobuf_is_taken_apart_whole():
    numbers = np.array([0, 1, 127, 128, 300, 2**62, -1, -(2**63)])
    parsed = parse_example(example({"a": numbers, "b": [b"", b"x\0\0"], "c": np.array([1.5], np.float32)}), "abc")
    assert parsed["a"].tolist() == numbers.tolist() and parsed["b"] == [b"", b"x\0\0"] and parsed["c"].tolist() == [1.5]
    unpacked = field(1, field(1, field(1, b"a") + field(2, field(3, b"\x08\x05\x08\x06"))))
    assert parse_example(unpacked, "a")["a"].tolist() == [5, 6], "lists may be written number by number"
    assert not parse_example(example({"a": numbers}), "b")
    lists = parse_sequence(sequence({"goal": [b"g"]}, {"t": [np.array([1]), np.array([2, 3])]}))
    assert [item.tolist() for item in lists.lists["t"]] == [[1], [2, 3]] and lists.context["goal"] == [b"g"]
    for broken in (b"\x0a\x05a", b"\xff" * 11, b"\x0b", field(1, field(1, field(1, b"a") + field(2, field(4, b""))))):
        with pytest.raises(ValueError, match=r"field|end|wire"):
            parse_example(broken, "a")


def test_what_belongs_to_rlds_alone_is_refused_elsewhere(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("schema: construct\nout_dir: o\nproposer: tasks\nread: {format: npz, path: p, robot: r}\n")
    for changes, words in (
        ([], "proposer=tasks takes the parts that a dataset names"),
        (["read.subtasks=task_index"], "read.subtasks goes with read.format lerobot or rlds"),
        (["read.captions=c.json"], "read.captions goes with read.format rlds"),
        (["read.format=rlds", "read.captions=c.json", "read.subtasks=a"], "leave one of them empty"),
    ):
        with pytest.raises(UserError, match=words):
            load(recipe, changes)
