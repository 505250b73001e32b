"""Which sample comes n-th: arithmetic on the index, without a buffer and without a file.

A source is cut into `streams` logical streams; shard i belongs to stream i % streams, and the source's n-th sample is
the (n // streams)-th of stream n % streams. A stream's sequence is a pure function of (seed, source, stream, position):
each pass permutes its shards, cuts them into blocks of consecutive shards that fit `shuffle_bytes` (or one),
and permutes the samples of a block. A pass holds every sample once. Seeking costs the number of the stream's shards,
whatever the position. Knows nothing of ranks, threads or steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from la4vla.data.shards.index import Index, starts
from la4vla.rng import RngUse, generator
from la4vla.types import UserError


@dataclass(frozen=True)
class Address:
    """A sample's place in a source.

    shard  number in the index
    clip   number in the shard
    frame  where the sample starts in the clip
    """

    shard: int
    clip: int
    frame: int


@dataclass(frozen=True)
class Block:
    """Consecutive shards of a pass that are read together.

    first  stream position of its first sample
    """

    first: int
    shards: tuple[int, ...]
    samples: int

    @property
    def stop(self) -> int:
        return self.first + self.samples


@dataclass(frozen=True)
class Stream:
    """One stream of a source.

    shards   their numbers
    lengths  frames of each shard's clips
    sizes    bytes
    kept     of each shard, the frames of each clip at which a sample starts; None: 0, stride, 2 * stride ...
    """

    seed: int
    source: str
    number: int
    shards: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    stride: int
    shuffle_bytes: int
    kept: tuple[tuple[tuple[int, ...], ...] | None, ...]

    @property
    def samples(self) -> int:
        """Samples of one pass."""
        return sum(self._samples)

    @property
    def resident(self) -> int:
        """Bytes of shards in memory at most: a block is read, and the next one from its middle on."""
        return min(sum(self.sizes), 2 * max(self.shuffle_bytes, *self.sizes))

    @property
    def _samples(self) -> list[int]:
        return [sum(self._counts(place)) for place in range(len(self.shards))]

    def _counts(self, place: int) -> list[int]:
        """Samples of each clip of a shard. place: of the shard in `shards`."""
        kept = self.kept[place]
        return [starts(length, self.stride) for length in self.lengths[place]] if kept is None else [*map(len, kept)]

    def blocks(self, number: int) -> list[Block]:
        """The blocks of pass `number`, in the order they are read."""
        samples = self._samples
        draw = generator(self.seed, RngUse.SHARDS, self.source, self.number, number)
        order = draw.permutation(len(self.shards))
        groups: list[list[int]] = []
        room = 0
        for shard in order:
            if not groups or self.sizes[shard] > room:
                groups.append([])
                room = self.shuffle_bytes
            groups[-1].append(int(shard))
            room -= self.sizes[shard]
        blocks, first = [], number * sum(samples)
        for group in groups:
            count = sum(samples[shard] for shard in group)
            blocks.append(Block(first, tuple(self.shards[shard] for shard in group), count))
            first += count
        return [block for block in blocks if block.samples]

    def block(self, position: int) -> Block:
        """The block that holds stream position `position`, counted over all passes."""
        return next(block for block in self.blocks(position // self.samples) if position < block.stop)

    def shuffled(self, block: Block) -> Shuffled:
        """The addresses of a block's samples, in the order they are read."""
        counts: list[int] = []
        shards: list[int] = []
        clips: list[int] = []
        kept: dict[int, tuple[tuple[int, ...], ...]] = {}
        for shard in block.shards:
            place = self.shards.index(shard)
            of_shard = self._counts(place)
            counts.extend(of_shard)
            shards.extend([shard] * len(of_shard))
            clips.extend(range(len(of_shard)))
            if (frames := self.kept[place]) is not None:
                kept[shard] = frames
        draw = generator(self.seed, RngUse.SAMPLES, self.source, self.number, block.first)
        order = draw.permutation(block.samples).astype(np.uint32)
        return Shuffled(order, np.cumsum(counts), np.asarray(shards), np.asarray(clips), self.stride, kept)


@dataclass(frozen=True)
class Shuffled:
    """The samples of a block in the order in which they are taken.

    order  uint32 [samples], a permutation
    ends   int [clips], running sum of the clips' starts
    kept   shard -> the frames of each clip at which a sample starts; without those of which all do
    """

    order: np.ndarray
    ends: np.ndarray
    shards: np.ndarray
    clips: np.ndarray
    stride: int
    kept: Mapping[int, tuple[tuple[int, ...], ...]]

    def __getitem__(self, number: int) -> Address:
        sample = int(self.order[number])
        clip = int(np.searchsorted(self.ends, sample, side="right"))
        first = int(self.ends[clip - 1]) if clip else 0
        shard, number = int(self.shards[clip]), int(self.clips[clip])
        frames = self.kept.get(shard)
        frame = (sample - first) * self.stride if frames is None else frames[number][sample - first]
        return Address(shard, number, frame)


def make_streams(index: Index, source: str, streams: int, seed: int, shuffle_bytes: int) -> tuple[Stream, ...]:
    """The `streams` streams of a source. Raises UserError if there is nothing to read in one of them."""
    if not index.samples:
        raise UserError(
            f"{source}: {index.location} holds no sample; write clips into it or take it out of the mixture."
        )
    if len(index.shards) < streams:
        raise UserError(
            f"{source}: {len(index.shards)} shards but data.streams={streams}; write it with more shards "
            f"(shards={streams}) or set data.streams={_at_most(len(index.shards))}."
        )
    cuts = tuple(_stream(index, source, number, streams, seed, shuffle_bytes) for number in range(streams))
    for stream in cuts:
        if not stream.samples:
            names = ", ".join(index.shards[shard].name for shard in stream.shards)
            raise UserError(f"{source}: {names} hold no sample; write the clips again into shards of about equal size.")
    return cuts


def _stream(index: Index, source: str, number: int, streams: int, seed: int, shuffle_bytes: int) -> Stream:
    shards = tuple(range(number, len(index.shards), streams))
    lengths = tuple(index.shards[shard].lengths for shard in shards)
    sizes = tuple(index.shards[shard].size for shard in shards)
    kept = tuple(index.shards[shard].kept for shard in shards)
    return Stream(seed, source, number, shards, lengths, sizes, index.frame_stride, shuffle_bytes, kept)


def _at_most(shards: int) -> int:
    """The largest power of two that is not larger: it is divided by the usual numbers of ranks."""
    return 1 << (shards.bit_length() - 1)
