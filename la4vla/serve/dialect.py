"""What all dialects share: their interface, and what the server keeps of a connection from one message to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from la4vla.serve import wire
from la4vla.serve.batcher import Answer, Queries
from la4vla.serve.input_check import Findings, InputDifference
from la4vla.serve.policy_like import NoiseKey, Served
from la4vla.types import Observation, UserError

IMAGE_BYTES = 1280 * 720 * 3  # the largest image that fits under the default size limit
ELSE_BYTES = 2**20  # for all that is not pixels


@dataclass
class Session:
    """What the server keeps of one connection. Noise keys count queries, so two connections with the same name and the
    same queries get the same actions.

    seed, task, episode   of the noise of queries without a key
    query                 number of the next one
    last_total_ms         from the last message to its reply; None before the first
    told                  differences to the training data (InputDifference.about) that a reply has told the client
    """

    seed: int
    task: str
    episode: int
    query: int = 0
    last_total_ms: float | None = None
    told: set[str] = field(default_factory=set)

    def key(self) -> NoiseKey:
        return NoiseKey(self.seed, self.task, self.episode, self.query)

    def findings(self, differences: Sequence[InputDifference]) -> Findings:
        """What the next reply says of its observations."""
        notes = tuple(item.sentence for item in differences if item.about not in self.told)
        self.told.update(item.about for item in differences)
        return Findings(tuple(item.dimension for item in differences if item.dimension), notes)

    def reset(self, seed: int, task: str, episode: int) -> None:
        """A new episode begins: the next query is its first."""
        self.seed, self.task, self.episode, self.query = seed, task, episode, 0


class Dialect(Protocol):
    """How one kind of client talks."""

    @property
    def max_bytes(self) -> int:
        """Size of the largest message that such a client should need."""
        ...

    def hello(self, contract: Mapping[str, Any]) -> bytes | None:
        """What the server sends when a connection opens; None if nothing."""
        ...

    def read(self, message: bytes | str, session: Session) -> Queries | bytes:
        """The queries of a message, or the reply at once where there is nothing to compute. Raises UserError for a
        message that does not fit the policy."""
        ...

    def reply(self, answer: Answer, findings: Findings, session: Session) -> bytes | str:
        """The message that carries an answer, and the findings if the client has a place for them."""
        ...

    def error(self, sentence: str) -> bytes | str:
        """The message that carries an error."""
        ...


def next_queries(observation: Observation, session: Session) -> Queries:
    """The next query of a connection that sends no noise keys."""
    queries = Queries([observation], [session.key()])
    session.query += 1
    return queries


def unseen_view(policy: Served, what: str) -> UserError:
    """The error for an image that the policy was not trained with. what: its name in the message."""
    return UserError(
        f"{wire.shown(what)} shows a view that this policy ({', '.join(policy.views)}) was not trained with; "
        "serve with --view to say which are used."
    )
