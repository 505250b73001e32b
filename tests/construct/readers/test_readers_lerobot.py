"""Why: LeRobot changed its layout twice, and a reader that is one frame late in a shared video, or takes a neighbour's
rows from a shared table, gives clips that look right. Images here carry frame and episode as a grey level. Faults of
every kind must be found while reading, leave out that one episode and say the cure."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la4vla.config import load
from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.episodes import BadEpisode
from la4vla.construct.readers import open_dataset
from la4vla.construct.readers.checks import sentence
from la4vla.construct.report import page
from la4vla.construct.robots.robot import ROBOTS
from la4vla.data.shards.writer import read_index
from la4vla.types import UserError
from tests.construct.datasets import (
    FPS,
    FRONT,
    LENGTHS,
    SENTENCES,
    WRIST,
    commands,
    config_of,
    grey,
    handed_on,
    level,
    poses,
    table_of,
    v2_data,
    v2_video,
    write_lerobot_v2,
    write_lerobot_v3,
    write_npz,
    write_video,
)

KEYS = ["episode-000000", "episode-000001", "episode-000002"]
GOLDEN = {
    "v2.0": lambda root: write_lerobot_v2(root, "v2.0"),
    "v2.1": lambda root: write_lerobot_v2(root, views=(FRONT, WRIST)),
    "v2.1-jpeg": lambda root: write_lerobot_v2(root, store="jpeg"),
    "v2.1-png": lambda root: write_lerobot_v2(root, store="png"),
    "v3.0": lambda root: write_lerobot_v3(root, views=(FRONT, WRIST)),
    "v3.0-av1": lambda root: write_lerobot_v3(root, codec="libsvtav1", index_name="__index_level_0__"),
    "v3.0-jpeg": lambda root: write_lerobot_v3(root, views=(FRONT, WRIST), store="jpeg"),
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Layout -> its dataset, written once, read only."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = GOLDEN[name](tmp_path_factory.mktemp("golden") / "set")
        return made[name]

    return get


@pytest.fixture
def copy(golden, tmp_path):
    """Layout -> a copy of its dataset that may be broken."""
    return lambda name: shutil.copytree(golden(name), tmp_path / "set")


def droid(root, **read):
    return config_of(root, "lerobot", "droid_franka", **read)


def faults(config):
    """Key -> faults, of a reading that lets all pass."""
    config.read.max_bad_episodes = 9
    dataset = open_dataset(config)
    return {row["key"]: row["faults"] for row in steps.rows(steps.read(config, dataset), dataset)}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_layout_gives_the_same_episodes(golden, name):
    dataset = open_dataset(droid(golden(name)))
    assert list(dataset.keys) == KEYS
    for number, key in reversed(list(enumerate(KEYS))):
        episode = dataset.read(key)
        assert (episode.instruction, episode.number, episode.fps) == (SENTENCES[number], number, FPS)
        length = LENGTHS[number]
        np.testing.assert_allclose(episode.state, handed_on(poses(length, number)), atol=1e-5)
        np.testing.assert_allclose(episode.action, handed_on(commands(length, number)), atol=1e-5)
        for view in episode.views:
            frames = episode.frames(view, range(length))
            shown = [level(frames[frame]) for frame in range(length)]
            levels = [grey(number, frame, view == "wrist") for frame in range(length)]
            np.testing.assert_allclose(shown, levels, atol=1.4)
        assert dataset.video_faults(episode) == []


def test_views_are_named_by_the_user_or_by_their_last_word(golden):
    assert open_dataset(droid(golden("v2.1"))).read(KEYS[0]).views == ("front", "wrist")
    named = open_dataset(droid(golden("v2.1"), views={"hand": WRIST})).read(KEYS[0])
    assert named.views == ("hand",)
    assert level(named.frames("hand", [7])[7]) == pytest.approx(grey(0, 7, wrist=True), abs=1.4)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_breaks_of_unicode_inside_a_text_end_no_line(copy, end):
    """LeRobot writes them as they are, as JSON may; people paste them from documents."""
    root = copy("v2.0")
    for name in ("tasks", "episodes"):
        path = root / f"meta/{name}.jsonl"
        path.write_bytes(path.read_text().replace("open the ", "open\u2028the\u0085").replace("\n", end).encode())
    assert [open_dataset(droid(root)).read(key).instruction for key in KEYS] == list(SENTENCES)


@pytest.mark.parametrize("numbers", [[0], [37], [38], [39], [44], [3, 41], [40, 41, 44], [0, 22, 44]])
@pytest.mark.parametrize("name", ["v2.0", "v3.0", "v3.0-av1"])
def test_single_frames_of_a_long_file_are_found(golden, name, numbers):
    episode = open_dataset(droid(golden(name))).read(KEYS[1])
    frames = episode.frames("front", numbers)
    assert list(frames) == numbers
    np.testing.assert_allclose([level(frames[n]) for n in numbers], [grey(1, n) for n in numbers], atol=1.4)


@pytest.mark.parametrize("name", ["v2.1-jpeg", "v3.0-jpeg"])
def test_images_that_are_jpeg_are_passed_on_untouched(golden, name):
    episode = open_dataset(droid(golden(name))).read(KEYS[2])
    stored = table_of(2, LENGTHS[2], 0, [FRONT], "jpeg")[FRONT][9].as_py()["bytes"]
    assert episode.frames("front", [9])[9] == stored


def rewrite(path, change):
    """Replaces columns of a parquet file: change(table) -> table."""
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def put(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values(table)))


def spoil(name, frame, value):
    def values(table):
        rows = np.stack(table[name].to_numpy())
        rows[frame, 1] = value
        return list(rows)

    return put(name, values)


def shift_stamps(table):
    return table["timestamp"].to_numpy() * np.float32(1.02)


FAULTS = {
    "one image too few": (
        lambda root: write_video(v2_video(root, 1), range(44)),
        "has 44 frames of the episode, but the table has 45",
    ),
    "video at another rate": (
        lambda root: write_video(v2_video(root, 1), range(45), fps=14),
        "drifts: frame 8 of the episode",
    ),
    "no video": (lambda root: v2_video(root, 1).unlink(), "is missing; get it, or read without images"),
    "no video inside": (lambda root: v2_video(root, 1).write_bytes(b"nothing" * 99), "cannot be opened"),
    "no column": (
        lambda root: rewrite(v2_data(root, 1), lambda table: table.drop_columns(["action"])),
        "has no column action",
    ),
    "text for numbers": (
        lambda root: rewrite(v2_data(root, 1), put("action", lambda table: ["up"] * 45)),
        "column action has dtype object",
    ),
    "another width": (
        lambda root: rewrite(v2_data(root, 1), put("action", lambda table: [[0.0] * 6] * 45)),
        "action has 6 numbers a frame, but the robot file names 7 for the action",
    ),
    "rows of different widths": (
        lambda root: rewrite(v2_data(root, 1), put("action", lambda table: [[0.0] * 7] * 44 + [[0.0]])),
        "rows of different lengths",
    ),
    "NaN": (lambda root: rewrite(v2_data(root, 1), spoil("action", 17, np.nan)), "not finite at frame 17, dim 1"),
    "infinity": (lambda root: rewrite(v2_data(root, 1), spoil("observation.state", 3, np.inf)), "at frame 3, dim 1"),
    "fewer rows": (
        lambda root: rewrite(v2_data(root, 1), lambda table: table.slice(0, 40)),
        "has 40 frames of episode 1, but meta/ says 45",
    ),
    "a frame left out": (
        lambda root: rewrite(v2_data(root, 1), put("frame_index", lambda table: [*range(9), *range(10, 46)])),
        "frame_index is not 0, 1, 2",
    ),
    "slow clock": (
        lambda root: rewrite(v2_data(root, 1), put("timestamp", shift_stamps)),
        "time stamps drift: frame 26",
    ),
    "no task": (
        lambda root: (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "put"}\n'),
        "no task text",
    ),
    "no task number": (
        lambda root: rewrite(v2_data(root, 1), put("task_index", lambda table: [None] * 45)),
        "column task_index has dtype",
    ),
    "no table": (lambda root: v2_data(root, 1).write_bytes(b"PAR1"), "cannot be read"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_out_its_episode_and_says_the_cure(copy, name):
    root = copy("v2.0")
    breaks, said = FAULTS[name]
    breaks(root)
    found = faults(droid(root))
    assert [bool(found[key]) for key in KEYS] == [False, True, False]
    assert said in found[KEYS[1]][0]


def test_an_image_column_that_is_listed_but_absent_is_a_fault(copy):
    root = copy("v2.1-jpeg")
    rewrite(v2_data(root, 1), lambda table: table.drop_columns([FRONT]))
    assert "read.images=false" in faults(droid(root))[KEYS[1]][0]


def test_an_episode_of_one_frame_is_too_short(tmp_path):
    root = write_lerobot_v2(tmp_path / "set", lengths=(60, 1, 52))
    assert "has 1 frame and needs at least 2" in faults(droid(root))[KEYS[1]][0]


def test_a_shared_video_that_ends_early_is_the_last_episodes_fault(copy):
    root = copy("v3.0")
    video = root / f"videos/{FRONT}/chunk-000/file-000.mp4"
    write_video(video, range(sum(LENGTHS) - 1))
    found = faults(droid(root))
    assert [bool(found[key]) for key in KEYS] == [False, False, True]
    assert "has 51 frames of the episode, but the table has 52" in found[KEYS[2]][0]


def test_a_video_with_rotten_images_is_found_when_they_are_decoded(copy):
    root = copy("v2.0")
    path = v2_video(root, 1)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 8
    data[begin : begin + 1500] = bytes(1500)
    path.write_bytes(data)
    assert not any(faults(droid(root)).values())
    found = faults(droid(root, decode=True))
    assert [bool(found[key]) for key in KEYS] == [False, True, False]
    assert "does not decode" in found[KEYS[1]][0]
    with pytest.raises(BadEpisode, match="does not decode"):
        open_dataset(droid(root)).read(KEYS[1]).frames("front", range(45))


def test_faults_beyond_the_bound_stop_the_reading_and_are_all_listed(copy):
    root = copy("v2.0")
    v2_data(root, 0).unlink()
    v2_data(root, 2).unlink()
    config = droid(root, max_bad_episodes=1)
    dataset = open_dataset(config)
    with pytest.raises(UserError, match=r"2 of 3 episodes have faults.*max_bad_episodes=2"):
        steps.read(config, dataset)
    config.read.max_bad_episodes = 2
    assert len(steps.read(config, dataset)) == 3


def test_notes_tell_of_still_columns_frozen_or_equal_cameras_and_another_rate(copy, tmp_path):
    root = copy("v2.0")
    write_video(v2_video(root, 1), [90] * 45)
    arm = tmp_path / "arm.yaml"
    config = droid(root, decode=True, views={"front": FRONT, "again": FRONT})
    dataset = open_dataset(config)
    ledger = {row["key"]: [note["text"] for note in row["notes"]] for row in steps.read(config, dataset)}
    assert "state never changes in ry, rz, gripper" in ledger[KEYS[0]]
    assert "again shows the same as front" in ledger[KEYS[0]]
    assert not any("frozen" in note for note in ledger[KEYS[0]])
    assert any("front is frozen: 44 of its 45" in note for note in ledger[KEYS[1]])
    arm.write_text((ROBOTS / "droid_franka.yaml").read_text().replace("control_hz: 15", "control_hz: 30"))
    config.read.robot = str(arm)
    ledger = steps.read(config, open_dataset(config))
    slow = {"kind": "rate", "text": "15 frames a second, but the robot file says control_hz 30"}
    assert all(slow in row["notes"] for row in ledger)


@pytest.mark.parametrize(("part", "again"), [("data", [KEYS[1]]), ("video", [KEYS[1]]), ("tasks", KEYS), ("", [])])
def test_only_what_depends_on_a_changed_file_is_read_again(copy, monkeypatch, part, again):
    root = copy("v2.0")
    steps.read(droid(root), open_dataset(droid(root)))
    if part == "data":
        rewrite(v2_data(root, 1), spoil("action", 3, 0.125))
    elif part == "video":
        write_video(v2_video(root, 1), range(45))
    elif part == "tasks":
        (root / "meta/tasks.jsonl").write_text((root / "meta/tasks.jsonl").read_text().replace("drawer", "box"))
    dataset = open_dataset(droid(root))
    read, seen = dataset.read, []
    monkeypatch.setattr(dataset, "read", lambda key: seen.append(key) or read(key))
    ledger = steps.read(droid(root), dataset)
    assert seen == again
    assert [row["instruction"] for row in steps.rows(ledger, dataset)][1].endswith(
        "box" if part == "tasks" else "drawer"
    )


def members(folder):
    """Clip key -> {suffix: bytes} of all tars of a folder."""
    clips = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                clips.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return clips


@pytest.mark.parametrize("name", ["v2.1", "v3.0-av1"])
def test_a_dataset_becomes_matched_clips_with_the_images_of_their_frames(golden, tmp_path, name):
    config = droid(golden(name), frame_stride=2)
    config.out_dir = str(tmp_path / "out")
    run(config, "shards")
    la, vla = members(tmp_path / "out/la"), members(tmp_path / "out/vla")
    assert len(la) >= 6 and la.keys() == vla.keys()
    for files in vla.values():
        about = json.loads(files["json"])
        episode, (start, end) = int(about["episode"][-1]), about["span"]
        assert about["views"] == (["front", "wrist"] if name == "v2.1" else ["front"])
        for view in about["views"]:
            images = [int(suffix.split(".")[1]) for suffix in files if suffix.startswith(f"{view}.")]
            assert images == list(range(0, end - start, 2))
            for frame in images:
                shown = level(files[f"{view}.{frame:05d}.jpg"])
                assert shown == pytest.approx(grey(episode, start + frame, view == "wrist"), abs=1.6)
        with np.load(io.BytesIO(files["npz"])) as arrays:
            for what, raw in (("state", poses), ("action", commands)):
                expected = handed_on(raw(LENGTHS[episode], episode))[start:end]
                np.testing.assert_allclose(arrays[what], expected, atol=1e-5)


@pytest.mark.parametrize("absent", ["never there", "left alone"])
def test_a_dataset_without_images_gives_la_only_and_says_so(copy, tmp_path, capsys, absent):
    if absent == "never there":
        config = droid(write_lerobot_v2(tmp_path / "set", views=()))
    else:
        root = copy("v2.1")
        shutil.rmtree(root / "videos")
        config = droid(root, images=False)
    run(config, "shards")
    assert "vla/ and task/ are not written" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["la"]
    assert read_index(tmp_path / "out/la").clips >= 6
    run(config, "shards")
    assert "up to date" in capsys.readouterr().out


def version(root, text):
    path = root / "meta/info.json"
    path.write_text(path.read_text().replace('"v2.0"', f'"{text}"'))


@pytest.mark.parametrize(
    ("change", "read", "said"),
    [
        (lambda root: shutil.rmtree(root), {}, "no folder"),
        (lambda root: (shutil.rmtree(root), write_npz(root)), {}, "has no meta/info.json; correct read.format"),
        (lambda root: version(root, "v1.6"), {}, "version v1.6 is none of v2.0, v2.1, v3.0; convert it to v3.0"),
        (lambda root: version(root, "v3.1"), {}, "version v3.1 is none of v2.0, v2.1, v3.0; upgrade la4vla"),
        (lambda root: version(root, "v4.0"), {}, "version v4.0 .*; upgrade la4vla"),
        (lambda root: version(root, "v3.0"), {}, "tasks.parquet: cannot be read"),
        (lambda root: (root / "meta/episodes.jsonl").write_text("{}\n"), {}, "'episode_index'"),
        (lambda root: (root / "meta/episodes.jsonl").write_text(""), {}, "no episodes, or one of them twice"),
        (lambda root: None, {"state": ["pose"]}, "no column pose for the state; name its columns in read.state"),
        (lambda root: None, {"views": {"hand": "top"}}, f"no view `top` in .*; it has {FRONT}"),
        (lambda root: None, {"robot": ""}, "read.robot is empty"),
    ],
)
def test_what_cannot_be_read_at_all_is_said_with_what_was_looked_for(copy, change, read, said):
    root = copy("v2.0")
    change(root)
    with pytest.raises(UserError, match=said):
        open_dataset(config_of(root, "lerobot", **{"robot": "droid_franka", **read}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('press the button "start"', 'press the button "start"'),
        ('"open the drawer"', "open the drawer"),
        (' "open  the drawer" ', "open the drawer"),
        ('"start" and then "stop"', '"start" and then "stop"'),
        ('"', '"'),
    ],
)
def test_quotes_are_taken_off_a_sentence_only_around_all_of_it(text, words):
    assert sentence(text) == words


def test_a_report_shows_tasks_in_their_own_script(copy):
    root = copy("v2.0")
    lines = [{"task_index": 0, "task": "把杯子放到架子上"}, {"task_index": 1, "task": "open the drawer"}]
    (root / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = droid(root)
    run(config, "filter")
    page.write(config, open_dataset(config))
    html = Path(config.out_dir, page.REPORT).read_text()
    tasks = json.loads(Path(config.out_dir, page.NUMBERS).read_text())["tasks"]
    assert {row["name"] for row in tasks} == {"把杯子放到架子上", "open the drawer"}
    assert '<td class="text">把杯子放到架子上</td>' in html and '<td class="text">open the drawer</td>' in html
    assert all(row["task"].isascii() for row in tasks)


def test_a_package_that_is_not_installed_is_named_with_its_extra(golden, monkeypatch):
    config = droid(golden("v2.0"))
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("video", "lerobot"):
        monkeypatch.delitem(sys.modules, f"la4vla.construct.readers.{name}", raising=False)
    with pytest.raises(UserError, match=r'needs the package av; pip install "la4vla\[construct\]"'):
        open_dataset(config)


def test_columns_are_joined_and_only_the_first_episodes_read(golden, tmp_path):
    """As DROID keeps pose and gripper apart; from a file, with the words a user writes."""
    root = shutil.copytree(golden("v2.0"), tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] |= {name: {"dtype": "float32", "shape": [1]} for name in ("pose", "gripper")}
    (root / "meta/info.json").write_text(json.dumps(info))
    for episode in range(2):
        rows = np.stack(pq.read_table(v2_data(root, episode))["observation.state"].to_numpy())
        rewrite(
            v2_data(root, episode),
            lambda table, rows=rows: table.append_column("pose", pa.array(list(rows[:, :6]))).append_column(
                "gripper", pa.array(rows[:, 6].astype(np.float64))
            ),
        )
    path = tmp_path / "run.yaml"
    path.write_text(
        f"schema: construct\nout_dir: {tmp_path / 'out'}\nread: {{format: lerobot, path: {root}, robot: droid_franka, "
        "state: [pose, gripper], max_episodes: 2}\n"
    )
    dataset = open_dataset(load(path))
    assert list(dataset.keys) == KEYS[:2]
    whole = open_dataset(droid(golden("v2.0")))
    np.testing.assert_array_equal(dataset.read(KEYS[1]).state, whole.read(KEYS[1]).state)
