"""How a hierarchical policy acts: `HierarchicalConfig`, a YAML file with `schema: hierarchical`."""

from __future__ import annotations

from dataclasses import dataclass, field

from la4vla.config.checks import choice, within
from la4vla.config.text_policy import INTERVALS, SamplingConfig
from la4vla.types import UserError

INSTRUCTORS = ("vlm", "oracle")
QUESTIONS = ("next", "next_system")
"""Types of questions whose answers are low-level instructions."""


@dataclass
class HierarchicalConfig:
    """A hierarchical policy (docs/hierarchical.md; GPLA, FACTS 2.1): low-level instructions, and a policy that acts on
    them. The checkpoint that is evaluated or served with this file is the policy."""

    instructor: str = "vlm"  # who says the low-level instruction: vlm (`high` writes it) | oracle (the scripted expert)
    high: str = ""  # instructor vlm: checkpoint of the model that writes, or its run (then its newest one)
    high_base: str = ""  # where the weights of its adapters lie, if not where they lay in training
    question: str = ""  # instructor vlm: next | next_system, as `high` was trained; empty: the one that it was asked
    views: list[str] = field(default_factory=list)  # instructor vlm: cameras that it is shown, in the order of training
    replan: int = 1  # chunks for which an instruction holds; then the next one is said
    next: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_tokens=48))
    top_p: float = 0.95
    attempts: int = 1  # answers until one is an instruction; more than one needs next.temperature above 0


def validate_hierarchical(config: HierarchicalConfig) -> None:
    """Raises UserError for values that are out of range, a model that writes without a folder or cameras, and settings
    of one where none writes."""
    choice("instructor", config.instructor, INSTRUCTORS)
    if config.question:
        choice("question", config.question, QUESTIONS)
    intervals = {**INTERVALS, "replan": "[1, inf)"}
    within("", vars(config), intervals)
    within("next.", vars(config.next), intervals)
    if config.instructor == "oracle" and (config.high or config.views):
        raise UserError("instructor=oracle needs no model that writes; leave out high and views, or set vlm.")
    if config.instructor == "vlm" and not config.high:
        raise UserError("`high` is empty; name the checkpoint that writes the instructions, or set instructor=oracle.")
    if config.instructor == "vlm" and not config.views:
        raise UserError("`views` is empty; name the cameras that `high` was trained on, in order.")
    if config.attempts > 1 and config.next.temperature == 0:
        raise UserError(
            f"attempts is {config.attempts}, and at next.temperature=0 every answer is the same; set attempts=1, or a "
            "temperature such as 0.5."
        )
