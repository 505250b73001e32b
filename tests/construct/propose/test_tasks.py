"""Why: where a dataset says itself what the parts of a demonstration are called, those words and borders are the truth,
and nothing may be cut, worded or refused anew. And a robot that moves in a plane goes the same way as any other, with
words for its own left and right."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la4vla.config import load
from la4vla.construct.__main__ import run
from la4vla.construct.episodes import Caption
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.judge import judge
from la4vla.construct.propose.tasks import Tasks
from la4vla.construct.readers import open_dataset
from la4vla.construct.vocabulary import named_direction
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import read_index
from la4vla.types import UserError
from tests.construct.datasets import LENGTHS, config_of, v2_data, write_lerobot_v2
from tests.construct.rlds import TABLE

RECIPE = TABLE.parents[3] / "configs/construct/language_table.yaml"
PATHS = [f"read.path={TABLE}/language_table/0.0.1", f"read.captions={TABLE}/captions.json", "shards=1"]


def built(tmp_path, *changes):
    config = load(RECIPE, [*PATHS, f"out_dir={tmp_path}/out", *changes])
    run(config, "")
    return config


def clips(folder, views=()):
    index = read_index(folder)
    return [clip for number in range(len(index.shards)) for clip in read_shard(index, number, views)]


def test_a_datasets_own_parts_become_clips_with_both_levels(tmp_path):
    config = built(tmp_path)
    raw = json.loads((TABLE / "captions.json").read_text())["episodes"]
    wanted = [
        (item["instruction"], about["long_horizon_instruction"], (item["start"], item["end"]))
        for about in raw
        for item in about["captions"]
    ]
    for name in ("la", "vla"):
        made = clips(tmp_path / "out" / name)
        assert sorted((clip.instruction, clip.task, clip.span) for clip in made) == sorted(wanted)
        assert {clip.quality for clip in made} == {3.0} and {clip.primitive for clip in made} == {"subtask"}
    for clip in clips(tmp_path / "out/task"):
        assert clip.instruction == clip.task and clip.task in {goal for _, goal, _ in wanted}
    run(config, "texts")
    rows = [row for item in Ledger(tmp_path / "out/texts.texts.jsonl") for row in item["rows"]]
    asked = [row for row in rows if row["question"] == "next" and row["split"] != "_held_out_wordings"]
    assert sorted((row["answer"], row["task"]) for row in asked) == sorted((low, goal) for low, goal, _ in wanted)


def test_a_planar_robots_words_are_its_own_directions(tmp_path):
    """+y is the robot's left, though the picture's right: the camera stands opposite (test_readers_rlds.py)."""
    config = built(tmp_path, "proposer=kinematic")
    dataset = open_dataset(config)
    named = []
    for clip in clips(tmp_path / "out/la"):
        path = dataset.read(clip.episode).state
        start, end = clip.span
        forward, left = path[min(end, len(path) - 1)] - path[start]
        words = named_direction(clip.instruction)
        named.append(words)
        assert words[2] == 0 and words.any() and "gripper" not in clip.instruction
        assert words[0] * forward >= 0 and words[1] * left >= 0, (clip.instruction, forward, left)
    assert {tuple(sign) for sign in np.array(named)[:, :2]} >= {(0, 1), (0, -1), (1, 0), (-1, 0)}


def test_parts_begin_at_frames_with_images_and_still_ones_are_found(tmp_path):
    config = load(RECIPE, [*PATHS, f"out_dir={tmp_path}/out", "read.frame_stride=5"])
    episode = open_dataset(config).read("train-000000")
    named = (Caption(0, 3, "twitch"), Caption(3, 16, "push it"), Caption(16, 39, "then this"))
    result = Tasks(5).propose(replace(episode, captions=named), [])
    assert [(item.start, item.end, item.instruction) for item in result.proposals] == [
        (5, 16, "push it"),
        (20, 39, "then this"),
    ]
    assert result.rejected == ("`twitch` of frames 0 to 3: fewer than 5 frames.",)
    still = replace(episode, state=np.repeat(episode.state[:1], len(episode), axis=0))
    assert [item.score for item in judge(result.proposals, episode, config)] == [3.0, 3.0]
    assert [item.reasons for item in judge(result.proposals, still, config)] == [
        ("Nothing happens: the hand stays within 0.0 cm.",)
    ] * 2
    assert Tasks(5).propose(replace(episode, captions=()), []).failed.startswith("The episode has no captions")


def test_episodes_without_captions_stop_the_step_with_one_sentence(tmp_path):
    raw = json.loads((TABLE / "captions.json").read_text())
    raw["episodes"][1]["captions"] = []
    (tmp_path / "captions.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"1 of 3 episodes got no proposals \(train-000001\)") as caught:
        built(tmp_path, f"read.captions={tmp_path}/captions.json")
    assert "The episode has no captions, which proposer=tasks takes" in str(caught.value)


def lerobot(tmp_path, column, values, dtype="int64"):
    """A LeRobot set of which every episode has a column more. values: frames -> the column."""
    root = write_lerobot_v2(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][column] = {"dtype": dtype, "shape": [1]}
    (root / "meta/info.json").write_text(json.dumps(info))
    for number, length in enumerate(LENGTHS):
        path = v2_data(root, number)
        table = pq.read_table(path)
        if column in table.column_names:
            table = table.drop_columns([column])
        pq.write_table(table.append_column(column, values(length)), path)
    return root


def captions_of(root, column, **read):
    return open_dataset(config_of(root, "lerobot", "droid_franka", subtasks=column, **read)).read("episode-000001")


def test_lerobots_tasks_of_each_frame(tmp_path):
    root = lerobot(tmp_path, "task_index", lambda length: pa.array([0] * 20 + [1] * (length - 20)))
    tasks = [json.loads(line)["task"] for line in (root / "meta/tasks.jsonl").read_text().splitlines()]
    episode = captions_of(root, "task_index")
    assert episode.captions == (Caption(0, 20, tasks[0]), Caption(20, LENGTHS[1], tasks[1]))
    assert episode.instruction == f"{tasks[0]}, then {tasks[1]}", "nothing else names the whole"


def test_lerobots_subtasks(tmp_path):
    root = lerobot(tmp_path, "subtask_index", lambda length: pa.array([1] * 7 + [0] * (length - 7)))
    with pytest.raises(UserError, match=r"meta/subtasks.parquet has no subtask_index with its sentences"):
        captions_of(root, "subtask_index")
    names = pa.table({"subtask_index": [0, 1], "subtask": ["lift it", "grasp  it"]})
    pq.write_table(names, root / "meta/subtasks.parquet")
    episode = captions_of(root, "subtask_index")
    assert episode.captions == (Caption(0, 7, "grasp it"), Caption(7, LENGTHS[1], "lift it"))
    assert episode.instruction == "open the drawer", "the task stays the high level"
    with pytest.raises(UserError, match=r"has no column `subtasks`, which read.subtasks names; it has"):
        captions_of(root, "subtasks")


def test_lerobots_language_in_force(tmp_path):
    """Rows as lerobot-annotate 0.6.1 writes them: every frame repeats those of its episode."""
    rows = [("plan", 0.0, "all of it"), ("subtask", 1.0, "lift it"), ("subtask", 0.2, "grasp it")]
    cell = [
        {"role": "assistant", "content": said, "style": style, "timestamp": at, "camera": None, "tool_calls": None}
        for style, at, said in rows
    ]
    root = lerobot(tmp_path, "language_persistent", lambda length: pa.array([cell] * length), "language")
    episode = captions_of(root, "language_persistent")
    assert episode.captions == (Caption(3, 15, "grasp it"), Caption(15, LENGTHS[1], "lift it")), "at 15 Hz"


def test_a_whole_chain_learns_from_a_lerobot_set(tmp_path):
    said = [*["reach for it"] * 12, *["carry it"] * 20]
    root = lerobot(tmp_path, "said", lambda length: pa.array([*said, *["drop it"] * (length - 32)]), "string")
    config = config_of(root, "lerobot", "droid_franka", subtasks="said", images=False)
    config.proposer = "tasks"
    run(config, "")
    made = clips(tmp_path / "out/la")
    assert len(made) == 9 and {clip.instruction for clip in made} == {"reach for it", "carry it", "drop it"}
    assert {clip.task for clip in made} == {"put the cup on the shelf", "open the drawer"}
