"""The two levels of language that a clip has, and what a policy is told of them.

The *task* is the episode's sentence (high level), the *instruction* the clip's own (low level). Training, serving and
every measurement put them together here, so that a policy is asked in the words that it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from la4vla.types import UserError

Levels = Literal["low", "both"]
LEVELS: tuple[Levels, ...] = ("low", "both")
"""low: the instruction alone. both: task and instruction, as GPLA's low-level policy is told (FACTS 2.1)."""


def told(levels: Levels, task: str, instruction: str) -> str:
    """The text a policy is given.

    `both` gives "TASK: INSTRUCTION", without the task's full stop; the task alone where the instruction is empty or the
    same sentence, and the instruction alone where there is no task.
    """
    if levels == "low" or not task.strip():
        return instruction
    high, low = _bare(task), _bare(instruction)
    return task if low in ("", high) else f"{high}: {instruction.strip()}"


def levels_of(config: Mapping[str, Any]) -> Levels:
    """How a run's policy is asked: as in the last stage, where it learned from sources that show images, else from
    those that do not.

    config: the resolved TrainConfig as a mapping, such as a checkpoint's `Manifest.config`. Raises UserError where
    these sources disagree.
    """
    name, stage = list(config["stages"].items())[-1]
    mixed = {source: config["data"]["sources"][source] for source, share in stage["mixture"].items() if share}
    seeing = {source: about for source, about in mixed.items() if about["kind"] in ("vla", "la_leaky")}
    asked = seeing or {source: about for source, about in mixed.items() if about["kind"] == "la"}
    found = {about["levels"]: source for source, about in asked.items()}
    if len(found) > 1:
        raise UserError(
            f"stages.{name} mixes source {found['low']} with levels: low and {found['both']} with levels: both, so "
            "nothing says how its policy is to be asked; give the sources that show images the same levels."
        )
    return LEVELS[LEVELS.index(next(iter(found), "low"))]


def _bare(sentence: str) -> str:
    return sentence.strip().rstrip(".").rstrip()
