"""Why: the order of samples is the contract that makes resume O(1) and ranks irrelevant (webdataset#177, #234, #271
refuse both). It is arithmetic, so it is tested as arithmetic, exhaustively on small layouts."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from la4vla.config import validate
from la4vla.data.mixture import Schedule, plan
from la4vla.data.order import Stream, make_streams
from la4vla.data.shards.index import Index, Shard, starts
from la4vla.types import UserError
from tests.fixtures import ARM, train_config


def an_index(lengths: list[list[int]], stride: int = 1) -> Index:
    """Shards that hold clips of these lengths; a shard's bytes are 100 a frame."""
    shards = tuple(
        Shard(
            f"shard-{number}",
            tuple(f"{number}-{clip}" for clip in range(len(clips))),
            tuple(clips),
            sum(starts(length, stride) for length in clips),
            100 * sum(clips),
            "",
        )
        for number, clips in enumerate(lengths)
    )
    return Index("nowhere", "clips", ARM, {}, stride, shards)


def walk(stream: Stream, first: int, count: int) -> list[tuple[int, int, int]]:
    """(shard, clip, frame) of stream positions `first` on, each found from scratch."""
    found = []
    for position in range(first, first + count):
        block = stream.block(position)
        address = stream.shuffled(block)[position - block.first]
        found.append((address.shard, address.clip, address.frame))
    return found


def everything(index: Index) -> Counter:
    return Counter(
        (number, clip, frame)
        for number, shard in enumerate(index.shards)
        for clip, length in enumerate(shard.lengths)
        for frame in range(0, length, index.frame_stride)
    )


def test_the_order_is_the_one_that_runs_were_made_with():
    """Another one would resume a run with other samples and call it exact. A pass and 5 samples of the next."""
    stream = make_streams(an_index([[3, 2], [4], [1, 5]]), "a", 1, seed=0, shuffle_bytes=700)[0]
    blocks = [(2, 1, 3), (2, 1, 0), (2, 1, 4), (2, 0, 0), (2, 1, 1), (2, 1, 2)]
    blocks += [(1, 0, 0), (1, 0, 3), (1, 0, 2), (1, 0, 1)]
    blocks += [(0, 1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 0, 2)]
    again = [(1, 0, 0), (1, 0, 3), (1, 0, 2), (1, 0, 1), (2, 0, 0)]
    assert walk(stream, 0, 20) == blocks + again


LAYOUTS = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.integers(1, 3), st.integers(1, 5), st.integers(0, 2000), st.integers(0, 3))
def test_a_pass_is_a_partition(lengths, stride, streams, shuffle_bytes, number):
    index = an_index(lengths, stride)
    streams = min(streams, len(lengths))
    cuts = make_streams(index, "a", streams, seed=3, shuffle_bytes=shuffle_bytes)
    passes = [walk(stream, number * stream.samples, stream.samples) for stream in cuts]
    assert Counter(sample for one in passes for sample in one) == everything(index)


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.integers(0, 2000), st.integers(0, 30))
def test_blocks_tile_a_pass_and_fit(lengths, shuffle_bytes, number):
    stream = make_streams(an_index(lengths), "a", 1, seed=0, shuffle_bytes=shuffle_bytes)[0]
    blocks = stream.blocks(number)
    assert [block.first for block in blocks] == [
        number * stream.samples + sum(block.samples for block in blocks[:before]) for before in range(len(blocks))
    ]
    assert sorted(shard for block in blocks for shard in block.shards) == list(range(len(lengths)))
    for block in blocks:
        assert len(block.shards) == 1 or sum(stream.sizes[shard] for shard in block.shards) <= shuffle_bytes


def test_order_changes_with_pass_stream_source_and_seed_and_with_nothing_else():
    index = an_index([[5, 6, 7]] * 8)
    stream = make_streams(index, "a", 2, seed=0, shuffle_bytes=10**6)[0]
    first = walk(stream, 0, 40)
    assert first == walk(make_streams(index, "a", 2, seed=0, shuffle_bytes=10**6)[0], 0, 40)
    others = [
        walk(stream, stream.samples, 40),
        walk(make_streams(index, "b", 2, seed=0, shuffle_bytes=10**6)[0], 0, 40),
        walk(make_streams(index, "a", 2, seed=1, shuffle_bytes=10**6)[0], 0, 40),
        walk(replace(stream, number=1), 0, 40),
    ]
    assert all(first != other for other in others)
    assert first != sorted(first)


def test_seeking_far_is_as_cheap_as_seeking_near(monkeypatch):
    stream = make_streams(an_index([[50] * 20] * 4), "a", 1, seed=0, shuffle_bytes=10**4)[0]
    passes = []
    blocks = Stream.blocks
    monkeypatch.setattr(Stream, "blocks", lambda self, number: passes.append(number) or blocks(self, number))
    stream.block(10**12)
    assert len(passes) == 1


