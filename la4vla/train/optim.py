"""The optimizer's rules, engine-free: learning rate by step, who decays, AdamW with its state made at once.

Source: FACTS 4.2 "Optimiser and schedule": AdamW, betas 0.9/0.999, no decay on biases, 1-d tensors and norms, one
learning rate, linear from 0 over the warm-up, cosine to 0 at the last step, in optimizer steps. Linear decay is
VLM2VLA's (its appendix E), a constant rate GPLA's (FACTS 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from la4vla.config import OptimConfig, StageConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def lr_at(stage_step: int, stage: StageConfig) -> float:
    """Learning rate of the step that follows `stage_step` finished steps of its stage (0 <= stage_step < steps)."""
    if stage_step < stage.warmup_steps:
        return stage.lr * stage_step / stage.warmup_steps
    if stage.schedule == "constant":
        return stage.lr
    progress = (stage_step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    if stage.schedule == "linear":
        return stage.lr * (1.0 - progress)
    return stage.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.ndim > 1 and not name.endswith("bias") and "norm" not in name.lower()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, each once (tied ones under their first name)."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def build(parameters: dict[str, nn.Parameter], optim: OptimConfig, weight_decay: float) -> AdamW:
    """AdamW over the trainable parameters: one group with decay, one without. The learning rate is set every step."""
    groups = [
        {"params": [p for name, p in parameters.items() if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if not decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


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
