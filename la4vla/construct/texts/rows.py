"""Rows: the questions and answers about an annotated episode, as drafts without pixels.

    subtasks    first image + task                     -> list of the labels of all sub-tasks
    next        image + task                           -> label of the sub-task that begins
    next_system the same, the task in a system turn
    plan        image + sub-task                       -> motion in directions
    actions     image + sub-task + plan                -> action text
    completion  images before and after + sub-task     -> yes or no; of the first view alone
    direction   image + sub-task                       -> words, or none
Every draw belongs to (seed, episode, question, number of the row): other questions do not move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from la4vla.action_text.action_text import ActionText
from la4vla.config import TextsConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.texts.annotate import EpisodeMotion, SubTask
from la4vla.construct.vocabulary import named_direction
from la4vla.questions.wordings import NO, YES, ask, system, with_hand
from la4vla.rng import RngUse, generator

VERSION = 2
"""Raised when the same annotation would become other rows."""

NEGATIVES = ("unfinished", "reversed", "other")
"""Pairs of images that do not show the sub-task done: too early, the wrong way round, another sub-task's."""

SPLITS = ("", "_held_out_scenes", "_held_out_wordings")
"""What follows the folder's name."""


@dataclass(frozen=True)
class Draft:
    """A row without pixels.

    images  (view, frame) each
    about   of the question's making, to be counted: `completion` says which negative it is
    system  what is said before the question; empty for most
    """

    question: str
    text: str
    answer: str
    images: tuple[tuple[str, int], ...]
    span: tuple[int, int]
    instruction: str
    about: str = ""
    system: str = ""


