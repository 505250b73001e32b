"""Annotations: what was done in an episode, sub-task by sub-task, in words. From the kept clips alone, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.track import track_of
from la4vla.construct.vocabulary import DIRECTIONS
from la4vla.types import UserError

VERSION = 1
"""Raised when the same clips would be annotated in other words."""

MOVES = (("forward (+dx)", "backward (-dx)"), ("left (+dy)", "right (-dy)"), ("upward (+dz)", "downward (-dz)"))
"""Words of the two ends of (forward, left, up), as the paper's MAIN_MOVEMENTS has them (appendix B.1)."""

MIDDLE = 1e-3
"""An opening this near to the middle is a command to hold; LIBERO's 0."""


@dataclass(frozen=True)
class SubTask:
    """A part of an episode in words.

    start, end  frames, [start, end)
    label       what is done
    plan        how the hand moves
    """

    start: int
    end: int
    label: str
    plan: str


@dataclass(frozen=True)
class Annotation:
    """What an annotator made of an episode.

    subtasks                in the order of time
    tokens_in, tokens_out   paid for; 0 if the answer came from a cache, or cost nothing
    calls                   requests made, retries included
    failed                  why there are no sub-tasks; the next run asks about the episode again
    """

    subtasks: tuple[SubTask, ...]
    tokens_in: int = 0
    tokens_out: int = 0
    calls: int = 0
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Annotator(Protocol):
    """May be called from several threads at once."""

    @property
    def version(self) -> str:
        """Changes whenever the same episode and clips may be annotated otherwise."""
        ...

    def annotate(self, episode: Episode, kept: Sequence[Mapping[str, Any]]) -> Annotation:
        """kept: the episode's KeptClips, as the ledger has them. Raises UserError if it cannot go on at all."""
        ...


@dataclass(frozen=True)
class KinematicAnnotator:
    """Sub-tasks are the kept clips, plans the directions in which the hand moves further than `threshold` (m)."""

    threshold: float

    @property
    def version(self) -> str:
        return digest("kinematic", VERSION, self.threshold)

    def annotate(self, episode: Episode, kept: Sequence[Mapping[str, Any]]) -> Annotation:
        """Raises UserError for a robot without a position in its state."""
        if not kept:
            return Annotation(())
        motion = EpisodeMotion.of(episode)
        subtasks = [
            SubTask(
                item["start"], item["end"], item["instruction"], motion.plan(item["start"], item["end"], self.threshold)
            )
            for item in kept
        ]
        return Annotation(tuple(subtasks))


@dataclass(frozen=True)
class EpisodeMotion:
    """How an episode's hand moves, in the robot's words.

    path_T3    float64, (forward, left, up) of the base, m
    lag        frames by which the arm follows its commands
    open_T     bool, whether the gripper is commanded open; None for a robot without a gripper
    measured_T measured opening; None without one
    """

    path_T3: np.ndarray
    lag: int
    open_T: np.ndarray | None
    measured_T: np.ndarray | None

    @staticmethod
    def of(episode: Episode) -> EpisodeMotion:
        """Raises UserError for a robot without a position in its state, and for one with two arms."""
        view, *more = episode.arms
        if more:
            raise UserError(
                f"{episode.key}: conversations describe the motion of one hand, and {episode.embodiment.name} has two "
                "arms; describe one of them in the robot file, or train on its clips without conversations."
            )
        track = track_of(view.state, view.action, view.robot)
        measured_T = view.robot.embodiment.state.opening(view.state)
        open_T = None if track.gripper == "none" else _held(track.command_T, measured_T)
        return EpisodeMotion(track.path_T3, track.lag, open_T, measured_T)

    def moved(self, start: int, end: int) -> np.ndarray:
        """Displacement [3] in m that the actions of [start, end) caused."""
        last = len(self.path_T3) - 1
        return self.path_T3[min(end + self.lag, last)] - self.path_T3[min(start + self.lag, last)]

    def hand(self, frame: int) -> tuple[tuple[float, float, float], float | None]:
        """Where the hand is at a frame, and its measured opening."""
        forward, left, up = self.path_T3[frame].tolist()
        return (forward, left, up), None if self.measured_T is None else float(self.measured_T[frame])

    def directions(self, start: int, end: int, threshold: float) -> list[tuple[int, int]]:
        """(axis of forward, left, up; 0 for its positive end and 1 for the other) of the motions along an axis of at
        least `threshold` m, the longest first."""
        moved_3 = self.moved(start, end)
        order = np.argsort(-np.abs(moved_3), kind="stable")
        return [(int(axis), int(moved_3[axis] < 0)) for axis in order if abs(moved_3[axis]) >= threshold]

    def plan(self, start: int, end: int, threshold: float) -> str:
        """`Primarily forward (+dx) and left (+dy). Gripper stays open (1).`"""
        named = [MOVES[axis][side] for axis, side in self.directions(start, end, threshold)]
        moves = f"Primarily {_listed(named)}." if named else "Hardly any movement."
        return f"{moves} {self._grip(start, end)}".strip()

    def direction_words(self, start: int, end: int, threshold: float) -> str:
        """`forward, left`, or `none`."""
        named = [DIRECTIONS[axis][side] for axis, side in self.directions(start, end, threshold)]
        return ", ".join(named) or "none"

    def _grip(self, start: int, end: int) -> str:
        if self.open_T is None:
            return ""
        before, after = (bool(self.open_T[frame]) for frame in (start, end - 1))
        if before == after:
            return "Gripper stays open (1)." if after else "Gripper remains closed (0)."
        return "Open gripper (1)." if after else "Close gripper (0)."


def _held(command_T: np.ndarray, measured_T: np.ndarray | None) -> np.ndarray:
    """bool [T], whether commands say open. A command in the middle says neither: what was before it holds."""
    present = measured_T is None or bool(measured_T[0] > 0.5)
    open_T = np.zeros(len(command_T), bool)
    for frame, command in enumerate(command_T):
        present = present if abs(command - 0.5) < MIDDLE else bool(command > 0.5)
        open_T[frame] = present
    return open_T


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)}{',' * (len(first) > 1)} and {last}" if first else last
