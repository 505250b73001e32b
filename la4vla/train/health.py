"""What can end a run before its last step: a signal, or too many steps in a row without a finite gradient.

Both are known on the device of every rank after a step; the host reads them one step later, so that it never waits for
the step it has just queued, and all ranks read the same numbers at the same step.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from la4vla.train.dist import World, gathered, log0
from la4vla.types import UserError

KEYS_NAMED = 8
INSIST_S = 5.0  # torchrun repeats a Ctrl-C to ranks that the terminal has told already, well within this


class StopSignal:
    """Remembers SIGTERM (a scheduler's warning) and SIGINT (Ctrl-C), and the run saves and ends after its present step.
    More of them change nothing, since launchers repeat what they are sent; but a SIGINT that comes INSIST_S seconds
    after the first signal or later is from a person who insists: it ends this process at once, and saves nothing."""

    def __init__(self) -> None:
        self.received = False
        self._since = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._since = True, now
        elif number == signal.SIGINT and now - self._since >= INSIST_S:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)


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
                    f"{trace.step}; look at its samples {samples}, then start a new run.dir without those that are "
                    "bad or with a lower lr (run.init_from takes over a checkpoint from before the loss broke)."
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
