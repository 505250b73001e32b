"""The optimizer's rules, engine-free: learning rates by step, who decays, AdamW with its state made at once.

Source: FACTS 4.2 "Optimiser and schedule": AdamW, betas 0.9/0.999, no decay on biases, 1-d tensors and norms, one
learning rate, linear from 0 over the warm-up, cosine to 0 at the last step, in optimizer steps. Linear decay is
VLM2VLA's (its appendix E), a constant rate GPLA's (FACTS 2.1). `wsd` (warm-up, stable, decay) is MiniCPM's, with a
straight line for its decay; it, floors and rates by group are in no recipe of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from la4vla.config import OptimConfig, StageConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


OTHERS = ""
"""Stands for every group without a rate of its own."""


@dataclass(frozen=True)
class Rules:
    """How the parameters of a stage are updated.

    weight_decay  of those that decay
    own_rates     group with a learning rate of its own -> names of its parameters
    """

    weight_decay: float
    own_rates: Mapping[str, Collection[str]]


def rates_at(stage_step: int, stage: StageConfig) -> dict[str, float]:
    """Learning rates of the step that follows `stage_step` finished steps of its stage (0 <= stage_step < steps): of
    each group of `lr_groups`, and under OTHERS that of all other groups."""
    tops = {OTHERS: stage.lr, **stage.lr_groups}
    return {group: lr_at(stage_step, stage, top) for group, top in tops.items()}


def lr_at(stage_step: int, stage: StageConfig, top: float) -> float:
    """The rate whose largest value is `top`: up to it in the warm-up, then as `schedule` says, and at `steps` it would
    be `top * min_lr_ratio` (but `constant`)."""
    if stage_step < stage.warmup_steps:
        return top * stage_step / stage.warmup_steps
    if stage.schedule == "constant":
        return top
    begin = stage.warmup_steps
    if stage.schedule == "wsd":
        begin = max(begin, stage.steps - round(stage.decay_share * stage.steps))
        if stage_step < begin:
            return top
    progress = (stage_step - begin) / max(1, stage.steps - begin)
    height = 0.5 * (1.0 + math.cos(math.pi * progress)) if stage.schedule == "cosine" else 1.0 - progress
    floor = top * stage.min_lr_ratio
    return floor + (top - floor) * height


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.ndim > 1 and not name.endswith("bias") and "norm" not in name.lower()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, each once (tied ones under their first name)."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def build(parameters: dict[str, nn.Parameter], optim: OptimConfig, rules: Rules) -> AdamW:
    """AdamW over the trainable parameters. For each rate, `rate` in the group, one group with decay and one without.
    The learning rates are set every step."""
    rate_of = {name: group for group, names in rules.own_rates.items() for name in names}
    groups: list[dict[str, Any]] = [
        {
            "params": [
                p for name, p in parameters.items() if rate_of.get(name, OTHERS) == rate and decays(name, p) == decayed
            ],
            "weight_decay": rules.weight_decay if decayed else 0.0,
            "rate": rate,
        }
        for rate in (OTHERS, *rules.own_rates)
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def set_rates(groups: Iterable[dict[str, Any]], rates: Mapping[str, float]) -> None:
    """Gives the groups that `build` made their learning rates."""
    for group in groups:
        group["lr"] = rates[group["rate"]]


def fill_state(optimizer: AdamW, tensors: Iterable[Tensor]) -> None:
    """Give each tensor the state that AdamW would make at its first step, so that state always exists.

    Without it a checkpoint before the first step and a resume into a fresh optimizer would be special cases.
    """
    for tensor in tensors:
        optimizer.state[tensor] = {
            "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
            **{key: torch.zeros_like(tensor, memory_format=torch.preserve_format) for key in MOMENTS},
        }


def updates_done(optimizer: AdamW) -> int:
    """Updates applied so far (Adam's t; skipped steps do not count). Syncs with the device."""
    return int(next(iter(optimizer.state.values()))["step"].item())


def set_updates_done(optimizer: AdamW, updates: int) -> None:
    for state in optimizer.state.values():
        state["step"].fill_(updates)


def clip_and_guard(optimizer: AdamW, parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Scale the gradients to at most `clip_norm` and tell the fused update to do nothing if they are not finite.

    Returns their norm before, fp32 0-d. The decision stays on the device: fused AdamW reads `found_inf` and then
    leaves parameters, moments and its step count as they are.
    """
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    return norm
