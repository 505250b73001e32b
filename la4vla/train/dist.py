"""Who we are among the processes of a run, and the few collectives that are not about gradients.

Owns the process group. Refuses to know about models: engines reduce gradients, this file reduces numbers.
A collective is called by every rank or by none, so none of these functions may stand inside a rank branch.
A rank that dies or hangs breaks the collectives of the others; what their backend says of it is told apart here from
every other error.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous
from tqdm import tqdm

from la4vla.types import UserError

T = TypeVar("T")
ERROR_SAID = "la4vla/error"
STORE_S = 10.0  # for an answer of the store, which may live in the very process that is gone or hangs
GLOO = re.compile(r"/gloo/\S+\] (?P<said>.*?)(?:\. This is typically|$)", re.DOTALL)
"""A gloo error: the place in its source, what happened, and advice that is not for users."""


@dataclass(frozen=True)
class World:
    """The processes of a run.

    rank        which one of 0..size-1 this is
    local_rank  which one on this machine
    size        how many there are
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    store: Store = field(repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(timeout_s: float) -> World:
    """`connect` and `join`."""
    world = connect()
    join(world, timeout_s)
    return world


def connect() -> World:
    """The run that torchrun describes in the environment, or a run of one process. Not yet a group: no collectives."""
    if "RANK" in os.environ:
        store, rank, size = next(rendezvous("env://"))
        local_rank = int(os.environ["LOCAL_RANK"])
    else:
        store, rank, size, local_rank = dist.HashStore(), 0, 1, 0  # pyright: ignore[reportPrivateImportUsage]
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    return World(rank, local_rank, size, device, store)


def join(world: World, timeout_s: float) -> None:
    """Make the process group. It speaks gloo for host tensors and nccl for device tensors.

    timeout_s: what a collective waits for the other ranks before it fails.
    Raises UserError, on every rank of a machine, when the machine has fewer GPUs than processes.
    """
    backend = "gloo"
    if world.device.type == "cuda":
        gpus = torch.cuda.device_count()
        # torchrun tells; a run of one process, or ranks started by hand, at least know of those before them.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", world.local_rank + 1))
        if processes > gpus:
            raise UserError(
                f"{processes} processes were started on {platform.node()}, which has {gpus} GPUs; start as many "
                "processes a machine as it has GPUs (--nproc-per-node)."
            )
        torch.cuda.set_device(world.device)
        backend = "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=world.store, rank=world.rank, world_size=world.size, timeout=timeout)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(world: World) -> None:
    """`stop` after an error. A process that ends with a group of gloo is now and then aborted in its teardown, and
    its exit status is lost; with NCCL it may end as it is, while taking the group down could wait for lost ranks."""
    if world.device.type == "cpu":
        stop()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, in place; queued on the device, without a host sync on GPUs."""
    dist.all_reduce(tensor)
    return tensor


def max_over_ranks(tensor: Tensor) -> Tensor:
    """The largest value of any rank, in place."""
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def from_main(value: T) -> T:
    """Rank 0's value on every rank (picklable; waits for rank 0)."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def on_main(world: World, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0 (picklable), on every rank; the others wait. Its UserError is raised on all."""
    result: T | None = None
    problem = ""
    if world.is_main:
        try:
            result = work()
        except UserError as error:
            problem = str(error)
    problem, result = from_main((problem, result))
    if problem:
        raise UserError(problem)
    return cast(T, result)


def gathered_rows(own: Tensor) -> list[Tensor]:
    """Every rank's tensor, in rank order, on every rank; all have one shape. Queued on the device. No gradient."""
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own.contiguous())
    return every


def gathered(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank (picklable)."""
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def log0(world: World, text: str) -> None:
    """Print once, to stdout, past a progress bar."""
    if world.is_main:
        tqdm.write(text)
        sys.stdout.flush()  # a job's log is a file, and a killed job must have said what it did


def first_to_fail(world: World) -> bool:
    """True for one caller of the whole run, so that an error that every rank has is printed once. Where the store is
    gone with the process that held it, True for all."""
    answers: list[bool] = []

    def ask() -> None:
        with suppress(dist.DistError):
            answers.append(world.store.add(ERROR_SAID, 1) == 1)

    asking = threading.Thread(target=ask, daemon=True)  # the store of a process that hangs never answers
    asking.start()
    asking.join(STORE_S)
    return answers[0] if answers else True


def lost_peer(error: RuntimeError) -> str:
    """How a collective broke because another rank ended or did not answer, in the backend's words; empty for any other
    error."""
    if found := GLOO.search(str(error)):
        return found["said"]
    return str(error).strip().splitlines()[0] if isinstance(error, dist.DistError) else ""
