"""What a grounding model has for settings, and their checks. `config` is a TrainConfig, whose file imports this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from la4vla.config.checks import within
from la4vla.types import UserError

HEADS = 4  # of the action encoder, whose width is grounding.dim
GROUNDING_GROUPS = ("vision", "text", "head")
"""Parts of a grounding model that a stage can train: the two towers, and all that stands on them."""


@dataclass
class GroundingConfig:
    vision: bool = True  # false: the scene is not shown, and actions alone are scored
    horizon: int = 8  # actions of a motion at most (FACTS 2.1)
    dim: int = 64  # of the embeddings of motions and sentences (FACTS 2.1)
    diversity: float = 0.01  # weight of the term that pushes the pairs of a group apart (FACTS 2.1)


def validate_grounding(config: Any) -> None:
    """The checks of a whole run, of any learner. Raises UserError."""
    check = config.validate
    if (check.pairs or check.patience) and config.learner != "grounding":
        raise UserError("validate.pairs and validate.patience are of learner grounding; leave them out.")
    if check.patience and not (check.pairs and check.every_steps % config.checkpoint.every_steps == 0):
        raise UserError(
            "validate.patience ends a run by its held-out loss and keeps the best checkpoint; set validate.pairs, and "
            "validate.every_steps to a multiple of checkpoint.every_steps."
        )
    if check.patience and len(config.stages) > 1:
        raise UserError("validate.patience is for a run of one stage; train the stages as runs, with run.init_from.")
    if config.learner != "grounding":
        return
    within("grounding.", {"horizon": config.grounding.horizon}, {"horizon": "[1, inf)"})
    if config.grounding.dim % HEADS:
        raise UserError(f"grounding.dim is {config.grounding.dim}; it must be a multiple of {HEADS}.")
    if config.model.lora.rank:
        raise UserError("learner grounding has no adapters; set model.lora.rank=0.")
    if config.data.action != "recorded":
        raise UserError("learner grounding scores actions whose states it is not given; set data.action=recorded.")
    if config.data.contrast_group % config.data.streams:
        raise UserError(
            f"data.contrast_group is {config.data.contrast_group}; it must be a multiple of data.streams "
            f"({config.data.streams}), by which its pairs are shared by the ranks."
        )
    if config.engine.name == "deepspeed" and config.engine.zero_stage == 3:
        raise UserError(
            "engine.zero_stage=3 cuts up weights that learner grounding uses twice a step, and few of them train; set "
            "engine.zero_stage=2."
        )
    if config.engine.gradient_checkpointing:
        raise UserError(
            "engine.gradient_checkpointing is not for learner grounding; lower micro_batch, which changes no result."
        )


def validate_contrast(name: str, stage: Any, kinds: set[str], config: Any) -> None:
    """The checks of a stage of a grounding model, whose sources have these kinds. Raises UserError."""
    if kinds != {"contrast"}:
        raise UserError(
            f"stages.{name} mixes {', '.join(sorted(kinds - {'contrast'}))} sources, and learner grounding takes clips "
            "of kind contrast alone; set their kind, or take them out."
        )
    if told := [source for source in stage.mixture if config.data.sources[source].levels != "low"]:
        raise UserError(
            f"data.sources.{told[0]}.levels is both, and a grounding model judges low-level sentences; leave it out."
        )
    if stage.global_batch % config.data.contrast_group:
        raise UserError(
            f"stages.{name}.global_batch is {stage.global_batch}; it must be a multiple of data.contrast_group "
            f"({config.data.contrast_group}): a step holds whole groups."
        )
    if "vision" in stage.train and not config.grounding.vision:
        raise UserError(f"stages.{name} trains vision and grounding.vision is false; take vision out of `train`.")
