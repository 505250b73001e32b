"""Candidates: labelled spans of an episode that may become clips, and what proposes them.

Owns the words `Proposal` (a labelled span), `Proposer` (makes proposals) and `Candidate` (a proposal with the judge's
score).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from la4vla.construct.episodes import Episode
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.vocabulary import ObjectStatus


@dataclass(frozen=True)
class Proposal:
    """A labelled span [start, end) of an episode.

    start, end     frames
    primitive      a name of vocabulary.PRIMITIVES
    status         of the object at the end of the span; empty if nothing tells
    instruction    a sentence that says what to do
    displacement   (forward, left, up) in metres, caused by the commands of the span; the mean of arms that both act
    arm            of a robot with two: left, right or both
    parts          what each arm does, where they do different things at once; empty otherwise
    """

    start: int
    end: int
    primitive: str
    status: ObjectStatus
    instruction: str
    displacement: tuple[float, float, float]
    arm: str = field(default="", kw_only=True)
    parts: tuple[Proposal, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class ProposerResult:
    """What a proposer made of one episode.

    proposals               in the order of time
    rejected                what could not be used, one sentence each
    tokens_in, tokens_out   paid for; 0 if the answer came from a cache
    calls                   requests made, retries included
    failed                  why there are no proposals; the next `propose` asks about the episode again
    """

    proposals: tuple[Proposal, ...]
    rejected: tuple[str, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    calls: int = 0
    failed: str = ""


class Proposer(Protocol):
    """Cuts episodes into labelled spans. May be called from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes whenever the same episode and keyframes may get other proposals. Part of the row's `of`."""
        ...

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        """Raises UserError if the proposer cannot go on at all (endpoint down, out of quota)."""
        ...


@dataclass(frozen=True)
class Candidate(Proposal):
    """A judged proposal.

    score      0 .. 3 on the annotators' scale (FACTS 1.3.5)
    reasons    why it is not 3, one sentence each
    """

    score: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As the ledger has it: without `arm` and `parts` where they are empty."""
        return _plain(asdict(self))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Candidate:
        tuples = {name: tuple(values[name]) for name in ("displacement", "reasons")}
        parts = tuple(
            Proposal(**{**part, "displacement": tuple(part["displacement"])}) for part in values.get("parts", ())
        )
        return Candidate(**{**values, **tuples, "parts": parts})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    left = {name: value for name, value in values.items() if value or name not in ("arm", "parts")}
    if values["parts"]:
        left["parts"] = [_plain(part) for part in values["parts"]]
    return left


def candidate_key(episode: str, start: int) -> str:
    """The name of a clip: unique in its folder, without dots."""
    return f"{episode}-{start:05d}"


def candidates_of(row: Mapping[str, Any]) -> dict[str, Candidate]:
    """The candidates in a row of the ledger of `propose`, by candidate_key, in the order of time."""
    candidates = [Candidate.from_dict(values) for values in row["candidates"]]
    return {candidate_key(row["key"], item.start): item for item in candidates}
