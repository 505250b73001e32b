"""Why: a shard folder has one image size a view. Images of two sizes, or of a kind that nothing decodes, used to stop
the last step, after a model had been paid for its proposals, and nothing could be left out. They are a fault of `read`.
A depth map that is taken for a camera shows a dark image that no check notices, so it is no view."""

import json

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.readers import open_dataset
from la4vla.data.shards.writer import read_index
from la4vla.types import UserError
from tests.construct.datasets import (
    FPS,
    FRONT,
    LENGTHS,
    WRIST,
    config_of,
    v2_data,
    v2_video,
    write_lerobot_v2,
    write_lerobot_v3,
    write_npz,
    write_video,
)

KEYS = ["episode-000000", "episode-000001", "episode-000002"]


def droid(root, **read):
    return config_of(root, "lerobot", "droid_franka", **read)


def faults(config):
    config.read.max_bad_episodes = 9
    dataset = open_dataset(config)
    return [" ".join(row["faults"]) for row in steps.rows(steps.read(config, dataset), dataset)]


def cells(root, episode, change):
    """Puts change(frame, bytes) into the image column of an episode."""
    path = v2_data(root, episode)
    table = pq.read_table(path)
    images = [{**cell, "bytes": change(t, cell["bytes"])} for t, cell in enumerate(table[FRONT].to_pylist())]
    pq.write_table(table.set_column(table.column_names.index(FRONT), FRONT, pa.array(images)), path)


def encoded(extension, image):
    return cv2.imencode(extension, image)[1].tobytes()


LARGE = encoded(".png", np.zeros((64, 96, 3), np.uint8))
DEPTH = encoded(".png", np.full((32, 48), 4000, np.uint16))


@pytest.mark.parametrize("odd", [0, 1])
def test_an_episode_of_another_size_than_most_is_left_out_and_the_rest_is_built(tmp_path, odd):
    root = write_lerobot_v2(tmp_path / "set", store="png")
    cells(root, odd, lambda frame, data: LARGE)
    with pytest.raises(UserError, match=r"1 of 3 episodes have faults.*64 x 96 pixels.*read.max_bad_episodes=1"):
        run(droid(root), "shards")
    config = droid(root, max_bad_episodes=1)
    run(config, "shards")
    keys = {key for shard in read_index(tmp_path / "out/task").shards for key in shard.keys}
    assert keys == {key for number, key in enumerate(KEYS) if number != odd}


def test_a_video_of_another_size_is_a_fault_without_decoding(tmp_path, monkeypatch):
    root = write_lerobot_v2(tmp_path / "set")
    write_video(v2_video(root, 2), range(LENGTHS[2]), codec="libsvtav1")  # twice as large
    monkeypatch.setattr("la4vla.construct.readers.lerobot.read_frames", None)
    first, second, third = faults(droid(root))
    assert (first, second) == ("", "") and "64 x 96 pixels, the others of this view have 32 x 48" in third


def test_a_folder_that_was_mended_is_read_again(tmp_path):
    root = write_npz(tmp_path / "set")
    path = root / "episode 1.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "images_front": np.zeros((15, 16, 48, 3), np.uint8)})
    config = config_of(root, "npz", "droid_franka")
    assert [bool(text) for text in faults(config)] == [False, True, False]
    np.savez(path, **arrays)
    assert faults(config) == ["", "", ""]


def test_a_size_that_changes_within_an_episode_is_found_by_decoding_and_named_by_the_build(tmp_path):
    root = write_lerobot_v2(tmp_path / "set", store="png")
    cells(root, 1, lambda frame, data: LARGE if frame == 30 else data)
    with pytest.raises(UserError, match=r"episode-000001: front: the image of frame 30 has 64 x 96.*read.decode=true"):
        run(droid(root), "shards")
    cured = droid(root, decode=True, max_bad_episodes=1)
    run(cured, "shards")
    assert read_index(tmp_path / "out/task").clips == 2


@pytest.mark.parametrize("extension", [".webp", ".bmp"])
def test_a_kind_of_image_that_nothing_decodes_is_a_fault_of_reading(tmp_path, extension):
    root = write_lerobot_v2(tmp_path / "set", store="jpeg")
    cells(root, 2, lambda frame, data: encoded(extension, np.zeros((32, 48, 3), np.uint8)))
    first, second, third = faults(droid(root))
    assert (first, second) == ("", "") and "neither a JPEG nor a PNG" in third


def depth_video(path, frames):
    """Grey of 16 bits in a lossless codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "gray16le"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 48), 4000, np.uint16), "gray16le")))
        container.mux(stream.encode())


def said(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note (no_camera)")]


def test_a_depth_map_in_an_image_column_is_no_view_and_said(tmp_path, capsys):
    root = write_lerobot_v2(tmp_path / "set", views=(FRONT, WRIST), store="png")
    for episode in range(3):
        cells(root, episode, lambda frame, data: DEPTH)
    config = droid(root)
    assert faults(config) == ["", "", ""]
    assert open_dataset(config).read(KEYS[0]).views == ("wrist",)
    (line,) = said(capsys)
    assert f"`{FRONT}` is one channel of 16 bits, not a camera's images, and is left out" in line
    run(config, "shards")
    assert set(read_index(tmp_path / "out/vla").views) == {"wrist"}
    with pytest.raises(UserError, match=r"read.views: `observation.images.front`.*take it out"):
        open_dataset(droid(root, views={"front": FRONT}))


def test_a_depth_map_in_a_video_is_no_view_by_what_meta_says_and_else_a_fault(tmp_path, capsys):
    root = write_lerobot_v3(tmp_path / "set", views=(FRONT, WRIST))
    depth_video(root / f"videos/{FRONT}/chunk-000/file-000.mp4", sum(LENGTHS))
    assert all(
        "holds depth, not a camera's images; name the cameras in read.views" in text for text in faults(droid(root))
    )
    assert faults(droid(root, views={"wrist": WRIST})) == ["", "", ""]
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][FRONT]["info"] = {"video.pix_fmt": "gray16le"}
    path.write_text(json.dumps(info))
    capsys.readouterr()
    assert faults(droid(root)) == ["", "", ""]
    assert len(said(capsys)) == 1


def test_a_depth_map_in_an_npz_is_no_view_and_said(tmp_path, capsys):
    root = write_npz(tmp_path / "set")
    for path in root.glob("*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **arrays, images_depth=np.full(arrays["images_front"].shape[:3], 900, np.uint16))
    config = config_of(root, "npz", "droid_franka")
    assert faults(config) == ["", "", ""]
    assert open_dataset(config).read("episode-0").views == ("front",)
    (line,) = said(capsys)
    assert "`depth` is one channel of uint16" in line
    run(config_of(root, "npz", "droid_franka", views={"eye": "front"}), "shards")
    assert set(read_index(tmp_path / "out/vla").views) == {"eye"}
