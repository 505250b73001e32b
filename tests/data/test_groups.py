"""Why: what a negative is decides what a grounding model learns. A group with a sentence twice teaches that a motion
does not fit its own words; a group that depends on ranks, on a buffer or on where a run was resumed makes another model
each time, and no loss tells."""

from dataclasses import replace

import pytest
import torch

from la4vla.data.groups import make_groups
from la4vla.data.reader import Reader
from la4vla.data.setup import prepare_pairs
from la4vla.data.shards.read import clip_places, read_clip, read_shard
from la4vla.data.shards.writer import View
from la4vla.types import UserError
from tests.fixtures import make_clip, train_config, write_shards

VIEWS = {"front": View(16, 16)}
SENTENCES = ("go left", "Go right.", "go up", "go down", "go on", "turn", "wait")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 clips; the first sentence belongs to 12 of them, under two spellings."""
    path = tmp_path_factory.mktemp("pairs") / "clips"
    clips = []
    for number in range(30):
        said = ("go left", "Go  left.")[number % 2] if number < 12 else SENTENCES[number % len(SENTENCES)]
        clips.append(make_clip(number, 4 + number % 3, views=VIEWS, frame_stride=2, instruction=said))
    return write_shards(path, clips, 4, VIEWS, frame_stride=2)


def test_a_group_holds_a_sentence_once_and_a_pass_holds_them_all(folder):
    groups = make_groups(0, "clips", 3, clip_places(folder))
    assert len(groups.sentences) == 7 and (groups.per_pass, groups.left_out) == (2, 1)
    said = {place: number for number, places in enumerate(groups.places) for place in places}
    left_out = set()
    for turn in range(6):
        drawn = [said[pair.place] for number in (2 * turn, 2 * turn + 1) for pair in groups.group(number)]
        assert len(set(drawn)) == 6
        left_out |= set(range(7)) - set(drawn)
    assert len(left_out) > 1, "the same sentence is left out of every pass"


def test_every_sample_of_a_sentence_is_taken_before_one_comes_again(folder):
    groups = make_groups(0, "clips", 7, clip_places(folder))
    taken = {sentence: [] for sentence in range(7)}
    said = {place: number for number, places in enumerate(groups.places) for place in places}
    for number in range(2 * max(groups.samples)):
        for pair in groups.group(number):
            assert pair.frame % folder.frame_stride == 0 and pair.frame in pair.place.frames
            taken[said[pair.place]].append(pair)
    for sentence, pairs in taken.items():
        count = groups.samples[sentence]
        assert len(set(pairs[:count])) == len(set(pairs[count : 2 * count])) == count
    assert sum(groups.samples) == folder.samples


def test_a_group_is_a_function_of_its_number(folder):
    """Whatever was asked before, in any order, and by another object."""
    places = clip_places(folder)
    one, other = (make_groups(0, "clips", 4, places) for _ in range(2))
    forth = [one.group(number) for number in range(40)]
    assert [other.group(number) for number in reversed(range(40))] == forth[::-1]
    assert make_groups(1, "clips", 4, places).group(0) != forth[0]
    assert make_groups(0, "others", 4, places).group(0) != forth[0]


def test_what_is_drawn_less_often_than_it_occurs_is_known(folder):
    groups = make_groups(0, "clips", 3, clip_places(folder))
    assert [groups.sentences[number] for number in groups.too_rare] == ["go left"]


def test_too_few_sentences_say_how_many_there_are(folder):
    with pytest.raises(UserError, match=r"its clips have 7 distinct instructions, and data\.contrast_group is 8"):
        make_groups(0, "clips", 8, clip_places(folder))


def test_a_clip_alone_is_the_clip_of_its_shard(folder):
    whole = {clip.key: clip for shard in range(4) for clip in read_shard(folder, shard, ["front"])}
    for place in clip_places(folder)[::7]:
        clip, same = read_clip(folder, place, ["front"], 2), whole[place.key]
        assert replace(clip, state=0, action=0, frames=0) == replace(same, state=0, action=0, frames=0)
        assert (clip.state == same.state).all() and (clip.action == same.action).all()
        assert bytes(clip.frames["front"][2]) == bytes(same.frames["front"][2]) and len(clip.frames["front"]) == 1


def test_idle_samples_are_in_no_group(folder):
    """Those that a folder leaves out; a sentence of which none is left is no sentence."""
    kept = [tuple((0,) if key == "clip-00000" else () for key in shard.keys) for shard in folder.shards]
    shards = tuple(replace(shard, kept=frames) for shard, frames in zip(folder.shards, kept, strict=True))
    groups = make_groups(0, "clips", 1, clip_places(replace(folder, shards=shards)))
    assert groups.sentences == ("go left",) and groups.samples == (1,)
    assert [(pair.place.key, pair.frame) for pair in groups.group(5)] == [("clip-00000", 0)]


def test_a_folder_that_is_not_here_is_refused(folder):
    with pytest.raises(UserError, match="drawn from all over the folder"):
        clip_places(replace(folder, location="http://nowhere/clips"))


def words(sentence, slots):
    return [sum(sentence.encode())]


def rows(folder, ranks, micro_batch, start=0):
    """Of each step: (group, key) of every pair in the group's order, put together over ranks."""
    config = train_config({"a": (folder.location, "contrast")}, steps=5, global_batch=8, micro_batch=micro_batch)
    config.learner, config.data.contrast_group, config.data.streams = "grounding", 4, 4
    config.grounding.horizon = 6
    setup = prepare_pairs(config, 16, words, 1, None, False)
    steps = []
    for rank in range(ranks):
        with Reader(config, setup, rank, ranks) as reader:
            for number, step in enumerate(reader.steps("first", start)):
                steps += [[] for _ in range(number + 1 - len(steps))]
                assert all(batch.rows <= micro_batch for batch in step.batches)
                mine = [
                    (batch.group, key, batch.actions_BTA[i])
                    for batch in step.batches
                    for i, key in enumerate(batch.keys)
                ]
                for place, (group, key, action) in enumerate(mine):
                    steps[number].append((group, place % (4 // ranks) * ranks + rank, key, action))
    return [sorted(step, key=lambda row: row[:2]) for step in steps]


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 3), (2, 1), (4, 8)])
def test_ranks_and_micro_batches_change_no_group(folder, ranks, micro_batch):
    whole, cut = rows(folder, 1, 8), rows(folder, ranks, micro_batch)
    assert [[row[:3] for row in step] for step in whole] == [[row[:3] for row in step] for step in cut]
    pairs = [(a, b) for one, other in zip(whole, cut, strict=True) for a, b in zip(one, other, strict=True)]
    assert all(torch.equal(a[3], b[3]) for a, b in pairs)
    assert [{row[0] for row in step} for step in whole] == [{2 * n, 2 * n + 1} for n in range(5)]
    assert [[row[:3] for row in step] for step in rows(folder, ranks, micro_batch, 3)] == [
        [row[:3] for row in step] for step in whole[3:]
    ]
