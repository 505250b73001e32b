"""Why: the npz folder is the door for everybody whose dataset no other reader knows, so what is documented must be all
it takes, and each way to get it wrong must be said."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.episodes import BadEpisode
from la4vla.construct.readers import open_source
from la4vla.data.shards import read_index
from la4vla.types import UserError
from tests.construct.datasets import LENGTHS, SENTENCES, config_of, grey, level, poses, write_npz

KEYS = ["episode-0", "episode-1", "episode-2"]


def npz(root, **read):
    return config_of(root, "npz", "droid_franka", **read)


def change(path, **arrays):
    """Writes the file anew; None takes an array out."""
    with np.load(path) as archive:
        merged = {**{name: archive[name] for name in archive.files}, **arrays}
    np.savez(path, **{name: value for name, value in merged.items() if value is not None})


def test_a_folder_becomes_episodes_with_pictures_every_stride(tmp_path):
    source = open_source(npz(write_npz(tmp_path / "set", stride=3)))
    assert list(source.keys) == KEYS
    episode = source.read(KEYS[1])
    assert (episode.instruction, episode.task, episode.fps) == (SENTENCES[1], "open-the-drawer", 15.0)
    assert (episode.views, episode.frame_stride) == (("front",), 3)
    np.testing.assert_allclose(episode.state[:, :3], poses(LENGTHS[1], 1)[:, :3])
    for frame, jpeg in episode.frames("front", [0, 9, 42]).items():
        assert level(jpeg) == pytest.approx(grey(1, frame), abs=1.0)


def test_a_folder_becomes_shards(tmp_path):
    run(npz(write_npz(tmp_path / "set")), "shards")
    task, la = read_index(tmp_path / "out/task"), read_index(tmp_path / "out/la")
    assert (task.clips, task.frames, task.frame_stride) == (3, sum(LENGTHS), 3)
    assert la.embodiment.name == "droid_franka" and la.clips >= 6


def test_the_documented_lines_are_all_it_takes(tmp_path):
    text = (Path(__file__).parents[2] / "docs/construction.md").read_text()
    lines = re.search(r"```python\n(np\.savez\(.*?)```", text, re.DOTALL)
    assert lines
    values, pictures = poses(7), np.zeros((4, 16, 16, 3), np.uint8)
    exec(lines[1], {"np": np, "folder": tmp_path, "name": "a", "state": values, "action": values, "pictures": pictures})
    config = npz(tmp_path, decode=True)
    source = open_source(config)
    assert [row["faults"] for row in steps.read(config, source)] == [[]]
    assert (source.read("a").frame_stride, source.read("a").task) == (2, "drawer")


def test_state_action_and_instruction_are_enough(tmp_path):
    root = write_npz(tmp_path / "set")
    for path in root.iterdir():
        change(path, images_front=None, frame_stride=None)
    episode = open_source(npz(root)).read(KEYS[0])
    assert (episode.views, episode.frame_stride) == ((), 1)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"instruction": None}, "has no instruction; add it"),
        ({"instruction": "  "}, "no task text"),
        ({"action": np.zeros((44, 7))}, "45 states but 44 actions"),
        ({"action": np.full((45, 7), np.nan)}, "action is not finite at frame 0, dim 0"),
        ({"state": np.zeros((45, 2, 7))}, "column state has dtype float64 and shape"),
        ({"frame_stride": 2}, "images_front has 15 pictures, 23 are due for 45 frames at frame_stride 2"),
        ({"images_front": None}, "images_front has 0 pictures, 15 are due"),
        ({"state": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_a_wrong_file_is_left_out_with_its_cure(tmp_path, arrays, said):
    root = write_npz(tmp_path / "set")
    change(root / "episode 1.npz", **arrays)
    config = npz(root, max_bad_episodes=1)
    ledger = list(steps.read(config, open_source(config)))
    assert [bool(row["faults"]) for row in ledger] == [False, True, False]
    assert said in ledger[1]["faults"][0]


def test_pictures_of_another_kind_are_refused(tmp_path):
    root = write_npz(tmp_path / "set")
    change(root / "episode 1.npz", images_front=np.zeros((15, 8, 8), np.float32))
    with pytest.raises(BadEpisode, match=r"not uint8 \[N, H, W, 3\]"):
        open_source(npz(root)).read(KEYS[1]).frames("front", [0])


def test_names_that_keys_cannot_tell_apart_are_refused(tmp_path):
    root = write_npz(tmp_path / "set")
    (root / "episode 1.npz").rename(root / "episode.0.npz")
    with pytest.raises(UserError, match="rename them"):
        open_source(npz(root))
    with pytest.raises(UserError, match="it has no"):
        open_source(npz(tmp_path))


@pytest.mark.parametrize("stride", [0, 2.5, [1, 2], "two"])
def test_a_stride_that_cannot_be_is_a_fault(tmp_path, stride):
    root = write_npz(tmp_path / "set", stride=3)
    change(root / "episode 1.npz", frame_stride=np.array(stride))
    with pytest.raises(UserError, match=r"1 of 3 episodes.*frame_stride"):
        run(npz(root), "read")


def test_damaged_pictures_are_a_fault_of_their_episode_alone(tmp_path):
    root = write_npz(tmp_path / "set")
    path = root / "episode 1.npz"
    with zipfile.ZipFile(path) as archive:
        about = archive.getinfo("images_front.npy")
    data = bytearray(path.read_bytes())
    data[about.header_offset + 2000] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match="1 of 3 episodes"):
        run(npz(root), "read")
    config = npz(root, max_bad_episodes=1)
    run(config, "shards")
    assert read_index(tmp_path / "out/task").clips == 2
