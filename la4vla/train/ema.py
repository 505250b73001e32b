"""The exponential moving average of what trains: fp32, kept beside AdamW's moments, where the masters are.

    average += (1 - d) x (weight - average),  d = min(optim.ema_decay, (1 + n) / (10 + n))

after update n of the stage (counted from 1), so that an average over thousands of steps does not hold the first weights
for thousands of steps. A stage begins with its weights as the average, as it begins with a new optimizer. A step that
is skipped leaves the average as it is. The warm-up of d is that of TensorFlow's ExponentialMovingAverage.

Each rank averages the masters that it updates: all of them, or with ZeRO 1 to 3 its part. No process holds more for it
than for one of the moments, and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import AdamW

KEY = "ema"
"""Its name in an optimizer's state, beside optim.MOMENTS."""


@torch.no_grad()
def begin(optimizer: AdamW, masters: Sequence[Tensor]) -> None:
    """An average for each master, which has its state already."""
    for master in masters:
        optimizer.state[master][KEY] = master.detach().clone()


@torch.no_grad()
def update(optimizer: AdamW, masters: Sequence[Tensor], decay: float, norm: Tensor) -> None:
    """After an update. norm: of the step's gradient, fp32 0-d on the masters' device; not finite in a skipped step."""
    done = optimizer.state[masters[0]]["step"]
    moved = 1.0 - torch.clamp((1.0 + done) / (10.0 + done), max=decay)
    moved = torch.where(torch.isfinite(norm), moved, 0.0)
    for master in masters:
        optimizer.state[master][KEY].lerp_(master.detach(), moved)
