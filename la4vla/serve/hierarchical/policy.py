"""A hierarchical policy: low-level instructions, and a policy that acts on them.

An instruction is said when the episode opens, again after `replan` chunks, when the task's sentence changes, and when
the client asks for it (`Observation.replan`). The low-level policy is told task and instruction as it was trained
(`la4vla.levels`). Where no instruction can be had the last one stays at work, and before the first the policy is told
the task alone; a note beside the episode says so. An episode's texts and actions do not depend on the others'.

Refuses with a UserError, and leaves every episode as it was: a missing view, a state of the wrong size, a missing
privileged field, an episode that was not opened, and two queries of one episode at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from la4vla.levels import Levels, told
from la4vla.serve.hierarchical.instructors import HierarchicalEpisode, InstructedQuery, Instructor
from la4vla.serve.policy import ServedPolicy, require_match
from la4vla.serve.policy_like import EpisodeKey, NoiseKey, Said, TrainedInputs
from la4vla.serve.text.open_episodes import OpenEpisodes, check_observation
from la4vla.types import Embodiment, Observation

NEEDED = "instructor=oracle needs; evaluate with `la4vla eval` in a simulator, or set instructor=vlm"


@dataclass
class HierarchicalPolicy:
    """Build one with `hierarchical.load.load_hierarchical`.

    low         the policy that acts
    instructor  who says the instructions
    levels      how `low` is told task and instruction
    replan      chunks for which an instruction holds
    identity    of all weights, and of everything in the config that changes what is said
    versions    of the libraries that compute the actions and the instructions
    """

    low: ServedPolicy
    instructor: Instructor
    levels: Levels
    replan: int
    identity: str
    versions: dict[str, str]
    _episodes: OpenEpisodes[HierarchicalEpisode] = field(default_factory=lambda: OpenEpisodes(HierarchicalEpisode))
    _said: list[tuple[Said, ...]] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.low.step

    @property
    def embodiment(self) -> Embodiment:
        return self.low.embodiment

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.low.views, *self.instructor.views)))

    @property
    def horizon(self) -> int:
        return self.low.horizon

    @property
    def counts_on(self) -> int:
        return 0

    @property
    def privileged(self) -> tuple[str, ...]:
        return self.instructor.privileged

    @property
    def trained(self) -> TrainedInputs:
        return self.low.trained

    def check(self, embodiment: Embodiment, views: Sequence[str]) -> None:
        """Raises UserError where an env with this embodiment and these views cannot be driven by this policy."""
        require_match(self.embodiment, self.views, embodiment, views)

    def open(self, episode: EpisodeKey) -> None:
        self._episodes.open(episode)

    def said(self) -> list[tuple[Said, ...]]:
        return self._said

    def infer(self, observations: Sequence[Observation], noise_keys: Sequence[NoiseKey]) -> list[np.ndarray]:
        """One chunk for each observation: raw actions float32 [horizon, A], as the low-level policy gives them."""
        queries = self._checked(observations, noise_keys)
        self._instruct([query for query in queries if query.anew])
        chunks = self.low.infer([self._told(query) for query in queries], noise_keys)
        for query in queries:
            episode = query.episode
            episode.since = 1 if query.anew else episode.since + 1
            episode.task, episode.instruction = query.observation.instruction, query.instruction
            episode.queries += 1
        self._said = [tuple(query.said) for query in queries]
        return chunks

    def _checked(self, observations: Sequence[Observation], keys: Sequence[NoiseKey]) -> list[InstructedQuery]:
        """The queries, each with its episode. Changes nothing."""
        episodes = self._episodes.of(keys)
        for seen in observations:
            check_observation(seen, self.embodiment, self.views, self.privileged, NEEDED)
        return [
            InstructedQuery(seen, key, [], episode, episode.instruction, self._is_due(episode, seen))
            for seen, key, episode in zip(observations, keys, episodes, strict=True)
        ]

    def _is_due(self, episode: HierarchicalEpisode, seen: Observation) -> bool:
        asked = seen.replan or seen.instruction != episode.task
        return asked or not episode.queries or episode.since >= self.replan

    def _instruct(self, queries: Sequence[InstructedQuery]) -> None:
        """Has the next instructions said."""
        found = self.instructor.instructions(queries, self._why_not) if queries else {}
        for query in queries:
            if id(query) in found:
                query.instruction = found[id(query)]
                continue
            if query.observation.instruction != query.episode.task:
                query.instruction = ""  # that of another task
            stays = f"`{query.instruction}` stays at work" if query.instruction else "the policy is told the task alone"
            query.say("note", f"no instruction; {stays}")

    def _why_not(self, task: str, instruction: str) -> str:
        return self.low.too_long(told(self.levels, task, instruction))

    def _told(self, query: InstructedQuery) -> Observation:
        task = query.observation.instruction
        text = told(self.levels, task, query.instruction) if query.instruction else task
        return replace(query.observation, instruction=text)
