"""The steps of one rank, read, decoded, transformed and collated in this process (loader.py gives it one of its own).

    1 schedule    which samples of which source a step takes                      mixture.Schedule
    2 streams     rank r of W reads the streams r, r + W, ...; position -> clip    StreamReader, shards read ahead
    3 samples     window of the clip, images, chain, augmentation, flow draws      on a pool of `decode_threads`
                  conversation, images, tokens                                     likewise
    4 batches     `la` first, `vla` last, cut at `micro_batch`                     processor.Processor, TextEncoder
A source of kind `contrast` has groups instead of streams: rank r reads the pairs r, r + W, ... of a group, each clip by
itself from its tar, and a micro-batch is of one group.

Every sample is a function of its name (source, n) alone, so neither ranks nor threads change what a step holds.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import simplejpeg

from la4vla.config import TrainConfig
from la4vla.data.augment import augment, augment_as_gpla
from la4vla.data.groups import Pair
from la4vla.data.mixture import Draw, Schedule
from la4vla.data.order import Address, Block, Shuffled, Stream
from la4vla.data.pairs import collate_pairs
from la4vla.data.processor import PreparedSample, Processor
from la4vla.data.setup import Setup, Source, TextSource, check_world
from la4vla.data.shards.read import read_clip, read_shard, read_texts
from la4vla.data.shards.texts import TextRecord
from la4vla.data.shards.writer import Clip
from la4vla.data.text_rows import PreparedText, batch_texts, prepare_text
from la4vla.data.values import BadFrames, Limits, bad_frames
from la4vla.levels import Levels, told
from la4vla.rng import RngUse, generator
from la4vla.types import SOURCE_KINDS, Batch, Kind, Sample, TextBatch, UserError

logger = logging.getLogger(__name__)

SHARD_THREADS = 2  # tars read at the same time: enough to hide a network's latency, few enough to keep the disk serial
STEPS_IN_FLIGHT = 2  # steps whose samples are on the pool while an earlier one is collated
CHUNK = {"la": 64, "la_leaky": 2, "text": 2, "vla": 2, "contrast": 2}
"""Samples that a task of the pool makes: an `la` sample is cheaper than a task."""

Shard = TypeVar("Shard")


@dataclass(frozen=True)
class StepData:
    """What one rank needs for one optimizer step.

    stage, stage_step, step  counted from 0; step counts over all stages
    batches                  in the order of SOURCE_KINDS: `la` ones first, `vla` ones last; each a Batch or a
                             TextBatch, or all of them a ContrastBatch
    samples                  source -> samples of this step over all ranks
    bad_samples              masked ones on this rank since it started
    wait_s                   how long the trainer waited for this (0 in process)
    """

    stage: str
    stage_step: int
    step: int
    batches: tuple[Any, ...]
    samples: Mapping[str, int]
    bad_samples: int
    wait_s: float = 0.0


@dataclass(frozen=True)
class CheckedShard:
    """What was read of a shard.

    clips  in order
    bad    number of a clip -> its frames with numbers that cannot be; most shards have none
    """

    clips: list[Clip]
    bad: Mapping[int, BadFrames]


Prepared = PreparedSample | PreparedText


@dataclass(frozen=True)
class SampleTask:
    """One sample to make.

    shard  that it lies in, perhaps still being read
    """

    source: Source
    n: int
    address: Address
    shard: Future[CheckedShard]


@dataclass(frozen=True)
class TextTask:
    """One conversation to make ready.

    shard  that it lies in, perhaps still being read
    """

    source: TextSource
    address: Address
    shard: Future[list[TextRecord]]


@dataclass(frozen=True)
class MicroBatchTask:
    """A micro-batch in the making.

    source, group  of pairs; empty and 0 for other kinds
    """

    source: str
    group: int
    parts: list[Future[list[Prepared]]]


Task = SampleTask | TextTask


class StreamReader(Generic[Shard]):
    """Walks along one stream and keeps what its present block holds, and the next one's from the middle on.

    read: number of a shard -> what it holds; on a thread of the pool.
    """

    def __init__(self, stream: Stream, read: Callable[[int], Shard], pool: ThreadPoolExecutor) -> None:
        self._stream, self._read, self._pool = stream, read, pool
        self._block = Block(0, (), 0)
        self._shuffled: Shuffled | None = None
        self._shards: dict[int, Future[Shard]] = {}
        self._ahead = False

    def at(self, position: int) -> tuple[Address, Future[Shard]]:
        if self._shuffled is None or not self._block.first <= position < self._block.stop:
            self._block = self._stream.block(position)
            self._shuffled = self._stream.shuffled(self._block)
            self._shards = self._fetched(self._block)
            self._ahead = False
        if not self._ahead and position - self._block.first >= self._block.samples // 2:
            self._shards = {**self._fetched(self._stream.block(self._block.stop)), **self._shards}
            self._ahead = True
        address = self._shuffled[position - self._block.first]
        return address, self._shards[address.shard]

    def _fetched(self, block: Block) -> dict[int, Future[Shard]]:
        return {shard: self._shards.get(shard) or self._pool.submit(self._read, shard) for shard in block.shards}


def read_checked(source: Source, shard: int) -> CheckedShard:
    """Raises UserError for a shard that is not what the index says."""
    clips, limits = read_shard(source.index, shard, source.views), Limits.of(source.stats)
    found = {number: bad for number, clip in enumerate(clips) if (bad := bad_frames(clip, limits)) is not None}
    return CheckedShard(clips, found)


def read_pair(source: Source, pair: Pair) -> CheckedShard:
    """The one clip of a pair, as a shard of its own. Raises UserError for a shard that is not what the index says."""
    clip, limits = read_clip(source.index, pair.place, source.views, pair.frame), Limits.of(source.stats)
    bad = bad_frames(clip, limits)
    return CheckedShard([clip], {0: bad} if bad else {})


class Reader:
    """Iterates the steps of rank `rank` of `world_size`. Close it, or use it as a context manager."""

    def __init__(self, config: TrainConfig, setup: Setup, rank: int, world_size: int) -> None:
        check_world(config.data.streams, world_size)
        self._config, self._setup = config, setup
        self._processors = {name: robot.processor.cached() for name, robot in setup.robots.items()}
        self._streams = range(rank, config.data.streams, world_size)
        self._tars = ThreadPoolExecutor(SHARD_THREADS, "tars")
        self._pool = ThreadPoolExecutor(config.data.decode_threads, "decode")
        self._clips = {
            (name, number): StreamReader(source.streams[number], partial(read_checked, source), self._tars)
            for name, source in setup.sources.items()
            if name not in setup.groups
            for number in self._streams
        }
        self._texts = {
            (name, number): StreamReader(source.streams[number], partial(read_texts, source.index), self._tars)
            for name, source in setup.texts.items()
            for number in self._streams
        }
        self._bad = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for pool in (self._pool, self._tars):
            pool.shutdown(wait=False, cancel_futures=True)

    def steps(self, stage: str, stage_step: int) -> Iterator[StepData]:
        """The run from step `stage_step` of `stage` to the end of its last stage."""
        waiting: deque[tuple[Draw, list[MicroBatchTask]]] = deque()
        for draw in Schedule(self._config).draws(stage, stage_step):
            waiting.append((draw, [self._submit(tasks) for tasks in self._micro_batches(draw)]))
            if len(waiting) > STEPS_IN_FLIGHT:
                yield self._collected(*waiting.popleft())
        while waiting:
            yield self._collected(*waiting.popleft())

    def _micro_batches(self, draw: Draw) -> Iterator[list[Task]]:
        """This rank's share of a step, `la` first; within a kind in the order of the mixture, then of n."""
        size, sources = self._config.stages[draw.stage].micro_batch, self._setup.every_source
        for kind in SOURCE_KINDS:
            names = [name for name in draw.takes if sources[name].kind == kind]
            if kind == "contrast":
                runs = [tasks for name in names for tasks in self._pairs(self._setup.sources[name], *draw.takes[name])]
            else:
                runs = [[task for name in names for task in self._tasks(sources[name], *draw.takes[name])]]
            for tasks in runs:
                for first in range(0, len(tasks), size):
                    yield tasks[first : first + size]

    def _pairs(self, source: Source, first: int, count: int) -> Iterator[list[Task]]:
        """This rank's share of each group."""
        groups = self._setup.groups[source.name]
        assert first % groups.size == count % groups.size == 0, "sources of pairs are taken in whole groups"
        for number in range(first // groups.size, (first + count) // groups.size):
            yield [
                SampleTask(
                    source,
                    number * groups.size + place,
                    Address(pair.place.shard, 0, pair.frame),
                    self._tars.submit(read_pair, source, pair),
                )
                for place, pair in enumerate(groups.group(number))
                if place % self._config.data.streams in self._streams
            ]

    def _tasks(self, source: Source | TextSource, first: int, count: int) -> Iterator[Task]:
        streams = self._config.data.streams
        assert first % streams == count % streams == 0, "sources are taken in units of one sample from each stream"
        for position in range(first // streams, (first + count) // streams):
            for number in self._streams:
                if isinstance(source, TextSource):
                    yield TextTask(source, *self._texts[source.name, number].at(position))
                else:
                    address, shard = self._clips[source.name, number].at(position)
                    yield SampleTask(source, position * streams + number, address, shard)

    def _submit(self, tasks: Sequence[Task]) -> MicroBatchTask:
        one = tasks[0]
        size = CHUNK[one.source.kind]
        parts = [
            self._pool.submit(self._prepare_all, tasks[first : first + size]) for first in range(0, len(tasks), size)
        ]
        if isinstance(one, SampleTask) and one.source.kind == "contrast":
            return MicroBatchTask(one.source.name, one.n // self._config.data.contrast_group, parts)
        return MicroBatchTask("", 0, parts)

    def _collected(self, draw: Draw, micro_batches: list[MicroBatchTask]) -> StepData:
        batches = []
        for task in micro_batches:
            prepared = [item for part in task.parts for item in part.result()]
            samples = [item for item in prepared if isinstance(item, PreparedSample)]
            texts = [item for item in prepared if isinstance(item, PreparedText)]
            for item in samples:
                if item.error:
                    self._count_bad(item.sample.key, item.error, "actions")
            for item in texts:
                if item.error:
                    self._count_bad(item.key, item.error, "answers")
            if task.source:
                pairs = [item.sample for item in samples]
                batches.append(collate_pairs(pairs, self._batcher.encode, task.source, task.group))
            else:
                batches.append(self._batch(samples, texts))
        counts = {source: count for source, (_, count) in draw.takes.items()}
        return StepData(draw.stage, draw.stage_step, draw.step, tuple(batches), counts, self._bad)

    def _batch(self, samples: Sequence[PreparedSample], texts: Sequence[PreparedText]) -> Batch | TextBatch:
        if texts:
            assert self._setup.encoder is not None, "conversations are read where something encodes them"
            return batch_texts(texts, self._setup.encoder)
        return self._batcher.batch(samples)

    @property
    def _batcher(self) -> Processor:
        """What makes batches out of the prepared samples of any robot."""
        return next(iter(self._processors.values()))

    def _count_bad(self, key: str, error: str, what: str) -> None:
        self._bad += 1
        allowed = self._config.data.max_bad_samples
        if self._bad > allowed:
            raise UserError(
                f"{key}: {error}; write its folder again without this fault (and train in a new "
                f"run.dir), or raise data.max_bad_samples, now {allowed}, to leave such samples out."
            )
        logger.warning("%s: %s; its %s are masked (%d of %d allowed)", key, error, what, self._bad, allowed)

    def _prepare_all(self, tasks: Sequence[Task]) -> list[Prepared]:
        return [self._prepare_text(task) if isinstance(task, TextTask) else self._prepare(task) for task in tasks]

    def _prepare_text(self, task: TextTask) -> PreparedText:
        assert self._setup.encoder is not None, "conversations are read where something encodes them"
        shard = task.source.index.shards[task.address.shard].name
        return prepare_text(task.shard.result()[task.address.clip], task.source, shard, self._setup.encoder)

    def _prepare(self, task: SampleTask) -> PreparedSample:
        seed, source = self._config.run.seed, task.source
        processor = self._processors[source.index.embodiment.name]
        shard, frame = task.shard.result(), task.address.frame
        clip, bad = shard.clips[task.address.clip], shard.bad.get(task.address.clip)
        sample = window(clip, frame, processor.spec.horizon, source.sample_kind, source.name, source.levels)
        error = (
            bad.within(frame, frame + int(sample.action_valid.sum()), processor.chain.takes_every_state) if bad else ""
        )
        if source.views and not error:
            try:
                sample = sample.but(views=_decoded(clip, frame, source.views))
            except ValueError as reason:
                error = str(reason)
        if error:
            sample = _masked(sample, source)
            error = f"shard {source.index.shards[task.address.shard].name}, {error}"
        prepared = processor.prepare(sample, generator(seed, RngUse.FLOW, source.name, task.n))
        data = self._config.data
        if data.augment and not error and (source.views or data.augmentation == "gpla"):
            change = augment_as_gpla if data.augmentation == "gpla" else augment
            draw = generator(seed, RngUse.AUGMENT, source.name, task.n)
            return replace(prepared, sample=change(prepared.sample, draw, data.augment))
        return replace(prepared, error=error)


def window(clip: Clip, frame: int, horizon: int, kind: Kind, source: str, levels: Levels = "low") -> Sample:
    """The raw sample of a clip at one frame, without images; rows past the clip's end are zero and not valid.

    Raises UserError where levels is both and the clip has no task.
    """
    if levels == "both" and not clip.task.strip():
        raise UserError(
            f"{source}/{clip.key}: the clip has no task, and its source's levels is both; set data.sources levels to "
            "low, or write the folder with tasks."
        )
    stop = min(frame + horizon, len(clip))
    valid = np.arange(horizon) < stop - frame
    action = np.zeros((horizon, clip.action.shape[1]), np.float32)
    states = np.zeros((horizon, clip.state.shape[1]), np.float32)
    action[: stop - frame] = clip.action[frame:stop]
    states[: stop - frame] = clip.state[frame:stop]
    return Sample(
        kind=kind,
        key=f"{source}/{clip.key}/{frame}",
        instruction=told(levels, clip.task, clip.instruction),
        state=clip.state[frame],
        action=action,
        action_valid=valid,
        state_mask=np.ones(clip.state.shape[1], bool),
        action_mask=np.ones(clip.action.shape[1], bool),
        action_states=states,
    )


def _decoded(clip: Clip, frame: int, views: Sequence[str]) -> dict[str, np.ndarray]:
    """uint8 RGB [H, W, 3] each. Raises ValueError, naming the view, for a damaged or absent image."""
    images = {}
    for view in views:
        if frame not in clip.frames[view]:
            raise ValueError(f"view {view} has no image at frame {frame}")
        try:
            images[view] = simplejpeg.decode_jpeg(clip.frames[view][frame], colorspace="RGB")
        except ValueError as error:
            raise ValueError(f"view {view}, frame {frame}: {error}") from error
    return images


def _masked(sample: Sample, source: Source) -> Sample:
    """A stand-in for a bad sample: none of its actions counts, its numbers are zeros (a masked NaN is a NaN still), and
    it has grey images where its row has tokens for them."""
    assert sample.action is not None and sample.action_states is not None
    sizes = {view: source.index.views[view] for view in source.views}
    return sample.but(
        state=np.zeros_like(sample.state),
        action=np.zeros_like(sample.action),
        action_states=np.zeros_like(sample.action_states),
        action_valid=np.zeros_like(sample.action_valid),
        views={view: np.full((size.height, size.width, 3), 128, np.uint8) for view, size in sizes.items()},
    )
