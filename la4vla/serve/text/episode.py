"""Where an episode of a text policy stands, and what was said in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from la4vla.serve.text.asking import AskedQuery
from la4vla.types import Observation


@dataclass
class TextEpisode:
    """One episode.

    subtasks   of the present round; None: not asked for yet
    current    number of the present one
    tries      how often it was tried
    rounds     how often sub-tasks were asked for
    finished   whether all is done
    plan       of the present cycle
    commands   raw [T, A], of the present text, not executed yet
    before     observation at the beginning of the present cycle; None: no motion to verify
    began      observation at the beginning of the present sub-task
    opening    what the gripper was last told, 1 open or 0 closed; None: nothing yet
    last       commands of the last chunk, and the state at which it was given; for the safety filter
    queries    that were answered
    """

    subtasks: list[str] | None = None
    current: int = 0
    tries: int = 0
    rounds: int = 0
    finished: bool = False
    plan: str = ""
    commands: np.ndarray | None = None
    before: Observation | None = None
    began: Observation | None = None
    opening: float | None = None
    last: tuple[np.ndarray, np.ndarray] | None = None
    queries: int = 0

    @property
    def subtask(self) -> str:
        return self.subtasks[self.current] if self.subtasks else ""

    @property
    def following(self) -> str:
        """The next sub-task; empty behind the last one."""
        return self.subtasks[self.current + 1] if self.subtasks and self.current + 1 < len(self.subtasks) else ""


@dataclass
class TextQuery(AskedQuery):
    """A query on its way through the questions, with its episode."""

    episode: TextEpisode = field(default_factory=TextEpisode)

    @property
    def at_work(self) -> str:
        return self.episode.subtask
