"""A rank's steps from a process of their own, so that decoding never holds the trainer's interpreter.

The loader process runs `Reader` and sends each step through a pipe as one block of shared memory; it works
`data.read_ahead` steps ahead and is then paused. It does not hear SIGINT and SIGTERM: the trainer decides when to stop.
What goes wrong in it is raised in the trainer as the same sentence. It ends with the trainer, however that ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import cv2
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from la4vla.config import TrainConfig
from la4vla.data.reader import Reader, StepData
from la4vla.data.setup import Setup, check_world
from la4vla.types import Batch, ContrastBatch, TextBatch, UserError

ALIGNMENT = 64  # bytes; a tensor starts on a cache line
SHARED_MEMORY = "/dev/shm"
IMAGES = "images."  # before the name of a tensor of TextBatch.images
GO_ON = b"1"
GONE = (BrokenPipeError, ConnectionResetError, EOFError)  # what the pipe says when the trainer closed it or is no more
CLOSE_S = 20.0  # what a loader process gets to end by itself
START = "spawn"  # a trainer has threads, so a fork of it would not be safe

Layout = dict[str, tuple[torch.dtype, torch.Size, tuple[int, ...], int]]
"""name of a batch's tensor -> dtype, shape, strides, offset in bytes."""


@dataclass(frozen=True)
class StepMessage:
    """A step on its way. Its tensors lie in one shared block: one file descriptor a step instead of ten a batch."""

    step: StepData
    layouts: tuple[Layout, ...]
    block: Tensor


@dataclass(frozen=True)
class Failure:
    text: str
    by_user: bool


@dataclass(frozen=True)
class EndOfRun:
    """The run has no more steps."""


@dataclass(frozen=True)
class LoaderJob:
    """What the loader process does.

    start   stage and step of the stage that it begins with
    """

    config: TrainConfig
    setup: Setup
    rank: int
    world_size: int
    start: tuple[str, int]


class Loader:
    """Iterates `StepData` of one rank, from step `start[1]` of stage `start[0]` to the end of the run.

    `setup` is sent to the loader process, so its tokenizer, and its TextEncoder, must pickle.
    Raises UserError for bad input, at once or where the data goes bad, and if the loader process dies.
    """

    def __init__(self, config: TrainConfig, setup: Setup, rank: int, world_size: int, start: tuple[str, int]) -> None:
        check_world(config.data.streams, world_size)
        context = multiprocessing.get_context(START)
        self._pipe, theirs = context.Pipe(duplex=True)
        job = LoaderJob(config, setup, rank, world_size, start)
        self._process = context.Process(target=_run, args=(theirs, job), name=f"loader-{rank}", daemon=True)
        # Blocked signals stay blocked in the child, until it ignores them. So there is no moment when a SIGTERM sent to
        # the whole process group could end the loader under a trainer that wants to save. (Starting the resource
        # tracker unblocks them, so it must be up already.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        # multiprocessing would wait at exit for a child that does not hear its SIGTERM
        atexit.register(self.close)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the loader process. Batches already handed out stay valid."""
        atexit.unregister(self.close)
        self._pipe.close()
        self._process.join(CLOSE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __iter__(self) -> Iterator[StepData]:
        while True:
            began = time.perf_counter()
            message = self._receive()
            if isinstance(message, EndOfRun):
                return
            if isinstance(message, Failure):
                raise UserError(message.text) if message.by_user else RuntimeError(message.text)
            waited = time.perf_counter() - began
            yield replace(message.step, batches=_unpacked(message), wait_s=waited)

    def _receive(self) -> StepMessage | Failure | EndOfRun:
        try:
            message = self._pipe.recv()
            if isinstance(message, StepMessage):
                self._pipe.send_bytes(GO_ON)
            return message
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            self._process.join(CLOSE_S)
            raise UserError(f"{_obituary(self._process.exitcode)}, {_AGAIN}") from error


_AGAIN = "then start again: the run resumes from its newest checkpoint."


def _obituary(exitcode: int | None) -> str:
    if exitcode == -signal.SIGBUS:
        return (
            f"the loader process ran out of {SHARED_MEMORY}; enlarge it (docker: --shm-size) or lower data.read_ahead"
        )
    if exitcode == -signal.SIGKILL:
        return (
            "the loader process was killed, most likely for memory; lower data.read_ahead, ask for more memory, or run "
            "on more machines (a run says before step 0 how much its shards take)"
        )
    return f"the loader process ended with exit code {exitcode}; look at what it said above"


def _run(pipe: Connection, job: LoaderJob) -> None:
    """The loader process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the pool's threads are the parallelism; a fork would warn
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with _Boundary(pipe):
        _send_steps(pipe, job)


