"""What released checkpoints compute differently from ours, switch by switch (docs/released_checkpoints.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from la4vla.config.checks import choice, within
from la4vla.types import UserError

CONTEXTS = ("own", "eager", "flash")


@dataclass
class CompatConfig:
    """Every switch is off by default. `la4vla import` sets those that its checkpoint was trained with."""

    time_scale: int = 0  # 999 | 1000: flow time picks row int(time * scale) of a stored table; 0: continuous time
    pad_state: float = 0.0  # what the head reads at the dims of the state that the robot lacks
    context: str = "own"  # own | eager | flash: rows and attention as the release had them (model/released_context.py)


def validate_compat(compat: CompatConfig, attention: str, learner: str) -> None:
    """Raises UserError for a switch that does not exist and for settings that contradict."""
    choice("model.compat.time_scale", compat.time_scale, (0, 999, 1000))
    choice("model.compat.context", compat.context, CONTEXTS)
    within("model.compat.", asdict(compat), {"pad_state": "[-1, 1]"})
    if compat != CompatConfig() and learner != "policy":
        raise UserError(f"model.compat is a policy's, and learner is {learner}; leave it out.")
    if compat.context != "own" and attention != "sdpa":
        raise UserError(
            f"model.compat.context={compat.context} needs masks of its own, which model.attention={attention} does not "
            "take; set model.attention=sdpa, which computes what flash_attention_2 gives at masked positions as well."
        )
