"""Why: samples in which nothing is commanded teach a policy to stay where it is; but what counts as nothing is read in
two ways, and leaving samples out touches the order that resume and ranks stand on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from la4vla.config import load
from la4vla.data.inspect.describe import describe
from la4vla.data.inspect.verify import verify
from la4vla.data.normalize import compute_stats
from la4vla.data.order import make_streams
from la4vla.data.reader import Reader
from la4vla.data.setup import fingerprint, prepare
from la4vla.data.shards.idle import Idle
from la4vla.data.shards.writer import ShardWriter, View, read_index
from la4vla.types import UserError
from tests.construct.propose.test_tasks import PATHS, RECIPE, built
from tests.fixtures import ARM, POSE, SPEC, encode, make_clip, train_config, write_shards

RAW = Idle(0.1, "raw", (), 3, "any")
VIEWS = {"front": View(8, 8)}


def a_clip(number, sizes, column=1, embodiment=ARM, **more):
    """A clip that commands these sizes in one dimension, and nothing else."""
    clip = make_clip(number, len(sizes), embodiment, **more)
    action = np.zeros_like(clip.action)
    action[:, column] = sizes
    return replace(clip, action=action)


def write(folder, clips, idle, stride=1, embodiment=ARM, views=VIEWS):
    with ShardWriter(folder, embodiment, views, stride, 2, idle=idle) as writer:
        for clip in clips:
            writer.add(clip)
        return writer.close()


def kept(index):
    return {key: frames for shard in index.shards for key, frames in zip(shard.keys, shard.kept or (), strict=True)}


MOVES = [0, 0, 0, 0, -0.5, 0, 0, 0.05, 0.2]


@pytest.mark.parametrize(
    ("rule", "stride", "frames"),
    [
        (RAW, 1, (2, 3, 4, 6, 7, 8)),
        (RAW, 2, (2, 4, 6, 8)),
        (replace(RAW, frames=1), 1, (4, 8)),
        (replace(RAW, which="first"), 1, (4, 8)),
        (replace(RAW, threshold=0.3), 1, (2, 3, 4)),
        (replace(RAW, dims=("x", "z")), 1, ()),
        (replace(RAW, dims=("y",)), 1, (2, 3, 4, 6, 7, 8)),
        (replace(RAW, unit="normalized", which="first"), 1, (0, 1, 2, 3, 4, 5, 6, 7, 8)),  # 0 is 0.43 here
        (replace(RAW, unit="normalized", threshold=0.5, which="first"), 1, (4, 7, 8)),
    ],
)
def test_which_samples_stay(rule, stride, frames):
    clip = a_clip(0, MOVES)
    with np.errstate(all="raise"):
        stats = compute_stats(ARM.action.names, clip.action)
        assert rule.starts(clip.state, clip.action, stride, ARM, stats) == frames


def test_absolute_commands_count_from_the_state_and_grippers_by_their_change():
    clip = make_clip(0, 6, POSE)
    action = clip.state.copy()
    action[:, 6] = (1, 1, 1, 0, 0, 0)  # commanded closed at frame 3
    action[5, 0] += 0.2
    stats = compute_stats(POSE.action.names, action)
    assert replace(RAW, which="first").starts(clip.state, action, 1, POSE, stats) == (3, 5)
    with pytest.raises(UserError, match="commands are absolute, so their normalised size says nothing"):
        replace(RAW, unit="normalized").check(POSE)
    with pytest.raises(UserError, match=r"no action dim `w`; name some of x, y, z"):
        replace(RAW, dims=("w",)).check(POSE)


def test_a_folder_leaves_them_out_of_every_pass_and_says_how_many(tmp_path):
    clips = [a_clip(n, np.roll(MOVES, n), views=VIEWS, frame_stride=1) for n in range(4)]
    index, whole = write(tmp_path / "less", clips, RAW), write(tmp_path / "whole", clips, None)
    assert read_index(tmp_path / "less").shards == index.shards and whole.shards[0].kept is None
    assert index.samples == sum(map(len, kept(index).values())) and index.left_out == whole.samples - index.samples > 0
    assert [shard.sha256 for shard in index.shards] == [shard.sha256 for shard in whole.shards], "clips are whole"
    assert fingerprint(index) != fingerprint(whole)
    assert not any(shard.problems for shard in verify(tmp_path / "less").shards)
    assert f"{index.left_out} idle samples are left out" in describe_text(tmp_path)
    wanted = Counter(
        (number, clip, frame)
        for number, shard in enumerate(index.shards)
        for clip, frames in enumerate(shard.kept or ())
        for frame in frames
    )
    seen = Counter()
    for stream in make_streams(index, "a", 2, 0, 1000):
        for position in range(2 * stream.samples):
            block = stream.block(position)
            address = stream.shuffled(block)[position - block.first]
            seen[address.shard, address.clip, address.frame] += 1
    assert seen == Counter({place: 2 for place in wanted})


def describe_text(tmp_path):
    return describe(str(tmp_path / "less"), 16, lambda text: len(text.split()))


def test_a_run_reads_only_what_stays(tmp_path):
    clips = [a_clip(n, np.roll(MOVES, n)) for n in range(4)]
    index = write(tmp_path / "less", clips, RAW, views={})
    config = train_config({"a": (tmp_path / "less", "la")}, steps=3, streams=2)
    with Reader(config, prepare(config, SPEC, encode), 0, 1) as reader:
        keys = {key for step in reader.steps("first", 0) for batch in step.batches for key in batch.keys}
    assert keys == {f"a/{key}/{frame}" for key, frames in kept(index).items() for frame in frames}


def test_a_folder_without_a_rule_is_what_it_was(tmp_path):
    index = write_shards(tmp_path / "plain", 4, 2)
    text = index.to_json()
    assert "kept" not in text and all(shard.kept is None for shard in index.shards)
    with pytest.raises(UserError, match="every sample is idle"):
        write(tmp_path / "still", [a_clip(n, [0, 0, 0]) for n in range(3)], RAW, views={})


def test_construction_leaves_idle_samples_out_on_demand(tmp_path, capsys):
    built(tmp_path, "read.idle.threshold=0.01", "read.idle.which=first")
    index = read_index(tmp_path / "out/vla")
    assert 0 < index.left_out < index.samples
    assert f"idle: {index.left_out} of 164 samples of vla/ are left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"read.idle.unit: `m` is not one of raw, normalized"):
        load(RECIPE, [*PATHS, "read.idle.unit=m"])
