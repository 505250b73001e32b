"""The seam between the loop and whatever moves gradients between processes. `build.build` makes one.

Order: the module has its weights and its frozen parts already (load -> freeze), then comes the optimizer, then the
wrapping. A new stage is a new engine; nobody flips `requires_grad` below a living one.

What every engine promises
    gradients are SUMMED over ranks and over the micro-batches of a step
    a trainable parameter that no micro-batch of a step touched has gradient zero (not none): its moments decay and
    weight decay applies, on every engine alike
    `step` returns the true global gradient norm before clipping; when it is not finite the step changed nothing
    what trains is fp32, its gradients and moments too; bf16 is autocast inside the forward, so the parameters are the
    masters. What is frozen may be held in bf16 (engine.compute), where no checkpoint stores it
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

ReadMoments = Callable[[str], tuple[Tensor, Tensor]]
ReadAverage = Callable[[str], Tensor]


class Engine(Protocol):
    module: nn.Module

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The module on one micro-batch of its learner: (sum of losses, counted values), fp32 0-d; what else a learner
        asks of its module without a graph comes back as two tensors, too."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of one micro-batch. last: no further micro-batch follows in this step."""
        ...

    def step(self, rates: Mapping[str, float]) -> Tensor:
        """Clip, update with these rates (optim.rates_at), clear the gradients. Returns the global gradient norm before
        clipping, fp32 0-d."""
        ...

    def weights(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """These entries of the module's state dict in fp32, whole, one after the other. All ranks must iterate."""
        ...

    def moments(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, exp_avg, exp_avg_sq) of every trainable parameter, whole. All ranks must iterate."""
        ...

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        """(name, moving average in fp32) of every trainable parameter, whole; none without optim.ema_decay. All ranks
        must iterate."""
        ...

    def updates(self) -> int:
        """Optimizer updates applied (skipped steps do not count)."""
        ...

    def load_moments(self, read: ReadMoments, updates: int) -> None:
        """Continue with the moments that `read(name)` gives."""
        ...

    def load_averages(self, read: ReadAverage) -> None:
        """Continue with the averages that `read(name)` gives."""
        ...

    def masters(self) -> list[Tensor]:
        """The very tensors that the optimizer updates."""
        ...

    def close(self) -> None:
        """Take the hooks off the module. The engine is dead afterwards."""
        ...