def test_too_few_shards_names_the_cure():
    with pytest.raises(UserError, match=r"20 shards but data.streams=32.*shards=32.*data.streams=16"):
        make_streams(an_index([[5]] * 20), "la", 32, 0, 10**6)


@pytest.mark.parametrize("lengths", [[], [[]], [[3], []]])
def test_nothing_to_read_is_an_error(lengths):
    with pytest.raises(UserError, match="sample"):
        make_streams(an_index(lengths), "la", max(1, len(lengths)), 0, 10**6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 60))
def test_mixing_is_exact(shares, units, steps):
    given_units = plan(shares, units, steps)
    assert given_units.shape == (steps, len(shares))
    assert (given_units.sum(1) == units).all() and (given_units >= 0).all()
    exact = np.outer(np.arange(1, steps + 1) * units, np.asarray(shares) / sum(shares))
    assert np.abs(given_units.cumsum(0) - exact).max() <= max(1, len(shares) - 1) + 1e-9


@pytest.mark.parametrize(
    ("shares", "units", "expected"),
    [
        ((0.5, 0.5), 2, [[1, 1]] * 3),
        ((0.5, 0.5), 1, [[1, 0], [0, 1], [1, 0]]),
        ((3, 1), 4, [[3, 1]] * 3),
        ((0.7, 0.3), 10, [[7, 3]] * 3),
    ],
)
def test_mixing_by_example(shares, units, expected):
    assert plan(shares, units, 3).tolist() == expected


def test_positions_go_on_over_stages_and_from_any_step():
    config = train_config({"a": ("x", "la"), "b": ("y", "vla")}, {"a": 2.0, "b": 1.0}, steps=5, global_batch=8)
    config.stages["second"] = replace(config.stages["first"], mixture={"b": 1.0}, steps=4)
    draws = list(Schedule(config).draws("first", 0))
    assert [(draw.stage, draw.stage_step, draw.step) for draw in draws] == [
        *(("first", step, step) for step in range(5)),
        *(("second", step, 5 + step) for step in range(4)),
    ]
    position = Counter()
    for draw in draws:
        assert sum(count for _, count in draw.takes.values()) == 8
        for source, (first, count) in draw.takes.items():
            assert first == position[source] and count > 0
            position[source] += count
    assert list(Schedule(config).draws("first", 3)) == draws[3:]
    assert list(Schedule(config).draws("second", 2)) == draws[7:]
    assert list(Schedule(config).draws("first", 5)) == draws[5:]
    with pytest.raises(UserError, match="first, second"):
        next(Schedule(config).draws("third", 0))


@pytest.mark.parametrize(("shares", "end"), [([1, 1], [1, 0]), ([0.001, 1], [3, 1]), ([3, 1, 1], [0, 1, 4])])
def test_shares_that_move_are_kept_at_every_step(shares, end):
    """Against the exact share of each step by fractions, added up."""
    steps, units = 40, 7
    counts = np.cumsum(plan(shares, units, steps, end), axis=0)
    exact = [Fraction(0)] * len(shares)
    begins, ends = ([Fraction(str(share)) for share in row] for row in (shares, end))
    for step in range(steps):
        part = Fraction(step, steps - 1)
        for source, (first, last) in enumerate(zip(begins, ends, strict=True)):
            exact[source] += units * ((1 - part) * first / sum(begins) + part * last / sum(ends))
        assert sum(counts[step]) == units * (step + 1)
        assert all(abs(count - due) < len(shares) for count, due in zip(counts[step].tolist(), exact, strict=True)), (
            step
        )
    late = plan(shares, units, steps, end)[-5:].sum(0) / (5 * units)
    assert np.abs(late - np.array(end) / sum(end)).max() < 0.15


def test_a_mixture_that_moves_is_planned_and_wrong_ends_are_refused():
    config = train_config({"a": ("a", "la"), "b": ("b", "la")}, {"a": 3.0, "b": 1.0}, steps=30)
    config.stages["first"].mixture_end = {"b": 1.0, "a": 0.0}
    validate(config)
    draws = list(Schedule(config).draws("first", 0))
    taken = {name: [draw.takes.get(name, (0, 0))[1] for draw in draws] for name in ("a", "b")}
    assert sum(taken["a"][:10]) > sum(taken["a"][10:20]) > sum(taken["a"][20:]) and taken["a"][-1] == 0
    assert {a + b for a, b in zip(*taken.values(), strict=True)} == {config.stages["first"].global_batch}
    for wrong in ({"a": 1.0}, {"a": 0.0, "b": 0.0}):
        config.stages["first"].mixture_end = wrong
        with pytest.raises(UserError, match="mixture_end needs a share for each of a, b and one above 0"):
            validate(config)
