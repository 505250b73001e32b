"""The annotator that asks a vision-language model, as the paper did (VLM2VLA, appendix B.1).

The model sees images of the whole episode and a log of its motion, a row between two images, and answers with steps in
words, each with the rows of the log that belong to it. Rows that are not the log's make an answer unusable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from la4vla.chat.conversation import AnswerFormat, Conversations, Message, complaint, text_part
from la4vla.chat.json_answer import last_list
from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.prompt import shown_frames, view_parts
from la4vla.construct.propose.vlm import CACHE
from la4vla.construct.texts.annotate import Annotation, EpisodeMotion, SubTask

VERSION = 1
"""Raised when the same answer would become another annotation; `version` notices a change of the prompt by itself."""

PROMPT = Path(__file__).parent / "annotate_prompt.txt"
WORDS = ("STEP_DESCRIPTION", "REASONING", "MAIN_MOVEMENTS")
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    **{name: {"type": "string"} for name in WORDS},
                    "ACTIONS": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
                },
                "required": [*WORDS, "ACTIONS"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["steps"],
    "additionalProperties": False,
}
PLACES = 3  # of a log's metres, as in the paper
NEAR = 2 * 10.0**-PLACES  # m by which a row of an answer may differ from the log's


@dataclass(frozen=True)
class Log:
    """An episode's motion in rows.

    frames  with images, one more than rows: row i is what was done between image i and image i + 1
    rows    [dx, dy, dz, gripper]: forward, left, up in m, and 1 open or 0 closed
    """

    frames: tuple[int, ...]
    rows: tuple[tuple[float, float, float, float], ...]

    @staticmethod
    def of(episode: Episode, fps: float) -> Log:
        """fps: images a second that are shown. Raises UserError for a robot without a position in its state."""
        motion = EpisodeMotion.of(episode)
        frames = shown_frames(len(episode), episode.fps, episode.frame_stride, fps)
        rows = []
        for start, end in pairwise(frames):
            forward, left, up = (round(float(value), PLACES) + 0.0 for value in motion.moved(start, end))
            opened = motion.open_T is None or bool(motion.open_T[end - 1])
            rows.append((forward, left, up, float(opened)))
        return Log(tuple(frames), tuple(rows))

    def text(self, instruction: str) -> str:
        """The trajectory log as the model gets it."""
        lines = [f"instruction: {instruction}", "[dx, dy, dz, gripper], row i between image i and image i + 1:"]
        return "\n".join([*lines, *(f"{number}: {list(row)}" for number, row in enumerate(self.rows))])


class EndpointAnnotator:
    """An Annotator. An episode whose answer is in the cache needs no endpoint, key or openai client."""

    def __init__(self, config: ConstructConfig, views: Sequence[str]) -> None:
        self._config, self._views = config, tuple(views)
        self._conversations = Conversations(config.vlm, Path(config.out_dir) / CACHE)

    @property
    def version(self) -> str:
        """The server, its pace and its prices do not count."""
        vlm = self._config.vlm
        shown = (vlm.fps, vlm.width, vlm.height, vlm.frames_as, *self._views)
        asked = (prompt_text(), SCHEMA, vlm.model, vlm.temperature, vlm.answer_format)
        return digest("endpoint", VERSION, asked, shown)

    def annotate(self, episode: Episode, kept: Sequence[Mapping[str, Any]]) -> Annotation:
        """kept: not asked about. Raises UserError if the endpoint cannot be used, or not any more."""
        log = Log.of(episode, self._config.vlm.fps)

        def read(text: str) -> tuple[list[SubTask] | None, list[str]]:
            return read_answer(text, log)

        def again(text: str, problems: Sequence[str]) -> list[Message]:
            lines = ["That answer cannot be used:", *(f"- {problem}" for problem in problems)]
            return complaint(text, "\n".join([*lines, "Answer again with the whole JSON, nothing else."]))

        outcome = self._conversations.hold(
            messages(episode, log, self._config, self._views), AnswerFormat("steps", SCHEMA), read, again
        )
        return Annotation(
            tuple(outcome.answer or ()), outcome.tokens_in, outcome.tokens_out, outcome.calls, outcome.failed
        )


def prompt_text() -> str:
    return PROMPT.read_text(encoding="utf-8").strip()


def request_text(log: Log, instruction: str) -> str:
    """All text of an episode's request but the labels of its images."""
    return f"{prompt_text()}\n\nHere is the trajectory log content:\n{log.text(instruction)}"


def messages(episode: Episode, log: Log, config: ConstructConfig, views: Sequence[str]) -> list[Message]:
    """Raises BadEpisode for an image that does not decode."""
    content = [text_part(request_text(log, episode.instruction))]
    for view in views:
        content += view_parts(view, episode, log.frames, config.vlm)
    return [{"role": "user", "content": content}]


def read_answer(text: str, log: Log) -> tuple[list[SubTask] | None, list[str]]:
    """(the sub-tasks, or None where they cannot be used; what is wrong, one sentence each).

    The rows of all steps together must be the rows of the log, in order; the last of them may be missing.
    """
    steps = last_list(text)
    if not steps:
        return None, ["It holds no JSON list of steps."]
    subtasks: list[SubTask] = []
    problems, at = [], 0
    for number, step in enumerate(steps, 1):
        words = [step.get(name) for name in WORDS]
        if not all(isinstance(word, str) and word.strip() for word in words):
            problems.append(f"Step {number} lacks some of {', '.join(WORDS)}.")
            continue
        rows = step.get("ACTIONS")
        if not isinstance(rows, list) or not rows or not _are(rows, log.rows[at : at + len(rows)]):
            problems.append(f"ACTIONS of step {number} are not the log's rows from row {at} on.")
            break
        start, end = log.frames[at], log.frames[at + len(rows)]
        subtasks.append(SubTask(start, end, str(words[0]).strip(), f"{words[1]} {words[2]}".strip()))
        at += len(rows)
    return (None if problems else subtasks), problems


def _are(rows: Sequence[Any], logged: Sequence[tuple[float, ...]]) -> bool:
    """Whether an answer's rows are these rows of the log."""
    if len(rows) != len(logged):
        return False
    for row, real in zip(rows, logged, strict=True):
        numbers = isinstance(row, list) and len(row) == len(real) and all(_is_number(value) for value in row)
        if not numbers or not np.allclose(row, real, rtol=0.0, atol=NEAR + 1e-9):
            return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
