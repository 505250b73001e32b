"""One process, or data parallel over gloo/nccl: gradients live in flat buckets that are summed over ranks.

Not torch's DDP, because DDP reduces only what the last micro-batch of a step used: in a step whose last micro-batch
is LA it leaves the vision gradients of an earlier micro-batch unreduced, and ranks drift apart silently. Here a bucket
is summed when all of its parameters have their gradient in the last micro-batch, behind the rest of the backward pass,
and whatever is left over after it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from la4vla.config import TrainConfig
from la4vla.train import ema, optim
from la4vla.train.dist import World
from la4vla.train.engines.engine import ReadAverage, ReadMoments
from la4vla.train.optim import Rules

BUCKET_ELEMENTS = 8 * 2**20  # 32 MB of fp32, near the 25 MB that DDP uses


@dataclass
class Bucket:
    """Gradients of neighbouring parameters in one tensor.

    missing  parameters still without one in this backward
    """

    flat: Tensor
    parameters: list[nn.Parameter]
    missing: int
    work: dist.Work | None


class PlainEngine:
    def __init__(self, module: nn.Module, config: TrainConfig, rules: Rules, world: World) -> None:
        self.module = module.to(world.device)
        self._world = world
        self._clip_norm = config.optim.clip_norm
        self._ema_decay = config.optim.ema_decay
        self._bf16 = config.engine.precision == "bf16"
        self._parameters = optim.trainable(self.module)
        if world.size > 1:
            for tensor in self.module.state_dict().values():
                dist.broadcast(tensor, src=0)
        self._optimizer = optim.build(self._parameters, config.optim, rules)
        optim.fill_state(self._optimizer, self._parameters.values())
        if self._ema_decay:
            ema.begin(self._optimizer, self.masters())
        # Backward reaches the last layers first, so buckets are filled and sent in that order.
        self._buckets = _make_buckets(list(reversed(self._parameters.values())))
        self._last, self._next = False, 0
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived(bucket))
            for bucket in self._buckets
            for parameter in bucket.parameters
        ]

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._bf16):
            return self.module(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._last = last and self._world.size > 1
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        loss.backward()
        if self._last:
            self._send(len(self._buckets))
            for bucket in self._buckets:
                assert bucket.work is not None
                bucket.work.wait()
            self._next = 0

    def step(self, rates: Mapping[str, float]) -> Tensor:
        norm = optim.clip_and_guard(self._optimizer, list(self._parameters.values()), self._clip_norm)
        optim.set_rates(self._optimizer.param_groups, rates)
        self._optimizer.step()
        if self._ema_decay:
            ema.update(self._optimizer, self.masters(), self._ema_decay, norm)
        for bucket in self._buckets:
            bucket.flat.zero_()
        return norm

    def weights(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        state = self.module.state_dict()
        yield from ((name, state[name]) for name in names)

    def moments(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, parameter in self._parameters.items():
            state = self._optimizer.state[parameter]
            yield name, state["exp_avg"], state["exp_avg_sq"]

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters.items() if self._ema_decay else ():
            yield name, self._optimizer.state[parameter][ema.KEY]

    def updates(self) -> int:
        return optim.updates_done(self._optimizer)

    def load_moments(self, read: ReadMoments, updates: int) -> None:
        for name, parameter in self._parameters.items():
            state = self._optimizer.state[parameter]
            for key, value in zip(optim.MOMENTS, read(name), strict=True):
                state[key].copy_(value)
        optim.set_updates_done(self._optimizer, updates)

    def load_averages(self, read: ReadAverage) -> None:
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter][ema.KEY].copy_(read(name))

    def masters(self) -> list[Tensor]:
        return [tensor for group in self._optimizer.param_groups for tensor in group["params"]]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter in self._parameters.values():
            parameter.grad = None

    def _arrived(self, bucket: Bucket):  # noqa: ANN202 (a closure for autograd)
        def hook(_: Tensor) -> None:
            bucket.missing -= 1
            if self._last and bucket.missing == 0:
                ready = self._next
                while ready < len(self._buckets) and self._buckets[ready].missing == 0:
                    ready += 1
                self._send(ready)

        return hook

    def _send(self, end: int) -> None:
        """Start the sums of the buckets before `end`, always in the same order: ranks must agree on it."""
        for bucket in self._buckets[self._next : end]:
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
        self._next = max(self._next, end)


def _make_buckets(parameters: list[nn.Parameter]) -> list[Bucket]:
    """Flat zero buffers in the given order; each `grad` becomes a view of its part."""
    buckets: list[Bucket] = []
    pending: list[nn.Parameter] = []
    for index, parameter in enumerate(parameters):
        pending.append(parameter)
        full = sum(item.numel() for item in pending) >= BUCKET_ELEMENTS
        if full or index == len(parameters) - 1:
            flat = torch.zeros(sum(item.numel() for item in pending), device=parameter.device)
            for item, part in zip(pending, flat.split([item.numel() for item in pending]), strict=True):
                item.grad = part.view_as(item)
            buckets.append(Bucket(flat, pending, 0, None))
            pending = []
    return buckets
