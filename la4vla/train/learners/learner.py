"""The seam between the loop and what is learned: the loop, engines, order, checkpoints and metrics serve any learner.

A learner knows its data and its module. It reads steps of micro-batches, builds the module of a stage, says what
trains, and what a checkpoint must hold so that the module can be rebuilt. `policy_learner.py` has the policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import nn

from la4vla.train.checkpoint import Identity
from la4vla.train.engines.engine import Engine
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume


class MicroBatch(Protocol):
    """Samples of one kind that go through the module together."""

    @property
    def kind(self) -> str: ...

    @property
    def rows(self) -> int:
        """Samples in it."""
        ...

    @property
    def counted(self) -> int:
        """Values that count in the loss. Reads tensors: before the batch is moved to a device."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """One name a row, for messages."""
        ...

    def to(self, device: torch.device | str) -> Self: ...

    def pin(self) -> Self:
        """The same in page-locked memory, from which a copy to a GPU does not wait."""
        ...


class Step(Protocol):
    """What one rank needs for one optimizer step; data.reader.StepData is the policy's.

    stage, stage_step, step  counted from 0; step counts over all stages
    batches                  in the order of the learner's kinds
    samples                  source -> samples of this step over all ranks
    bad_samples              unreadable ones on this rank since it started
    wait_s                   how long the trainer waited for this
    """

    @property
    def stage(self) -> str: ...

    @property
    def stage_step(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def batches(self) -> Sequence[Any]: ...

    @property
    def samples(self) -> Mapping[str, int]: ...

    @property
    def bad_samples(self) -> int: ...

    @property
    def wait_s(self) -> float: ...


class Learner(Protocol):
    """Made for one run, from where it stands. Close it.

    kinds  of micro-batches, in the order in which a step runs them
    """

    @property
    def kinds(self) -> tuple[str, ...]: ...

    def build(self, resume: Resume) -> nn.Module:
        """The module on the CPU with its weights, in training mode, frozen but for what the stage trains. Its call
        takes a micro-batch and returns (sum of losses, counted values), fp32 0-d."""
        ...

    def identity(self, module: Any) -> Identity:
        """The learner's part of a checkpoint's manifest, as the run stands. Asked for at every save."""
        ...

    def trainable_table(self, module: Any) -> str:
        """Which groups of the module train, and their sizes."""
        ...

    def explain(self) -> str:
        """What a user should read before step 0: the arithmetic of the run, and what its numbers mean."""
        ...

    def shared_by_ranks(self) -> dict[str, Any]:
        """What must be the same on all ranks: what it is -> JSON values."""
        ...

    def steps(self) -> Iterator[Step]:
        """This rank's steps, to the end of the run. Raises UserError for bad data."""
        ...

    def ready(self, step: Any, module: Any, engine: Engine) -> Step:
        """The step as its forward and backward passes take it, before the first of them. Most learners return what
        they are given; one whose loss is of more than a micro-batch looks at the others here. Collective."""
        ...

    def write_first_batch(self, step: Any, folder: Path) -> None:
        """A picture of what is learned from, for a person to look at."""
        ...

    def validate(self, module: Any, engine: Engine) -> Record:
        """Numbers on held-out data; none where the config names none. Collective."""
        ...

    def flops(self, module: Any, step: Any) -> float:
        """Useful operations of this rank in a step."""
        ...

    def close(self) -> None: ...
