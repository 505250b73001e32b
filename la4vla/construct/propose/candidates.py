"""Candidates: labelled spans of an episode on their way to becoming clips, and what proposes them.

Owns the words `Proposal` (a span and what is said of it), `Proposer` (whatever makes them) and `Candidate` (a proposal
that was judged by a machine, and perhaps by people).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from la4vla.construct.episodes import Episode
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.vocabulary import ObjectStatus


@dataclass(frozen=True)
class Proposal:
    """A labelled span [start, end) of an episode, in frames.

    primitive: a name of vocabulary.PRIMITIVES. status: the object's at the end of the span.
    displacement: (forward, left, up) in metres, what the commands of the span brought about.
    """

    start: int
    end: int
    primitive: str
    status: ObjectStatus
    instruction: str
    displacement: tuple[float, float, float]


@dataclass(frozen=True)
class ProposerResult:
    """What a proposer answered for one episode.

    rejected: what it said that could not be used, one sentence each. tokens_in, tokens_out: paid for, 0 from a cache.
    calls: requests made, retries included. failed: why there is nothing usable; the next `propose` asks about
    the episode again.
    """

    proposals: tuple[Proposal, ...]
    rejected: tuple[str, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    calls: int = 0
    failed: str = ""


class Proposer(Protocol):
    """Cuts an episode into labelled spans. May be called from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes whenever the same episode and keyframes may get other proposals: part of the row's `of`."""
        ...

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        """Raises UserError if it cannot go on at all (endpoint down, out of quota); what was done so far is kept."""
        ...


@dataclass(frozen=True)
class Candidate(Proposal):
    """A proposal with its automatic score 0 .. 3 on the annotators' scale (FACTS 1.3.5) and the reasons for it."""

    score: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Candidate:
        return Candidate(**{**raw, "displacement": tuple(raw["displacement"]), "reasons": tuple(raw["reasons"])})


def candidate_key(episode: str, start: int) -> str:
    """The name of a clip: unique in its folder, no dots."""
    return f"{episode}-{start:05d}"
