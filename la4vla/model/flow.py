"""The algebra of the flow: straight paths from noise (time 0) to actions (time 1). Pure functions, no modules, no
randomness.

    x_t = (1 - t) * noise + t * actions        velocity = actions - noise        (FACTS 4.2)

Everything here is fp32 and continuous in time. The released code rounded t to bf16 and to a table of 1000 entries, so
that half of the entries it met when sampling had never been trained (FACTS 5.1, B3).

Masking. `action_mask_BTA` is False on dims the robot lacks and past the end of the clip. Targets count as 0 there and
errors as none, whatever they hold. Noise is kept past the end of the clip and is 0 on absent dims, in training and in
sampling alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TIME_SCALE = 999.0
"""Time 0..1 spans the 1000 entries of the released sinusoidal table (`(t*999).long()`, FACTS 4.2), without the
rounding.
"""
TIME_ROWS = 1000  # of that table


def present_dims(action_mask_BTA: Tensor) -> Tensor:
    """bool [B, 1, A]: dims the robot has, whatever part of the chunk is real."""
    return action_mask_BTA.any(dim=1, keepdim=True)


def path(noise_BTA: Tensor, actions_BTA: Tensor, action_mask_BTA: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t, target velocity), both fp32 [B, T, A]. noise, actions: fp32. time: fp32 in [0, 1]."""
    noise = noise_BTA.float().masked_fill(~present_dims(action_mask_BTA), 0.0)
    actions = actions_BTA.float().masked_fill(~action_mask_BTA, 0.0)
    time = time_B.float()[:, None, None]
    return (1.0 - time) * noise + time * actions, actions - noise


def squared_error(velocity_BTA: Tensor, target_BTA: Tensor, action_mask_BTA: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of squared errors, number of counted values), fp32 scalars. The caller divides by the global count."""
    error = (velocity_BTA.float() - target_BTA).masked_fill(~action_mask_BTA, 0.0)
    return error.square().sum(), action_mask_BTA.sum(dtype=torch.float32)


def euler(velocity: Callable[[Tensor, Tensor], Tensor], noise_BTA: Tensor, dims_B1A: Tensor, steps: int) -> Tensor:
    """The actions that `velocity(x, time_B)` carries the noise to, fp32 [B, T, A]; t = i / steps from 0 (FACTS 4.2).

    Absent dims start at 0 and stay 0.
    """
    assert steps >= 1
    x = noise_BTA.float().masked_fill(~dims_B1A, 0.0)
    for index in range(steps):
        time_B = torch.full((x.shape[0],), index / steps, dtype=torch.float32, device=x.device)
        x = x + velocity(x, time_B).float().masked_fill(~dims_B1A, 0.0) / steps
    return x


def sinusoid(position: Tensor, width: int) -> Tensor:
    """fp32 [..., width] of real-valued positions: sin at even, cos at odd places, as in the released `pe` tables.

    Computed, not stored: a stored table would be rounded when an engine casts the model to bf16 (FACTS 4.1, buffers).
    """
    assert width % 2 == 0
    rate = torch.arange(0, width, 2, dtype=torch.float32, device=position.device) * (
        -9.210340371976184 / width
    )  # ln 1e4
    angle = position.float()[..., None] * rate.exp()
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)
