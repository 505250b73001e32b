"""Why: LeRobot's metadata say where in a shared file an episode is, and they have been wrong: a span shifted by a
growing part of a frame, two spans that overlap, another episode's file. Such a set gives images of other moments
without any error. Here are sets that lerobot's own tools wrote (lerobot_written/write.py), which must pass, and the
same sets with one span or one file name changed, which must not."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.readers import open_dataset
from la4vla.data.shards.writer import read_index
from la4vla.types import UserError
from tests.construct.datasets import config_of, level

FPS = 15
LENGTHS = (12, 9, 14, 10)
FRONT = "observation.images.front"
SETS = {
    "recorded": (0, 1, 2, 3),
    "resumed": (0, 1, 2, 3),
    "deleted": (0, 2, 3),
    "split": (2, 3),
    "merged": (0, 1, 2, 3, 0, 2, 3),
    "depth": (0, 1),
    "old": (0, 1, 2, 3),
}
"""Set -> the number under which each of its episodes was recorded."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    with tarfile.open(Path(__file__).parent / "lerobot_written/written.tar.xz") as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture
def copy(written, tmp_path):
    """Set -> a copy of it that may be broken."""
    return lambda name: shutil.copytree(written / name, tmp_path / "set")


def config(root, **read):
    made = config_of(root, "lerobot", "droid_franka", **read)
    made.filter.min_quality, made.propose.min_clip_frames = 0, 1
    return made


def faults(root):
    made = config(root, max_bad_episodes=9)
    dataset = open_dataset(made)
    return [row["faults"] for row in steps.rows(steps.read(made, dataset), dataset)]


def change(root, episode, **values):
    """Sets fields of an episode's row of meta/, the video's by their last word."""
    for path in (root / "meta/episodes").glob("*/*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            if row["episode_index"] == episode:
                for name, value in values.items():
                    row[name if name in row else f"videos/{FRONT}/{name}"] = value
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def shift(root, begin, end, frames):
    """Moves the spans of episodes begin .. end - 1 by so many frames each."""
    for path in (root / "meta/episodes").glob("*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            if begin <= row["episode_index"] < end:
                moved = frames(row["episode_index"]) / FPS
                ends = {name: row[f"videos/{FRONT}/{name}"] + moved for name in ("from_timestamp", "to_timestamp")}
                change(root, row["episode_index"], **ends)


@pytest.mark.parametrize("name", SETS)
def test_what_lerobots_tools_wrote_passes_and_every_image_is_that_of_its_frame(written, tmp_path, name):
    root = shutil.copytree(written / name, tmp_path / "set")
    assert faults(root) == [[]] * len(SETS[name])
    dataset = open_dataset(config(root))
    for key, number in zip(dataset.keys, SETS[name], strict=True):
        episode = dataset.read(key)
        frames = np.arange(LENGTHS[number])
        np.testing.assert_allclose(episode.state[:, 0], number + frames / 100, atol=1e-5)
        assert episode.views == (("front", "hand") if name == "depth" else ("front",))
        for view in episode.views:
            images = episode.frames(view, range(len(episode)))
            shown = [level(images[frame]) for frame in range(len(episode))]
            np.testing.assert_allclose(shown, 20 * number + 3 * frames, atol=1.4)


@pytest.mark.parametrize("growth", [0.6, 1.4, -0.7])
def test_spans_that_drift_by_a_growing_part_of_a_frame_are_faults(copy, growth):
    root = copy("recorded")
    shift(root, 0, 4, lambda episode: growth * episode)
    first, *others = faults(root)
    assert first == []
    for found in others:
        assert "so that its images would be of other moments or of another episode" in found[0]


def test_a_span_that_is_off_by_less_than_half_a_frame_shows_the_same_images(copy):
    root = copy("recorded")
    shift(root, 1, 4, lambda episode: 0.4)
    assert faults(root) == [[], [], [], []]
    episode = open_dataset(config(root)).read("episode-000002")
    shown = [level(data) for data in episode.frames("front", range(14)).values()]
    np.testing.assert_allclose(shown, 40 + 3 * np.arange(14), atol=1.4)


def test_a_span_that_overlaps_another_is_the_fault_of_its_episode_alone(copy):
    root = copy("recorded")
    change(root, 2, from_timestamp=6 / FPS, to_timestamp=20 / FPS)
    assert [bool(found) for found in faults(root)] == [False, False, True, False]


def test_an_episode_that_points_into_another_ones_file_is_a_fault(copy):
    root = copy("resumed")
    change(root, 2, file_index=0)
    found = faults(root)
    assert found[:2] == [[], []]
    assert "meta/ lets the episode begin at 0.000 s, but the episodes before it end at 1.400 s" in found[2][0]


def test_with_the_cure_that_the_message_names_the_sound_episodes_are_built(copy):
    root = copy("recorded")
    shift(root, 2, 3, lambda episode: 1.0)
    with pytest.raises(UserError, match=r"1 of 4 episodes have faults.*read.max_bad_episodes=1") as caught:
        run(config(root), "shards")
    assert "or leave the episode out (read.max_bad_episodes)" in str(caught.value)
    cured = config(root, max_bad_episodes=1)
    run(cured, "shards")
    tasks = read_index(Path(cured.out_dir, "task"))
    assert sorted(key for shard in tasks.shards for key in shard.keys) == [f"episode-{n:06d}" for n in (0, 1, 3)]


def as_lists(root):
    """The standard columns as lists of one number, as some writers of v3.0 have them."""
    for path in (root / "data").glob("*/*.parquet"):
        table = pq.read_table(path)
        for name in ("timestamp", "frame_index", "episode_index", "task_index"):
            column = pa.FixedSizeListArray.from_arrays(table[name].combine_chunks(), 1)
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, path)


@pytest.mark.parametrize("name", ["recorded", "old"])
def test_standard_columns_that_are_lists_of_one_number_are_read(written, copy, name):
    root = copy(name)
    as_lists(root)
    assert faults(root) == [[], [], [], []]
    ours, theirs = (open_dataset(config(folder)).read("episode-000002") for folder in (root, written / name))
    np.testing.assert_array_equal(ours.state, theirs.state)
    assert ours.instruction == theirs.instruction == "put the cup on the shelf"


@pytest.mark.parametrize("file", [1, 7])
def test_rows_that_are_in_another_file_than_meta_says_are_found_there(copy, file):
    root = copy("resumed")
    change(root, 0, **{"data/file_index": file})
    assert faults(root) == [[], [], [], []]
    made = config(root)
    dataset = open_dataset(made)
    assert dataset.read("episode-000000").state[3, 0] == pytest.approx(0.03)
    rows = steps.rows(steps.read(made, dataset), dataset)
    assert [[note["kind"] for note in row["notes"]].count("data_file") for row in rows] == [1, 0, 0, 0]
    before = dataset.stamp("episode-000000")
    held = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(held), held, compression="gzip")
    assert open_dataset(made).stamp("episode-000000") != before, "the file that holds the rows counts"


def test_rows_that_are_nowhere_are_a_fault_that_says_what_is_where(copy):
    root = copy("resumed")
    (root / "data/chunk-000/file-001.parquet").unlink()
    change(root, 2, **{"data/file_index": 0})
    found = faults(root)
    assert found[:2] == [[], []]
    assert "file-000.parquet has the rows of episode 2, but it has episodes 0 to 1" in found[2][0]
    assert "file-001.parquet has the rows of episode 3, but it does not exist" in found[3][0]
    assert all("no other file of data/ has them" in found[number][0] for number in (2, 3))
