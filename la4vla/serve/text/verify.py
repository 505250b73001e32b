"""Whether a sub-task is done: the verifiers that need no questions to the policy's own model.

`Inspector` asks a VLM behind an endpoint with the paper's prompt (verifier.yaml, appendix D.5). `simulator_says` knows
the truth: the scripted expert has gone on to its next phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import yaml

from la4vla.chat.conversation import AnswerFormat, Conversations, Message, complaint, image_part, text_part
from la4vla.chat.json_answer import last_object
from la4vla.config import VlmConfig
from la4vla.serve.privileged import PHASE
from la4vla.types import Observation

PROMPT: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "verifier.yaml").read_text(encoding="utf-8"))
FORMAT = AnswerFormat(
    "verdict",
    {
        "type": "object",
        "properties": {
            "success": {"type": "boolean"},
            "confidence": {"type": "string"},
            "reasoning": {"type": "string"},
        },
        "required": ["success", "confidence", "reasoning"],
        "additionalProperties": False,
    },
)
QUALITY = 95


@dataclass(frozen=True)
class Cycle:
    """What a verifier is asked about.

    before, after    uint8 RGB [H, W, 3], of the first view
    subtask          that was tried
    following        the next one; empty behind the last
    """

    before: np.ndarray
    after: np.ndarray
    subtask: str
    following: str


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of a cycle.

    done  whether the sub-task is; None where no verdict could be had
    text  what was answered, or why there is no verdict
    """

    done: bool | None
    text: str


class Inspector:
    """The verifier behind an endpoint. Answers that were paid for are kept in `cache`, so an episode that is run again
    costs nothing."""

    def __init__(self, config: VlmConfig, cache: Path) -> None:
        self._conversations = Conversations(config, cache)
        self._at_once = config.concurrency

    def verdicts(self, cycles: Sequence[Cycle]) -> list[Verdict]:
        """One for each cycle, asked side by side. Raises UserError where the endpoint cannot be used."""
        with ThreadPoolExecutor(max(1, min(self._at_once, len(cycles)))) as pool:
            return list(pool.map(self._verdict, cycles))

    def _verdict(self, cycle: Cycle) -> Verdict:
        outcome = self._conversations.hold(messages(cycle), FORMAT, read_verdict, _again)
        return outcome.answer or Verdict(None, outcome.failed)


def messages(cycle: Cycle) -> list[Message]:
    """The conversation's beginning."""
    jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(image), QUALITY) for image in (cycle.before, cycle.after)]
    about = PROMPT["inputs"].format(subtask=cycle.subtask, following=cycle.following or PROMPT["nothing_follows"])
    text = text_part(f"{PROMPT['instructions']}\n\n{about}\n\n{PROMPT['example']}")
    return [{"role": "user", "content": [*map(image_part, jpegs), text]}]


def read_verdict(text: str) -> tuple[Verdict | None, list[str]]:
    """The last JSON object with a `success` that is true or false."""
    answer = last_object(text, "success")
    if answer is None or not isinstance(answer["success"], bool):
        return None, ["the answer has no JSON object with `success` true or false."]
    return Verdict(answer["success"], " ".join(str(answer.get("reasoning", "")).split())[:500]), []


def _again(text: str, problems: Sequence[str]) -> list[Message]:
    return complaint(text, f"That cannot be read: {' '.join(problems)} Answer with the JSON object alone.")


def simulator_says(began: Observation, now: Observation) -> Verdict:
    """Whether the expert has gone on to another phase since the sub-task began."""
    before, after = int(began.privileged[PHASE]), int(now.privileged[PHASE])
    return Verdict(before != after, f"the expert's phase was {before} and is {after}")
