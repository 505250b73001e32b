"""Episodes: one demonstration each, whatever it was read from, and what a dataset of them must be able to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from la4vla.construct.robots.robot import Robot
from la4vla.types import Embodiment, UserError

Frames = Mapping[int, bytes]
"""Frame number -> JPEG bytes, upright RGB."""


class BadEpisode(UserError):
    """This one episode cannot be read; the others may."""


@contextmanager
def named(key: str) -> Iterator[None]:
    """Where an episode that was read without faults turns out to be bad: UserError with its key and the cure."""
    try:
        yield
    except BadEpisode as error:
        raise UserError(
            f"{key}: {error} What is done is kept; read.decode=true finds all such episodes, and read.max_bad_episodes "
            "says how many to go on without."
        ) from error


@dataclass(frozen=True)
class Script:
    """What a scripted expert had in mind: the truth that labellers are measured by, never what they may look at.

    phase: int32 [T], its own numbers of its phases. target_T3: float32, m, base frame, where it was steering.
    object_T3: float32, m, base frame, the object that the task is about.
    """

    phase: np.ndarray
    target_T3: np.ndarray
    object_T3: np.ndarray


@dataclass(frozen=True)
class Episode:
    """One demonstration.

    key: unique in its dataset; ASCII letters, digits, `-` and `_`, at most 60 characters. number: its initial state
    (Env.reset's `episode`), or its index in the dataset. state: float32 [T, S], before each action. action: float32 [T,
    A], what the expert wanted at that state, the training target. Both in the units of `robot.embodiment`. executed:
    float32 [T, A], what was sent to the env, known of recorded episodes only: `action` plus exploration noise, clipped;
    replaying it repeats the episode. script: known of recorded episodes only. views: camera names. frame_stride: frames
    0, stride, 2 * stride ... have pictures. frames: (view, frame numbers that have pictures) -> those pictures, read
    when asked for; raises BadEpisode.
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

    @property
    def embodiment(self) -> Embodiment:
        return self.robot.embodiment

    def __len__(self) -> int:
        return len(self.state)


class Dataset(Protocol):
    """A dataset of one robot's demonstrations, all with the same views and frame_stride."""

    @property
    def keys(self) -> Sequence[str]:
        """Of all episodes, in the dataset's order."""
        ...

    def stamp(self, key: str) -> str:
        """Changes whenever the episode may have changed (sizes and times of its files, settings of the reader)."""
        ...

    def read(self, key: str) -> Episode:
        """Raises BadEpisode."""
        ...

    def video_faults(self, episode: Episode) -> list[str]:
        """How the pictures disagree with the table, by what their containers say: frame counts, time stamps."""
        ...
