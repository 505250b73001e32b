"""What the runner, the server and the probe ask of a policy, whatever it is made of, and how they name its episodes.

`ServedPolicy` is one in this process, `RemotePolicy` is one on another machine. A policy may keep something of an
episode from one query to the next: it is told when the episode begins, and every query names its episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from la4vla.types import Embodiment, Observation


class EpisodeKey(NamedTuple):
    """What an episode is to a policy.

    task      its name in the simulator, or any name a client gives
    episode   number of the episode's initial state
    seed      of the flow's noise
    """

    task: str
    episode: int
    seed: int


class NoiseKey(NamedTuple):
    """What a chunk's noise is drawn from: an episode, and the number of the query within it, from 0."""

    seed: int
    task: str
    episode: int
    query: int


class Said(NamedTuple):
    """One thing that a policy wrote, or was told, in an episode.

    question  what was asked: `subtasks`, `plan`, `actions`, `completion`, `next`, `next_system`; or `verdict`,
              `truth`, `oracle`, `note`
    subtask   or low-level instruction that was at work; empty before the first
    text      as it was written
    problem   why it could not be used, and was asked again; empty if it was used
    """

    question: str
    subtask: str
    text: str
    problem: str


class TrainedInputs(NamedTuple):
    """What a policy's training tells of the observations that it should get.

    state_min, state_max  raw, one number a dimension
    view_sizes            view -> (height, width) of its images in pixels, one for each size
    image_size            pixels, square; what the model makes of every image
    """

    state_min: tuple[float, ...]
    state_max: tuple[float, ...]
    view_sizes: Mapping[str, tuple[tuple[int, int], ...]]
    image_size: int


class PolicyLike(Protocol):
    """Anything that answers observations with chunks of raw actions."""

    def check(self, embodiment: Embodiment, views: Sequence[str]) -> None:
        """Raises UserError where this policy cannot drive an env with this embodiment and these views."""
        ...

    def open(self, episode: EpisodeKey) -> None:
        """The episode begins: called once, before its first query. An episode that is opened again begins anew."""
        ...

    def infer(self, observations: Sequence[Observation], noise_keys: Sequence[NoiseKey]) -> list[np.ndarray]:
        """One chunk for each observation: raw actions float32 [T, A], T from 1 to the policy's horizon, which may
        differ from chunk to chunk.

        Raises UserError for an observation that the policy cannot take; every episode then stays as it was.
        """
        ...

    def said(self) -> Sequence[Sequence[Said]]:
        """What was written for the queries of the last `infer`, query by query; empty for one that does not write."""
        ...


class Served(PolicyLike, Protocol):
    """What the server and evaluations know of a policy besides.

    identity    of its weights, in result files
    step        optimizer steps of its checkpoint
    views       names of the images it needs, in order
    versions    of the libraries that compute the actions
    horizon     actions of a chunk at most
    counts_on   actions of each chunk that must be executed before the next query; 0 where it does not matter
    privileged  names of the Observation.privileged that it needs
    trained     what its training tells of observations; None where that is not known
    """

    @property
    def identity(self) -> str: ...

    @property
    def step(self) -> int: ...

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def views(self) -> tuple[str, ...]: ...

    @property
    def versions(self) -> dict[str, str]: ...

    @property
    def horizon(self) -> int: ...

    @property
    def counts_on(self) -> int: ...

    @property
    def privileged(self) -> tuple[str, ...]: ...

    @property
    def trained(self) -> TrainedInputs | None: ...


def open_episodes(policy: PolicyLike, noise_keys: Sequence[NoiseKey]) -> None:
    """Opens the episodes that these queries are the first of."""
    for key in noise_keys:
        if key.query == 0:
            policy.open(EpisodeKey(key.task, key.episode, key.seed))
