"""The episodes of a policy that keeps something of them, and the checks that every such policy makes of its queries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from la4vla.serve.policy import require_match
from la4vla.serve.policy_like import EpisodeKey, NoiseKey
from la4vla.types import Embodiment, Observation, UserError

KEPT = 4096  # episodes; the oldest is forgotten when one more is opened


class CountedEpisode(Protocol):
    """Something of an episode. queries: that were answered."""

    queries: int


Kept = TypeVar("Kept", bound=CountedEpisode)


class OpenEpisodes(Generic[Kept]):
    """begin: what an episode is when it opens."""

    def __init__(self, begin: Callable[[], Kept]) -> None:
        self._begin = begin
        self._open: OrderedDict[EpisodeKey, Kept] = OrderedDict()

    def open(self, episode: EpisodeKey) -> None:
        self._open.pop(episode, None)
        self._open[episode] = self._begin()
        if len(self._open) > KEPT:
            self._open.popitem(last=False)

    def of(self, keys: Sequence[NoiseKey]) -> list[Kept]:
        """The episode of each query. Raises UserError for two queries of one episode, an episode that is not open and
        a query that is not its next. Changes nothing."""
        named = [EpisodeKey(key.task, key.episode, key.seed) for key in keys]
        if len(set(named)) < len(named):
            raise UserError(
                "two queries of one episode came at once; ask for its next chunk when the last is executed."
            )
        for episode, key in zip(named, keys, strict=True):
            if episode not in self._open:
                raise UserError(f"episode {episode.episode} of {episode.task} is not open; begin it with query 0.")
            if key.query != self._open[episode].queries:
                raise UserError(
                    f"query {key.query} of episode {episode.episode} of {episode.task} came, and "
                    f"{self._open[episode].queries} is the next; number the queries, and give clients that run the "
                    "same episodes different seeds."
                )
        return [self._open[episode] for episode in named]


def check_observation(
    seen: Observation, embodiment: Embodiment, views: Sequence[str], privileged: Sequence[str], needed: str
) -> None:
    """Raises UserError for a missing view, a state of the wrong size and a missing privileged value.

    needed: who needs those values, and what to do without them: the end of the sentence.
    """
    require_match(embodiment, views, embodiment, tuple(seen.views))
    if seen.state.shape != (len(embodiment.state.names),):
        raise UserError(
            f"the state has shape {list(seen.state.shape)}; this policy's embodiment has "
            f"{len(embodiment.state.names)} dims."
        )
    if missing := [name for name in privileged if name not in seen.privileged]:
        raise UserError(f"the observation has no privileged `{missing[0]}`, which {needed}.")
