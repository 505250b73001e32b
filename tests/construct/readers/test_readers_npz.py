"""Why: the npz folder is the door for everybody whose dataset no other reader knows, so what is documented must be all
it takes, and each way to get it wrong must be said."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.readers import open_dataset
from la4vla.data.shards.writer import read_index
from la4vla.types import UserError
from tests.construct.datasets import (
    LENGTHS,
    SENTENCES,
    commands,
    config_of,
    grey,
    handed_on,
    image,
    level,
    poses,
    write_npz,
)

KEYS = ["episode-0", "episode-1", "episode-2"]


def npz(root, **read):
    return config_of(root, "npz", "droid_franka", **read)


def change(path, **arrays):
    """Writes the file anew; None takes an array out."""
    with np.load(path) as archive:
        merged = {**{name: archive[name] for name in archive.files}, **arrays}
    np.savez(path, **{name: value for name, value in merged.items() if value is not None})


def test_a_folder_becomes_episodes_with_images_every_stride(tmp_path):
    dataset = open_dataset(npz(write_npz(tmp_path / "set", stride=3)))
    assert list(dataset.keys) == KEYS
    episode = dataset.read(KEYS[1])
    assert (episode.instruction, episode.task, episode.fps) == (SENTENCES[1], "open-the-drawer", 15.0)
    assert (episode.views, episode.frame_stride) == (("front",), 3)
    np.testing.assert_allclose(episode.state, handed_on(poses(LENGTHS[1], 1)), atol=1e-5)
    np.testing.assert_allclose(episode.action, handed_on(commands(LENGTHS[1], 1)), atol=1e-5)
    for frame, jpeg in episode.frames("front", [0, 9, 42]).items():
        assert level(jpeg) == pytest.approx(grey(1, frame), abs=1.0)


def test_each_view_has_its_own_images(tmp_path):
    root = write_npz(tmp_path / "set", stride=9)
    for number, path in enumerate(sorted(root.iterdir())):
        frames = range(0, LENGTHS[number], 9)
        change(path, images_wrist=np.stack([image(grey(number, frame, wrist=True)) for frame in frames]))
    episode = open_dataset(npz(root)).read(KEYS[1])
    for view in ("front", "wrist"):
        for frame, jpeg in episode.frames(view, [0, 9, 36]).items():
            assert level(jpeg) == pytest.approx(grey(1, frame, view == "wrist"), abs=1.0)


def test_a_folder_becomes_shards(tmp_path):
    run(npz(write_npz(tmp_path / "set")), "shards")
    task, la = read_index(tmp_path / "out/task"), read_index(tmp_path / "out/la")
    assert (task.clips, task.frames, task.frame_stride) == (3, sum(LENGTHS), 3)
    assert la.embodiment.name == "droid_franka" and la.clips >= 6


def test_the_documented_lines_are_all_it_takes(tmp_path):
    text = (Path(__file__).parents[3] / "docs/construction.md").read_text()
    lines = re.search(r"```python\n(np\.savez\(.*?)```", text, re.DOTALL)
    assert lines
    values, images = poses(7), np.zeros((4, 16, 16, 3), np.uint8)
    exec(lines[1], {"np": np, "folder": tmp_path, "name": "a", "state": values, "action": values, "images": images})
    config = npz(tmp_path, decode=True)
    dataset = open_dataset(config)
    assert [row["faults"] for row in steps.read(config, dataset)] == [[]]
    assert (dataset.read("a").frame_stride, dataset.read("a").task) == (2, "drawer")


def test_state_action_and_instruction_are_enough(tmp_path):
    root = write_npz(tmp_path / "set")
    for path in root.iterdir():
        change(path, images_front=None, frame_stride=None)
    episode = open_dataset(npz(root)).read(KEYS[0])
    assert (episode.views, episode.frame_stride) == ((), 1)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"instruction": None}, "has no instruction; add it"),
        ({"instruction": "  "}, "no task text"),
        ({"action": np.zeros((44, 7))}, "45 states but 44 actions"),
        ({"action": np.full((45, 7), np.nan)}, "action is not finite at frame 0, dim 0"),
        ({"state": np.zeros((45, 2, 7))}, "column state has dtype float64 and shape"),
        ({"frame_stride": 2}, "images_front has 15 images, 23 are due for 45 frames at frame_stride 2"),
        ({"images_front": None}, "images_front has 0 images, 15 are due"),
        ({"images_front": np.zeros((15, 8, 8), np.float32)}, "not uint8 [N, H, W, 3]"),
        ({"images_front": np.zeros((15, 32, 48, 4), np.uint8)}, "not uint8 [N, H, W, 3]"),
        (
            {"images_front": np.zeros((15, 16, 48, 3), np.uint8)},
            "has 16 x 48 pixels, the others of this view have 32 x 48",
        ),
        ({"frame_stride": 9, "images_front": np.zeros((5, 32, 48, 3), np.uint8)}, "frame_stride 9, in"),
        ({"instruction": np.array([], "U4")}, "instruction is <U4 (0,), not one text"),
        ({"instruction": np.array(["open", "close"])}, "not one text"),
        ({"task": b"\xff"}, "task is not UTF-8"),
        ({"state": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_a_wrong_file_is_left_out_with_its_cure(tmp_path, arrays, said):
    root = write_npz(tmp_path / "set")
    change(root / "episode 1.npz", **arrays)
    config = npz(root, max_bad_episodes=1)
    ledger = list(steps.read(config, open_dataset(config)))
    assert [bool(row["faults"]) for row in ledger] == [False, True, False]
    assert said in ledger[1]["faults"][0]


@pytest.mark.parametrize("text", ["open the drawer", b"open the drawer", ["open the drawer"]])
def test_a_text_may_be_bytes_or_in_a_list(tmp_path, text):
    root = write_npz(tmp_path / "set")
    change(root / "episode 1.npz", instruction=text, task=np.array(text))
    read = open_dataset(npz(root)).read(KEYS[1])
    assert (read.instruction, read.task) == ("open the drawer", "open-the-drawer")


@pytest.mark.parametrize("qx", ["qx", "-qx"])
def test_a_zero_quaternion_is_a_fault_of_its_episode(tmp_path, qx):
    root = write_npz(tmp_path / "set")
    arm = tmp_path / "arm.yaml"
    names = f"names: [x, y, z, {qx}, qy, qz, qw], reference: absolute, rotation: quaternion"
    arm.write_text(
        "frame: {forward: +x, left: +y, up: +z, closed_on_nothing: 0, hold_margin: 0.1, open_from: 0.8}\n"
        f"control_hz: 15\nstate: {{{names}}}\naction: {{{names}}}\n"
    )
    turned = np.tile([0.4, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0], (45, 1))
    change(root / "episode 1.npz", state=turned, action=np.where(np.arange(45)[:, None] == 7, 0.0, turned))
    ledger = list(
        steps.read(config_of(root, "npz", str(arm), max_bad_episodes=3), open_dataset(config_of(root, "npz", str(arm))))
    )
    assert "action: the quaternion of frame 7 is zero" in ledger[1]["faults"][0]


def test_a_repaired_file_is_read_again(tmp_path):
    root = write_npz(tmp_path / "set")
    config = npz(root, max_bad_episodes=1)
    change(root / "episode 1.npz", instruction=" ")
    assert [bool(row["faults"]) for row in steps.read(config, open_dataset(config))] == [False, True, False]
    change(root / "episode 1.npz", instruction="open the drawer")
    assert [bool(row["faults"]) for row in steps.read(config, open_dataset(config))] == [False] * 3


def test_sentences_in_other_scripts_stay_different_tasks(tmp_path):
    root = write_npz(tmp_path / "set")
    for number, text in enumerate(("打开抽屉", "关上抽屉", "ouvre le tiroir à gauche")):
        change(root / f"episode {number}.npz", instruction=text)
    dataset = open_dataset(npz(root))
    tasks = [dataset.read(key).task for key in KEYS]
    assert len(set(tasks)) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", task) for task in tasks)


def test_names_that_keys_cannot_tell_apart_are_refused(tmp_path):
    root = write_npz(tmp_path / "set")
    (root / "episode 1.npz").rename(root / "episode.0.npz")
    with pytest.raises(UserError, match="rename one"):
        open_dataset(npz(root))
    with pytest.raises(UserError, match="it has no"):
        open_dataset(npz(tmp_path))


@pytest.mark.parametrize("stride", [0, 2.5, [1, 2], "two"])
def test_a_stride_that_cannot_be_is_a_fault(tmp_path, stride):
    root = write_npz(tmp_path / "set", stride=3)
    change(root / "episode 1.npz", frame_stride=np.array(stride))
    with pytest.raises(UserError, match=r"1 of 3 episodes.*frame_stride"):
        run(npz(root), "read")


def test_damaged_images_are_a_fault_of_their_episode_alone(tmp_path):
    root = write_npz(tmp_path / "set")
    path = root / "episode 1.npz"
    with zipfile.ZipFile(path) as archive:
        about = archive.getinfo("images_front.npy")
    data = bytearray(path.read_bytes())
    data[about.header_offset + 2000] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match="1 of 3 episodes"):
        run(npz(root, decode=True), "read")
    config = npz(root, max_bad_episodes=1, decode=True)
    run(config, "shards")
    assert read_index(tmp_path / "out/task").clips == 2
