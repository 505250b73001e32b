"""Questions to a writer: one batch for all queries that wait, asked again where an answer has not the right form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from la4vla.config import SamplingConfig
from la4vla.serve.policy_like import NoiseKey, Said
from la4vla.serve.text.answers import Read
from la4vla.serve.text.writer import Prompt, Writer
from la4vla.types import Observation, Turn, UserError

Value = TypeVar("Value")

SHOWN = 4000  # characters of a text that are kept


@dataclass
class AskedQuery:
    """A query on its way through the questions.

    said  in answering it
    """

    observation: Observation
    key: NoiseKey
    said: list[Said] = field(default_factory=list)

    @property
    def at_work(self) -> str:
        """What is being done while it is asked: Said.subtask."""
        return ""

    def say(self, question: str, text: str, problem: str = "") -> None:
        said = text if len(text) <= SHOWN else f"{text[:SHOWN]} ... ({len(text)} characters)"
        self.said.append(Said(question, self.at_work, said, problem))


Asked = TypeVar("Asked", bound=AskedQuery)


@dataclass(frozen=True)
class Question:
    """How a type of question is asked.

    name      of it; with the query's own it names the random numbers
    sampling  how its answers are drawn
    top_p     likewise
    attempts  answers until one has the right form
    first     whether it is asked with nothing in its prompt that was written: what the writer refuses is then bad input
    """

    name: str
    sampling: SamplingConfig
    top_p: float
    attempts: int
    first: bool


def ask_all(
    writer: Writer,
    question: Question,
    queries: Sequence[Asked],
    turns: Callable[[Asked, Sequence[int]], tuple[Turn, ...]],
    shown: Callable[[Asked], tuple[np.ndarray, ...]],
    read: Callable[[Asked, str], Read[Value]],
) -> dict[int, Value]:
    """id of the query -> what was read of the first well-formed answer; a query without one is missing.

    turns: of a query, and the numbers of its images. shown: its images. Raises UserError for a `first` question that
    the writer cannot take.
    """
    values: dict[int, Value] = {}
    for attempt in range(question.attempts):
        asked = [query for query in queries if id(query) not in values]
        if not asked:
            break
        prompts = []
        for query in asked:
            images = shown(query)
            key = f"{_name(query.key)}/{question.name}/{attempt}"
            prompts.append(Prompt(key, turns(query, range(len(images))), images))
        for query, answer in zip(asked, writer.write(prompts, question.sampling, question.top_p), strict=True):
            if answer.refused and question.first:
                raise UserError(answer.refused)
            text = answer.text.encode(errors="replace").decode()  # half a surrogate pair can be sent nowhere
            result = Read(None, answer.refused) if answer.refused else read(query, text)
            query.say(question.name, text, result.reason)
            if result.value is not None:
                values[id(query)] = result.value
    return values


def _name(key: NoiseKey) -> str:
    return f"{key.seed}/{key.task}/{key.episode}/{key.query}"
