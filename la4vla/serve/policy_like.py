"""What the runner, the server and the probe ask of a policy, whatever it is made of, and how they name its episodes.

`ServedPolicy` is one in this process, `RemotePolicy` is one on another machine. A policy may keep something of an
episode from one query to the next: it is told when the episode begins, and every query names its episode.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def open_episodes(policy: PolicyLike, noise_keys: Sequence[NoiseKey]) -> None:
    """Opens the episodes that these queries are the first of."""
    for key in noise_keys:
        if key.query == 0:
            policy.open(EpisodeKey(key.task, key.episode, key.seed))