class _Boundary:
    """The border of the process: whatever error comes this far is raised in the trainer."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, UserError):
            _last_words(self._pipe, Failure(str(error), by_user=True))
        elif isinstance(error, Exception) and not isinstance(error, GONE):
            text = "".join(traceback.format_exception(error))
            _last_words(self._pipe, Failure(f"in the loader process:\n{text}", by_user=False))
        return isinstance(error, Exception)


def _send_steps(pipe: Connection, job: LoaderJob) -> None:
    ahead = 0
    with Reader(job.config, job.setup, job.rank, job.world_size) as reader:
        for step in reader.steps(*job.start):
            while ahead >= max(1, job.config.data.read_ahead) or (ahead and pipe.poll()):
                pipe.recv_bytes()
                ahead -= 1
            pipe.send(_packed(step))
            ahead += 1
    _last_words(pipe, EndOfRun())


def _last_words(pipe: Connection, message: Failure | EndOfRun) -> None:
    """Sends it and stays until the trainer closes: the shared blocks on their way are handed over by this process."""
    try:
        pipe.send(message)
        while True:
            pipe.recv_bytes()
    except GONE:
        return


def _tensors(batch: Batch | TextBatch | ContrastBatch) -> dict[str, Tensor]:
    """Its tensors by name, a conversation's images as `images.NAME`."""
    tensors = {item.name: value for item in fields(batch) if isinstance(value := batch.__dict__[item.name], Tensor)}
    if isinstance(batch, TextBatch):
        tensors |= {f"{IMAGES}{name}": tensor for name, tensor in batch.images.items()}
    return tensors


def _with_tensors(batch: Any, tensors: Mapping[str, Tensor | None]) -> Any:
    """The batch with these in their places; those that are None are taken out."""
    own: dict[str, Any] = {name: value for name, value in tensors.items() if not name.startswith(IMAGES)}
    if isinstance(batch, TextBatch):
        images = {name.removeprefix(IMAGES): value for name, value in tensors.items() if name.startswith(IMAGES)}
        own["images"] = {name: value for name, value in images.items() if value is not None}
    return replace(batch, **own)


def _packed(step: StepData) -> StepMessage:
    layouts: list[Layout] = []
    size = 0
    for batch in step.batches:
        layout: Layout = {}
        for name, tensor in _tensors(batch).items():
            layout[name] = (tensor.dtype, tensor.shape, tensor.stride(), size)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        layouts.append(layout)
    if os.path.isdir(SHARED_MEMORY) and shutil.disk_usage(SHARED_MEMORY).free < size:
        raise UserError(
            f"a step needs {size >> 20} MiB of {SHARED_MEMORY} and less is free; enlarge it (docker: --shm-size) or "
            "lower data.read_ahead."
        )
    block = torch.empty(size, dtype=torch.uint8).share_memory_()
    for batch, layout in zip(step.batches, layouts, strict=True):
        for name, tensor in _tensors(batch).items():
            _view(block, layout[name]).copy_(tensor)
    bare = tuple(_with_tensors(batch, dict.fromkeys(_tensors(batch))) for batch in step.batches)
    return StepMessage(replace(step, batches=bare), tuple(layouts), block)


def _unpacked(message: StepMessage) -> tuple[Batch | TextBatch | ContrastBatch, ...]:
    pairs = zip(message.step.batches, message.layouts, strict=True)
    return tuple(
        _with_tensors(batch, {name: _view(message.block, place) for name, place in layout.items()})
        for batch, layout in pairs
    )


def _view(block: Tensor, place: tuple[torch.dtype, torch.Size, tuple[int, ...], int]) -> Tensor:
    """The tensor at a place of the block; dense in any order of dims, so channels-last images stay so."""
    dtype, shape, strides, offset = place
    return (
        block[offset : offset + shape.numel() * dtype.itemsize]
        .view(dtype)
        .as_strided(shape, strides, offset // dtype.itemsize)
    )
