"""A model that writes as a policy: `TextPolicy`.

Once an episode, from its first image, the task becomes a list of sub-tasks. For each: a motion plan, then an action
text, which is read and played in chunks of `chunk` control steps; then a verifier says whether the sub-task is done, or
is tried again with a new plan. An answer of the wrong form is asked again. Where no answer has the right form, the hand
is held still for a chunk; nothing is played that was not written. Questions of the same type, of all episodes that
wait, are one batch, and an episode's answers do not depend on the others'.

Refuses with a UserError, and leaves every episode as it was: a missing view, a state of the wrong size, a missing
privileged field, an episode that was not opened, and two queries of one episode at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from la4vla.action_text.action_text import ActionText
from la4vla.action_text.motion import Motion
from la4vla.config import SamplingConfig, TextPolicyConfig
from la4vla.questions.wordings import ask, with_hand
from la4vla.serve.policy import require_match
from la4vla.serve.policy_like import EpisodeKey, NoiseKey, Said
from la4vla.serve.privileged import PHASE
from la4vla.serve.text.answers import Read, read_completion, read_plan, read_subtasks
from la4vla.serve.text.asking import Question, ask_all
from la4vla.serve.text.episode import TextEpisode, TextQuery
from la4vla.serve.text.open_episodes import OpenEpisodes, check_observation
from la4vla.serve.text.safety import filtered
from la4vla.serve.text.verify import Cycle, Inspector, Verdict, simulator_says
from la4vla.serve.text.writer import Writer
from la4vla.types import Embodiment, Observation, Turn

Value = TypeVar("Value")

NEEDED = (
    "verifier=simulator and measure_verifier need; evaluate with `la4vla eval` in a simulator whose expert tells its "
    "phases, or set others"
)


@dataclass
class TextPolicy:
    """Build one with `TextPolicy.of`.

    identity    of the weights and of everything in `config` that changes what is written
    step        optimizer steps of the checkpoint
    embodiment  of the robot that its action texts move
    versions    of the libraries that compute the answers
    """

    config: TextPolicyConfig
    writer: Writer
    action_text: ActionText
    embodiment: Embodiment
    identity: str
    step: int
    versions: dict[str, str]
    _inspector: Inspector | None
    _episodes: OpenEpisodes[TextEpisode] = field(default_factory=lambda: OpenEpisodes(TextEpisode))
    _said: list[tuple[Said, ...]] = field(default_factory=list)

    @staticmethod
    def of(
        config: TextPolicyConfig,
        writer: Writer,
        action_text: ActionText,
        identity: str,
        step: int,
        versions: dict[str, str],
    ) -> TextPolicy:
        """Raises UserError where the robot's limits are not known."""
        action_text.space.limits()
        inspector = Inspector(config.vlm, Path(config.cache)) if config.verifier == "endpoint" else None
        return TextPolicy(
            config, writer, action_text, action_text.space.embodiment, identity, step, versions, inspector
        )

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.config.views)

    @property
    def horizon(self) -> int:
        return self.config.chunk

    @property
    def counts_on(self) -> int:
        return self.config.chunk

    @property
    def privileged(self) -> tuple[str, ...]:
        return (PHASE,) if self.config.verifier == "simulator" or self.config.measure_verifier else ()

    @property
    def trained(self) -> None:
        """What a model that writes was shown is not in its checkpoint."""

    def check(self, embodiment: Embodiment, views: Sequence[str]) -> None:
        """Raises UserError where an env with this embodiment and these views cannot be driven by this policy."""
        require_match(self.embodiment, self.views, embodiment, views)

    def open(self, episode: EpisodeKey) -> None:
        self._episodes.open(episode)

    def said(self) -> list[tuple[Said, ...]]:
        return self._said

    def infer(self, observations: Sequence[Observation], noise_keys: Sequence[NoiseKey]) -> list[np.ndarray]:
        """One chunk for each observation: raw commands float32 [T, A], T at most config.chunk."""
        queries = self._checked(observations, noise_keys)
        idle = [query for query in queries if query.episode.commands is None]
        self._verify([query for query in idle if query.episode.before is not None])
        open_ = [query for query in idle if not query.episode.finished]
        self._ask_subtasks([query for query in open_ if query.episode.subtasks is None])
        planned = self._ask_plans(open_) if self.config.plan else open_
        self._ask_actions(planned)
        chunks = [self._chunk(query) for query in queries]
        for query in queries:
            query.episode.queries += 1
        self._said = [tuple(query.said) for query in queries]
        return chunks

    def _checked(self, observations: Sequence[Observation], keys: Sequence[NoiseKey]) -> list[TextQuery]:
        """The queries, each with its episode. Changes nothing."""
        episodes = self._episodes.of(keys)
        for seen in observations:
            check_observation(seen, self.embodiment, self.views, self.privileged, NEEDED)
        return [
            TextQuery(seen, key, [], episode) for seen, key, episode in zip(observations, keys, episodes, strict=True)
        ]

    def _verify(self, queries: Sequence[TextQuery]) -> None:
        """Asks whether the sub-tasks whose text was played are done, and goes on or back."""
        for query, verdict in zip(queries, self._verdicts(queries), strict=True):
            episode = query.episode
            if verdict.text:
                said = {True: "done", False: "not done", None: "no verdict, taken as not done"}[verdict.done]
                query.say("verdict", f"{said}: {verdict.text}")
            if self.config.measure_verifier:
                query.say(
                    "truth", "done" if simulator_says(_given(episode.began), query.observation).done else "not done"
                )
            episode.before, episode.tries = None, episode.tries + 1
            if not verdict.done and episode.tries < self.config.tries:
                continue
            if not verdict.done:
                query.say("note", f"not done after {episode.tries} tries; the next sub-task begins")
            episode.current, episode.tries, episode.began = episode.current + 1, 0, None
            if episode.subtasks is not None and episode.current >= len(episode.subtasks):
                episode.subtasks, episode.current = None, 0
                episode.finished = episode.rounds >= self.config.rounds
                query.say("note", "all sub-tasks are done" + "; the hand is held still" * episode.finished)

    def _verdicts(self, queries: Sequence[TextQuery]) -> list[Verdict]:
        if not queries:
            return []
        if self.config.verifier == "none":
            return [Verdict(True, "")] * len(queries)
        if self.config.verifier == "simulator":
            return [simulator_says(_given(query.episode.began), query.observation) for query in queries]
        first = self.views[0]
        cycles = [
            Cycle(
                _given(query.episode.before).views[first],
                query.observation.views[first],
                query.episode.subtask,
                query.episode.following,
            )
            for query in queries
        ]
        if self._inspector is not None:
            return self._inspector.verdicts(cycles)
        answers = self._ask(
            "completion",
            queries,
            lambda query: ask("completion", subtask=query.episode.subtask),
            lambda query, text: read_completion(text),
            self.config.completion,
            {id(query): (cycle.before, cycle.after) for query, cycle in zip(queries, cycles, strict=True)},
        )
        return [Verdict(answers.get(id(query)), "the model's own answer") for query in queries]

    def _ask_subtasks(self, queries: Sequence[TextQuery]) -> None:
        lists = self._ask(
            "subtasks",
            queries,
            lambda query: ask("subtasks", task=query.observation.instruction),
            lambda query, text: read_subtasks(text),
            self.config.subtasks,
        )
        for query in queries:
            subtasks = lists.get(id(query))
            if subtasks is None:
                query.say("note", "no list of sub-tasks; the task itself is the only one")
            query.episode.subtasks = subtasks or [query.observation.instruction]
            query.episode.rounds += 1

    def _ask_plans(self, queries: Sequence[TextQuery]) -> list[TextQuery]:
        """Those that got a plan."""
        plans = self._ask(
            "plan",
            queries,
            lambda query: self._with_hand(query, ask("plan", subtask=query.episode.subtask)),
            lambda query, text: read_plan(text),
            self.config.plans,
        )
        for query in queries:
            query.episode.plan = plans.get(id(query)) or ""
            if not query.episode.plan:
                query.say("note", "no plan; the hand is held still for a chunk")
        return [query for query in queries if query.episode.plan]

    def _ask_actions(self, queries: Sequence[TextQuery]) -> None:
        form = self.action_text.config.codec

        def question(query: TextQuery) -> str:
            episode = query.episode
            if self.config.plan:
                text = ask("actions", form, subtask=episode.subtask, plan=episode.plan)
            else:
                text = ask("direct", form, subtask=episode.subtask)
            return self._with_hand(query, text)

        found = self._ask("actions", queries, question, self._read_actions, self.config.actions)
        for query in queries:
            played = found.get(id(query))
            if played is None:
                query.say("note", "no action text; the hand is held still for a chunk")
                continue
            motion, commands_TA = played
            episode = query.episode
            episode.commands, episode.opening = commands_TA, float(motion.open_R[-1])
            episode.before = query.observation
            episode.began = episode.began or query.observation

    def _read_actions(self, query: TextQuery, text: str) -> Read[tuple[Motion, np.ndarray]]:
        parsed = self.action_text.read(text)
        if parsed.motion is None:
            return Read(None, parsed.reason)
        commands_TA = self.action_text.play(parsed.motion, query.observation.state, query.episode.opening)
        if len(commands_TA) > self.config.longest:
            return Read(None, f"the motion takes {len(commands_TA)} control steps, more than {self.config.longest}")
        return Read((parsed.motion, commands_TA))

    def _with_hand(self, query: TextQuery, text: str) -> str:
        if not self.config.hand:
            return text
        state = query.observation.state
        forward, left, up = self.action_text.space.place(state).tolist()
        opening_1 = self.embodiment.state.opening(state[None])
        return with_hand(text, (forward, left, up), None if opening_1 is None else float(opening_1[0]))

    def _ask(
        self,
        question: str,
        queries: Sequence[TextQuery],
        words: Callable[[TextQuery], str],
        read: Callable[[TextQuery, str], Read[Value]],
        sampling: SamplingConfig,
        images: dict[int, tuple[np.ndarray, ...]] | None = None,
    ) -> dict[int, Value]:
        """asking.ask_all with the policy's settings. images: id of the query -> what it is shown instead of its
        views."""

        def shown(query: TextQuery) -> tuple[np.ndarray, ...]:
            return images[id(query)] if images else tuple(query.observation.views[name] for name in self.views)

        def turns(query: TextQuery, numbers: Sequence[int]) -> tuple[Turn, ...]:
            return (Turn("user", words(query), tuple(numbers)),)

        how = Question(question, sampling, self.config.top_p, self.config.attempts, first=question == "subtasks")
        return ask_all(self.writer, how, queries, turns, shown, read)

    def _chunk(self, query: TextQuery) -> np.ndarray:
        """The next commands of the episode's text, or stillness where there are none."""
        episode, state, size = query.episode, query.observation.state, self.config.chunk
        if episode.commands is None:
            opening = self.action_text.space.opening(state) if episode.opening is None else episode.opening
            still = Motion.of(np.zeros((size, 3)), np.full(size, opening))
            return self.action_text.play(still, state, opening)[:size]
        chunk, left = episode.commands[:size], episode.commands[size:]
        if self.config.safety_filter:
            chunk, changed = filtered(self.action_text.space, chunk, state, episode.last)
            if changed:
                query.say("note", f"the safety filter changed {changed} of {len(chunk)} commands")
        episode.last = (chunk, state)
        episode.commands = left if len(left) else None
        return chunk


def _given(observation: Observation | None) -> Observation:
    assert observation is not None, "an episode that moved has it"
    return observation
