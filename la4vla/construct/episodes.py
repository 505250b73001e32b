"""Episodes: one demonstration each, from whatever format it was read. Also what a reader of datasets must offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from la4vla.construct.notes import Note
from la4vla.construct.robots.arms import ArmView, arm_views
from la4vla.construct.robots.robot import Robot
from la4vla.types import Embodiment, UserError

Frames = Mapping[int, bytes]
"""Frame number -> JPEG bytes, upright RGB."""


class BadEpisode(UserError):
    """One episode cannot be read. Others of its dataset may be sound."""


@contextmanager
def named(key: str) -> Iterator[None]:
    """Turns a BadEpisode of a step after `read` into a UserError with the episode's key and the cure."""
    try:
        yield
    except BadEpisode as error:
        raise UserError(
            f"{key}: {error} Finished episodes are kept. Run again with read.decode=true, which finds all such "
            "episodes, and set read.max_bad_episodes to the number of episodes that may be left out."
        ) from error


@dataclass(frozen=True)
class Caption:
    """A span [start, end) of an episode that its dataset has a sentence for, the low level of its language."""

    start: int
    end: int
    instruction: str


@dataclass(frozen=True)
class Script:
    """The intentions of a scripted expert. Labellers are measured against them and never see them.

    phase        int32 [T], the expert's own numbers of its phases
    target_T3    float32, m, base frame; the place it was steering to
    object_T3    float32, m, base frame; the object that the task is about
    """

    phase: np.ndarray
    target_T3: np.ndarray
    object_T3: np.ndarray


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    key             unique in its dataset; ASCII letters, digits, `-` and `_`, at most 60 characters
    task            name of the task, to count by
    number          its initial state (Env.reset's `episode`) if it was recorded, else its index in the dataset
    instruction     the task's sentence
    robot           what the numbers mean
    fps             frames a second
    state           float32 [T, S], measured before each action, in the units of robot.embodiment
    action          float32 [T, A], the training target: what the expert wanted at that state, same units
    views           camera names
    frame_stride    frames 0, stride, 2 * stride ... have images
    frames          (view, numbers of frames with images) -> those images, read when called; raises BadEpisode
    executed        float32 [T, A], `action` plus exploration noise, clipped, as sent to the env; recorded episodes only
    script          recorded episodes only
    notes           what the reader noticed in the dataset's own numbers
    captions        what the dataset itself calls the parts of the episode, in the order of time; empty if it does not
    """

    key: str
    task: str
    number: int
    instruction: str
    robot: Robot
    fps: float
    state: np.ndarray
    action: np.ndarray
    views: tuple[str, ...]
    frame_stride: int
    frames: Callable[[str, Sequence[int]], Frames]
    executed: np.ndarray | None = None
    script: Script | None = None
    notes: tuple[Note, ...] = ()
    captions: tuple[Caption, ...] = ()

    @property
    def embodiment(self) -> Embodiment:
        return self.robot.embodiment

    @property
    def arms(self) -> tuple[ArmView, ...]:
        """The robot's arms, each as if it were the only one; what is computed from joints is computed anew."""
        return arm_views(self.state, self.action, self.robot)

    def __len__(self) -> int:
        return len(self.state)


class Dataset(Protocol):
    """A dataset of one robot's demonstrations, all with the same views and frame_stride."""

    @property
    def keys(self) -> Sequence[str]:
        """The keys of all episodes, in the dataset's order."""
        ...

    @property
    def notes(self) -> Sequence[Note]:
        """What people should know about the dataset as a whole."""
        ...

    def stamp(self, key: str) -> str:
        """A text that changes whenever the episode may have changed: file sizes and times, settings of the reader."""
        ...

    def read(self, key: str) -> Episode:
        """Raises BadEpisode."""
        ...

    def video_faults(self, episode: Episode) -> list[str]:
        """Disagreements of the images with the table that show without decoding: frame counts, time stamps."""
        ...

    def image_sizes(self, episode: Episode) -> dict[str, tuple[int, int]]:
        """View -> (height, width) in pixels, of the first image at least. Raises BadEpisode for one of unknown kind."""
        ...
