"""What a run has for settings when it does not begin with a preset and end with its rate: sizes, parts of another
checkpoint, and their checks. `config` is a TrainConfig, whose file imports this one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from la4vla.config.checks import choice, within
from la4vla.types import UserError

SIZES = ("horizon", "llm_layers", "state_dim", "action_dim")
"""Sizes of a policy that a config may set beside its preset (docs/training.md)."""

SCHEDULES = ("cosine", "linear", "constant", "wsd")
"""How a learning rate goes on after its warm-up (docs/training_finetuning.md)."""


@dataclass
class InitPartsConfig:
    """Which weights of `run.init_from` a policy takes, by patterns of their names (docs/training_finetuning.md)."""

    take: list[str] = field(default_factory=list)  # patterns of what is taken; empty: all that `leave` does not name
    leave: list[str] = field(default_factory=list)  # patterns of what is not: it begins fresh
    rename: dict[str, str] = field(default_factory=dict)  # pattern in the checkpoint -> name in this model, first


def begins_in_parts(run: Any) -> bool:
    """Whether only some of the weights of a RunConfig's `init_from` are taken."""
    return any(asdict(run.init_parts).values())


def validate_beginning(config: Any) -> None:
    """The checks of sizes and parts. Raises UserError."""
    set_here = [name for name in SIZES if asdict(config.model)[name]]
    if set_here and config.learner != "policy":
        elsewhere = "grounding.horizon" if config.learner == "grounding" else "model.weights or model.preset"
        raise UserError(
            f"model.{set_here[0]} is a size of the policy, and learner is {config.learner}, whose sizes are those of "
            f"{elsewhere}; leave it out."
        )
    if not begins_in_parts(config.run):
        return
    if not config.run.init_from:
        raise UserError("run.init_parts says what to take of a checkpoint, and run.init_from names none; set it.")
    if config.learner != "policy":
        raise UserError(f"run.init_parts is of the policy, and learner is {config.learner}; leave it out.")
    if config.model.lora.rank:
        raise UserError(
            "model.lora adapts a checkpoint as it is, and run.init_parts takes a part of it; train one step with "
            "run.init_parts and without model.lora, then set run.init_from to that run."
        )
    if config.model.embodiments == "separate":
        raise UserError(
            "run.init_parts takes weights by name, and with model.embodiments=separate a name holds those of several "
            "robots; set model.embodiments=shared, or leave run.init_parts out."
        )


def validate_rates(name: str, stage: Any) -> None:
    """The checks of a stage's learning rates. Raises UserError."""
    for group in stage.lr_groups:
        choice(f"stages.{name}.lr_groups", group, tuple(stage.train))
    within(f"stages.{name}.lr_groups.", stage.lr_groups, dict.fromkeys(stage.lr_groups, "[0, inf)"))
    if stage.schedule == "constant" and stage.min_lr_ratio:
        raise UserError(
            f"stages.{name}.min_lr_ratio is {stage.min_lr_ratio:g}, and schedule is constant, which never goes down; "
            "leave it out, or set another schedule."
        )
