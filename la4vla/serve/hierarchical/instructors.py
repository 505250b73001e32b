"""Who says the low-level instructions: a model that writes, or a simulator's scripted expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from la4vla.config import HierarchicalConfig
from la4vla.questions import wordings
from la4vla.serve.privileged import LOW_LEVEL
from la4vla.serve.text.answers import Read, read_instruction
from la4vla.serve.text.asking import AskedQuery, Question, ask_all
from la4vla.serve.text.writer import Writer
from la4vla.types import Turn

Fits = Callable[[str, str], str]
"""(task, instruction) -> why the policy cannot be told them; empty if it can."""


@dataclass
class HierarchicalEpisode:
    """Where an episode stands.

    task         its sentence when the instruction was said
    instruction  at work; empty before the first
    queries      that were answered
    since        queries that were answered with this instruction
    """

    task: str = ""
    instruction: str = ""
    queries: int = 0
    since: int = 0


@dataclass
class InstructedQuery(AskedQuery):
    """A query, and the instruction that it will be acted on with. The episode changes when the query is answered."""

    episode: HierarchicalEpisode = field(default_factory=HierarchicalEpisode)
    instruction: str = ""
    anew: bool = False

    @property
    def at_work(self) -> str:
        return self.episode.instruction


class Instructor(Protocol):
    """Says low-level instructions.

    views       that it is shown
    privileged  names of the Observation.privileged that it needs
    """

    @property
    def views(self) -> tuple[str, ...]: ...

    @property
    def privileged(self) -> tuple[str, ...]: ...

    def instructions(self, queries: Sequence[InstructedQuery], fits: Fits) -> dict[int, str]:
        """id of the query -> the next instruction; a query for which none could be had is missing. Every text is said
        to its query."""
        ...


@dataclass(frozen=True)
class WrittenInstructions:
    """A model writes them, from the present images and the task. The questions of all queries are one batch.

    question  as which it was trained to say them, of config.hierarchical.QUESTIONS
    """

    writer: Writer
    question: str
    config: HierarchicalConfig

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.config.views)

    @property
    def privileged(self) -> tuple[str, ...]:
        return ()

    def instructions(self, queries: Sequence[InstructedQuery], fits: Fits) -> dict[int, str]:
        def turns(query: InstructedQuery, numbers: Sequence[int]) -> tuple[Turn, ...]:
            return wordings.turns(self.question, numbers, task=query.observation.instruction)

        def shown(query: InstructedQuery) -> tuple[np.ndarray, ...]:
            return tuple(query.observation.views[name] for name in self.views)

        def read(query: InstructedQuery, text: str) -> Read[str]:
            found = read_instruction(text)
            wrong = fits(query.observation.instruction, found.value) if found.value else ""
            return Read(None, wrong) if wrong else found

        how = Question(self.question, self.config.next, self.config.top_p, self.config.attempts, first=True)
        return ask_all(self.writer, how, queries, turns, shown, read)


@dataclass(frozen=True)
class TrueInstructions:
    """What the simulator's scripted expert would do, as the observation tells: `Observation.privileged`."""

    views: tuple[str, ...] = ()
    privileged: tuple[str, ...] = (LOW_LEVEL,)

    def instructions(self, queries: Sequence[InstructedQuery], fits: Fits) -> dict[int, str]:
        found = {}
        for query in queries:
            text = str(query.observation.privileged[LOW_LEVEL])
            read = read_instruction(text)
            wrong = read.reason or fits(query.observation.instruction, text)
            query.say("oracle", text, wrong)
            if read.value is not None and not wrong:
                found[id(query)] = read.value
        return found