class Rows:
    """The drafts of one episode. views: those that are shown. actions: None where no action text is asked for."""

    def __init__(
        self,
        episode: Episode,
        subtasks: Sequence[SubTask],
        motion: EpisodeMotion,
        config: TextsConfig,
        views: Sequence[str],
        actions: ActionText | None,
        seed: int,
    ) -> None:
        self._episode, self._subtasks, self._motion = episode, subtasks, motion
        self._config, self._views, self._actions, self._seed = config, tuple(views), actions, seed
        self.dropped: dict[str, int] = {}

    def drafts(self, question: str, held_out: bool) -> list[Draft]:
        """All rows of a type of question. held_out: in held-out words."""
        make: dict[str, Callable[[bool], Iterator[Draft]]] = {
            "subtasks": self._all_subtasks,
            "next": self._next,
            "next_system": self._next_system,
            "plan": self._plan,
            "actions": self._action_texts,
            "completion": self._completion,
            "direction": self._direction,
        }
        return list(make[question](held_out)) if self._subtasks else []

    def _all_subtasks(self, held_out: bool) -> Iterator[Draft]:
        text = self._ask("subtasks", 0, held_out, task=self._episode.instruction)
        labels = str([item.label for item in self._subtasks])
        yield Draft("subtasks", text, labels, self._shown(0), (0, len(self._episode)), "")

    def _next(self, held_out: bool) -> Iterator[Draft]:
        for number, (item, frame) in enumerate(self._moments(self._config.next_every)):
            text = self._ask("next", number, held_out, task=self._episode.instruction)
            yield self._about(item, "next", text, item.label, frame)

    def _next_system(self, held_out: bool) -> Iterator[Draft]:
        task = self._episode.instruction
        for number, (item, frame) in enumerate(self._moments(self._config.next_every)):
            text = self._ask("next_system", number, held_out, task=task)
            drafted = self._about(item, "next_system", text, item.label, frame)
            yield replace(drafted, system=system("next_system", task=task))

    def _plan(self, held_out: bool) -> Iterator[Draft]:
        for number, (item, frame) in enumerate(self._moments(self._config.every)):
            text = self._with_hand(self._ask("plan", number, held_out, subtask=item.label), frame)
            yield self._about(item, "plan", text, self._plan_from(item, frame), frame)

    def _action_texts(self, held_out: bool) -> Iterator[Draft]:
        assert self._actions is not None, "a codec is opened where action texts are asked for"
        state, action = self._episode.state, self._episode.action
        for number, (item, frame) in enumerate(self._moments(self._config.every)):
            if self._config.plan:
                fields = {"subtask": item.label, "plan": self._plan_from(item, frame)}
                text = self._ask("actions", number, held_out, **fields)
            else:
                text = self._ask("direct", number, held_out, subtask=item.label)
            written = self._actions.write(state[frame : item.end + 1], action[frame : item.end])
            for what, rows in written.dropped.items():
                self.dropped[what] = self.dropped.get(what, 0) + rows
            yield self._about(item, "actions", self._with_hand(text, frame), written.text, frame)

    def _direction(self, held_out: bool) -> Iterator[Draft]:
        for number, (item, frame) in enumerate(self._moments(self._config.every)):
            words = self._motion.direction_words(frame, item.end, self._config.threshold)
            text = self._ask("direction", number, held_out, subtask=item.label)
            yield self._about(item, "direction", text, words, frame)

    def _completion(self, held_out: bool) -> Iterator[Draft]:
        """Each sub-task once done, and `negatives` times not done. The kinds of negatives take turns."""
        draw = generator(self._seed, RngUse.TEXTS, self._episode.key, "negatives")
        turn = int(draw.integers(len(NEGATIVES)))
        for number, item in enumerate(self._subtasks):
            first, last = item.start, self._image_at(item.end)
            if first == last:
                continue
            text = self._ask("completion", number, held_out, subtask=item.label)
            yield self._pair(item, text, YES, (first, last), "done")
            for _ in range(self._config.negatives):
                kind, pair, label = self._negative(item, turn)
                turn += 1
                text = self._ask("completion", number, held_out, subtask=label)
                yield self._pair(item, text, NO, pair, kind)

    def _negative(self, item: SubTask, turn: int) -> tuple[str, tuple[int, int], str]:
        """(kind, frames before and after, sub-task asked about). A kind that the episode has no example of gives way to
        the reversed pair."""
        kind, first, last = NEGATIVES[turn % len(NEGATIVES)], item.start, self._image_at(item.end)
        third = self._image_at(first + (last - first) // 3)
        if kind == "unfinished" and first < third < last:
            return kind, (first, third), item.label
        opposed = [other for other in self._subtasks if _opposed(other.label, item.label)]
        if kind == "other" and opposed:
            return kind, (first, last), opposed[turn % len(opposed)].label
        return "reversed", (last, first), item.label

    def _pair(self, item: SubTask, text: str, answer: str, frames: tuple[int, int], about: str) -> Draft:
        images = tuple((self._views[0], frame) for frame in frames)
        return Draft("completion", text, answer, images, (item.start, item.end), item.label, about)

    def _about(self, item: SubTask, question: str, text: str, answer: str, frame: int) -> Draft:
        return Draft(question, text, answer, self._shown(frame), (frame, item.end), item.label)

    def _moments(self, every: int) -> Iterator[tuple[SubTask, int]]:
        """Sub-tasks and the frames, with images, at which they are asked about. every: frames; 0: once."""
        for item in self._subtasks:
            frames = range(item.start, item.end, every) if every else (item.start,)
            for frame in dict.fromkeys(self._image_at(frame) for frame in frames):
                if frame >= item.start:
                    yield item, frame

    def _plan_from(self, item: SubTask, frame: int) -> str:
        """The annotator's plan at the start of a sub-task, what is left of the motion later."""
        return item.plan if frame == item.start else self._motion.plan(frame, item.end, self._config.threshold)

    def _image_at(self, frame: int) -> int:
        """The last frame up to this one that has an image."""
        stride = self._episode.frame_stride
        return min(frame, len(self._episode) - 1) // stride * stride

    def _shown(self, frame: int) -> tuple[tuple[str, int], ...]:
        return tuple((view, frame) for view in self._views)

    def _ask(self, question: str, number: int, held_out: bool, **fields: str) -> str:
        draw = generator(self._seed, RngUse.TEXTS, self._episode.key, question, number).random()
        form = self._actions.config.codec if self._actions and question in ("actions", "direct") else ""
        return ask(question, form, held_out, draw, **fields)

    def _with_hand(self, text: str, frame: int) -> str:
        return with_hand(text, *self._motion.hand(frame)) if self._config.hand else text


def _opposed(one: str, other: str) -> bool:
    """Whether two instructions name directions that cannot both be followed."""
    return bool((named_direction(one) * named_direction(other) < 0).any())


def split_of(episode: str, share: float, seed: int) -> bool:
    """Whether an episode's scene is held out. Of (seed, episode) alone."""
    return bool(generator(seed, RngUse.TEXTS, episode, "scene").random() < share)


def asked_again(episode: str, question: str, number: int, share: float, seed: int) -> bool:
    """Whether a row is also asked in held-out words."""
    return bool(generator(seed, RngUse.TEXTS, episode, question, number, "again").random() < share)


def to_dict(draft: Draft, key: str, episode: Episode) -> dict[str, Any]:
    """The row of the ledger, and, but for `key` and `about`, the record's JSON (data/shards/texts.py)."""
    shown = list(range(len(draft.images)))
    before = [{"role": "system", "text": draft.system, "images": []}] if draft.system else []
    return {
        "key": key,
        "about": draft.about,
        "messages": [*before, {"role": "user", "text": draft.text, "images": shown}],
        "images": [list(image) for image in draft.images],
        "answer": draft.answer,
        "question": draft.question,
        "task": episode.instruction,
        "episode": episode.key,
        "span": list(draft.span),
        "instruction": draft.instruction,
        "scores": None,
    }
