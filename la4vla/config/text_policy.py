"""How a model that writes acts: `TextPolicyConfig`, a YAML file with `schema: text_policy`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from la4vla.config.checks import choice, within
from la4vla.config.construct import VlmConfig
from la4vla.types import UserError

VERIFIERS = ("none", "endpoint", "self", "simulator")


@dataclass
class SamplingConfig:
    """How answers to one type of question are drawn."""

    temperature: float = 0.5  # 0: always the likeliest token
    max_tokens: int = 256  # of an answer


@dataclass
class TextPolicyConfig:
    """A text policy (docs/text_policy.md). Temperatures and top-p are the paper's (FACTS 2.2)."""

    views: list[str] = field(default_factory=list)  # cameras that it is shown, in the order of training
    plan: bool = True  # false: actions are asked for directly, without a motion plan (the paper's NR)
    hand: bool = False  # plan and actions: the question says where the hand is; as it was trained
    verifier: str = "none"  # after each text's motion: none (go on) | endpoint (`vlm`) | self | simulator
    measure_verifier: bool = False  # the simulator's verdict is noted beside that of `self` or `endpoint`
    subtasks: SamplingConfig = field(default_factory=SamplingConfig)  # temperature 1.0 where the task is new
    plans: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.1))
    actions: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_tokens=512))
    completion: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0, max_tokens=8))
    top_p: float = 0.95
    attempts: int = 3  # answers to a question until one has the right form
    tries: int = 3  # of a sub-task that the verifier finds undone; then the next one begins
    rounds: int = 1  # how often sub-tasks are asked for: again where all are done and the episode goes on
    chunk: int = 8  # control steps that a query gets; all of them must be executed
    longest: int = 400  # control steps of one text; a longer motion counts as badly formed
    play: dict[str, Any] = field(default_factory=dict)  # changes of how rows are played (docs/action_text.md)
    safety_filter: bool = False  # downward and forward commands are zeroed while the hand is stopped by something
    cache: str = "runs/verifier"  # verifier endpoint: folder of its replies
    vlm: VlmConfig = field(default_factory=VlmConfig)  # verifier endpoint: where it is


INTERVALS = {
    **dict.fromkeys(("attempts", "tries", "rounds", "chunk", "longest", "max_tokens"), "[1, inf)"),
    "temperature": "[0, inf)",
    "top_p": "(0, 1]",
}
"""Where the numbers must lie, by the field's name."""


def validate_text_policy(config: TextPolicyConfig) -> None:
    """Raises UserError for values that are out of range and for a verifier without its endpoint."""
    choice("verifier", config.verifier, VERIFIERS)
    within("", vars(config), INTERVALS)
    for name, sampling in vars(config).items():
        if isinstance(sampling, SamplingConfig):
            within(f"{name}.", vars(sampling), INTERVALS)
    if not config.views:
        raise UserError("`views` is empty; name the cameras that the model was trained on, in order.")
    if config.measure_verifier and config.verifier not in ("self", "endpoint"):
        raise UserError("measure_verifier is for verifier=self and verifier=endpoint; leave it out.")
    if config.verifier == "endpoint" and not config.vlm.base_url:
        raise UserError("verifier=endpoint needs vlm.base_url, the address of the endpoint; it usually ends in /v1.")
