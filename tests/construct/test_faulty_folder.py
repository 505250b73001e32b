"""Why: a folder as people have it is wrong in several ways at once, and each was once silent: a video span that is
shifted, a gripper the other way round, millimetres, an episode without a gripper, images of two sizes. One run must say
all of them, and with the setting that its message names it must build what is sound."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la4vla.data.shards.writer import read_index
from tests.construct.datasets import FRONT, write_video
from tests.construct.readers.test_plausible import FRAMES, ROBOT, action_of, state_of

FPS = 10
SOUND, SHIFTED, INVERTED, MILLIMETRES, NO_GRIPPER, LARGE = range(6)
FILES = {SOUND: 0, SHIFTED: 0, INVERTED: 0, MILLIMETRES: 0, NO_GRIPPER: 1, LARGE: 2}
"""Episode -> the number of the files that it is in."""


def table_of(episode):
    state = state_of(episode)
    action = action_of(state)
    if episode == INVERTED:
        action[:, 3] = 1 - action[:, 3]
    if episode == MILLIMETRES:
        state[:, :3], action[:, :3] = 1000 * state[:, :3], 1000 * action[:, :3]
    columns = {
        "observation.pose": pa.array(list(state[:, :6].astype(np.float32))),
        "action": pa.array(list(action.astype(np.float32))),
        "timestamp": pa.array((np.arange(FRAMES) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(FRAMES)),
        "episode_index": pa.array(np.full(FRAMES, episode)),
        "task_index": pa.array(np.zeros(FRAMES, np.int64)),
    }
    if episode != NO_GRIPPER:
        columns["observation.gripper"] = pa.array(list(state[:, 6:].astype(np.float32)))
    return pa.table(columns)


@pytest.fixture
def recipe(tmp_path):
    """A config file for a LeRobot v3.0 dataset of six episodes, five of them wrong in a way of their own."""
    root = tmp_path / "set"
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    about = {name: {"dtype": "float32", "shape": [1]} for name in ("observation.pose", "observation.gripper", "action")}
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "features": {**about, FRONT: {"dtype": "video", "shape": [32, 48, 3]}},
    }
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (root / "meta/info.json").write_text(json.dumps(info))
    pq.write_table(pa.table({"task_index": [0], "task": ["move the cup"]}), root / "meta/tasks.parquet")
    rows = []
    for episode, file in FILES.items():
        begin = [item for item, number in FILES.items() if number == file].index(episode) * FRAMES / FPS
        begin += 1.4 / FPS * (episode == SHIFTED)
        row = {"episode_index": episode, "length": FRAMES, "data/chunk_index": 0, "data/file_index": file}
        row |= {f"videos/{FRONT}/chunk_index": 0, f"videos/{FRONT}/file_index": file}
        row |= {f"videos/{FRONT}/from_timestamp": begin, f"videos/{FRONT}/to_timestamp": begin + FRAMES / FPS}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    for file in range(3):
        episodes = [episode for episode, number in FILES.items() if number == file]
        tables = pa.concat_tables([table_of(episode) for episode in episodes])
        pq.write_table(tables, root / f"data/chunk-000/file-{file:03d}.parquet")
        levels = [2 * frame + 10 * episode for episode in episodes for frame in range(FRAMES)]
        codec = "libsvtav1" if LARGE in episodes else "libx264"  # write_video makes the former twice as large
        write_video(root / f"videos/{FRONT}/chunk-000/file-{file:03d}.mp4", levels, FPS, codec)
    (tmp_path / "arm.yaml").write_text(ROBOT)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"schema: construct\nout_dir: {tmp_path}/out\nshards: 2\nread:\n  format: lerobot\n  path: {root}\n"
        f"  robot: {tmp_path}/arm.yaml\n  frame_stride: 3\n  state: [observation.pose, observation.gripper]\n"
    )
    return path


def construct(*words):
    done = subprocess.run([sys.executable, "-m", "la4vla.construct", *map(str, words)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def key(episode):
    return f"episode-{episode:06d}"


def test_all_that_is_wrong_is_said_and_all_that_is_sound_is_built(recipe):
    status, _, errors = construct(recipe)
    assert status == 2 and "Traceback" not in errors
    assert "3 of 6 episodes have faults, the first is episode-000001" in errors
    assert "read.max_bad_episodes=3" in errors

    status, printed, errors = construct(recipe, "read.max_bad_episodes=3")
    assert status == 0, errors
    lines = printed.splitlines()
    for episode, said in (
        (SHIFTED, "so that its images would be of other moments"),
        (NO_GRIPPER, "has no column observation.gripper"),
        (LARGE, "64 x 96 pixels, the others of this view have 32 x 48"),
    ):
        (line,) = [line for line in lines if line.startswith(f"fault, left out: {key(episode)}")]
        assert said in line
    for episode, kind in ((INVERTED, "gripper_inverted"), (MILLIMETRES, "state_positions")):
        (line,) = [line for line in lines if line.startswith(f"note ({kind},")]
        assert f"1 of 6 episodes, first {key(episode)}" in line

    out = recipe.parent / "out"
    built = {name for shard in read_index(out / "task").shards for name in shard.keys}
    assert built == {key(episode) for episode in (SOUND, INVERTED, MILLIMETRES)}
    numbers = json.loads((out / "report.json").read_text())
    counted = {note["kind"]: (note["episodes"], note["first"]) for note in numbers["notes"]}
    assert counted["gripper_inverted"] == (1, key(INVERTED)) and counted["state_positions"] == (1, key(MILLIMETRES))
    assert {row["key"] for row in numbers["episodes"] if row["faults"]} == {
        key(n) for n in (SHIFTED, NO_GRIPPER, LARGE)
    }
    html = Path(out / "report.html").read_text()
    for note in numbers["notes"]:
        assert html.count(note["text"].replace("'", "&#39;")) == 1
    assert html.count("left out: ") == 3


def test_a_repeated_run_says_the_same_and_builds_nothing_anew(recipe):
    first, again = (construct(recipe, "read.max_bad_episodes=3") for _ in range(2))
    assert first[0] == again[0] == 0
    said = [[line for line in run[1].splitlines() if line[:4] in ("note", "faul")] for run in (first, again)]
    assert said[0] == said[1] != []
    assert "up to date, nothing to build" in again[1]
