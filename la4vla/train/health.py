"""What can end a run before its last step: a signal, or too many steps in a row without a finite gradient.

Both are known on the device of every rank after a step; the host reads them one step later, so that it never waits for
the step it has just queued, and all ranks read the same numbers at the same step.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from la4vla.train.dist import World, gathered, log0
from la4vla.types import UserError

KEYS_NAMED = 8


class StopSignal:
    """Remembers SIGTERM (a scheduler's warning). More of them change nothing: launchers repeat what they are sent."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True


@dataclass(frozen=True)
class Trace:
    """One step's outcome on its way to the host.

    numbers  steps skipped in a row, votes to stop
    copied   when it is there, or None on a CPU
    losses   one a micro-batch, with the keys of its samples
    """

    step: int
    numbers: Tensor
    copied: torch.cuda.Event | None
    losses: tuple[tuple[Tensor, tuple[str, ...]], ...]


class Health:
    """Counts skipped steps and reads votes to stop, one step late."""

    def __init__(self, world: World, max_skipped_steps: int) -> None:
        self._world = world
        self._max = max_skipped_steps
        self._streak = torch.zeros((), device=world.device)
        self._pending: Trace | None = None

    def update(
        self, step: int, norm: Tensor, votes: Tensor, losses: tuple[tuple[Tensor, tuple[str, ...]], ...]
    ) -> bool:
        """Take in a step; say whether a rank had asked to stop by the step before it.

        norm: global gradient norm. votes: ranks that ask. Both 0-d, on the device, equal on all ranks. Raises UserError
        naming samples when the step before was the last of too many without a finite norm.
        """
        self._streak = torch.where(torch.isfinite(norm), 0.0, self._streak + 1.0)
        numbers = torch.stack([self._streak, votes.float()])
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            trace = Trace(step, host, copied, losses)
        else:
            trace = Trace(step, numbers, None, losses)
        before, self._pending = self._pending, trace
        return before is not None and self._judge(before)

    def flush(self) -> bool:
        """The same for the last step read, now; before a run or a stage may count as done."""
        before, self._pending = self._pending, None
        return before is not None and self._judge(before)

    def _judge(self, trace: Trace) -> bool:
        if trace.copied is not None:
            trace.copied.synchronize()
        streak, votes = trace.numbers.tolist()
        if streak:
            samples = self._samples(trace)
            if streak >= self._max:
                raise UserError(
                    f"{self._max} steps in a row had no finite gradient and were skipped, the last one step "
                    f"{trace.step}; look at its samples {samples}, then start a new run.dir with run.init_from set to "
                    "this run's folder, and with a lower lr or without the samples that are bad."
                )
            log0(self._world, f"step {trace.step} had no finite gradient and was skipped; its samples: {samples}")
        return votes > 0

    def _samples(self, trace: Trace) -> str:
        """Those whose micro-batch has a loss that is not finite, else all of the step. Collective."""
        mine = [key for loss, keys in trace.losses if not torch.isfinite(loss) for key in keys]
        keys = [key for keys in gathered(mine) for key in keys]
        where = "whose loss is not finite" if keys else "all with finite losses"
        if not keys:
            keys = [key for keys in gathered([key for _, keys in trace.losses for key in keys]) for key in keys]
        named = ", ".join(keys[:KEYS_NAMED]) + (", ..." if len(keys) > KEYS_NAMED else "")
        return f"{named} ({len(keys)} {where})"
