"""Answers the queries of many clients with one policy in one thread. What waits is computed as one batch.

The queries of one message stay together and in their order, so a client that is alone gets bit for bit what the same
call in process gives. A UserError refuses more queries in a message than a batch may hold, and actions that are not
finite.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from la4vla.serve.policy import NOT_FINITE, PolicyLost
from la4vla.serve.policy_like import NoiseKey, PolicyLike, Said, open_episodes
from la4vla.types import Observation, UserError


@dataclass(frozen=True)
class Queries:
    """The queries of one message: one observation and one noise key each."""

    observations: Sequence[Observation]
    keys: Sequence[NoiseKey]


@dataclass(frozen=True)
class Answer:
    """The chunks of one message, and what they took.

    chunks     float32 [T, A] each, raw units
    queue_ms   from the message's arrival to the start of its batch
    infer_ms   of the whole batch
    batch      chunks that were computed together, other clients' included
    said       what was written for each chunk; empty for a policy that does not write
    """

    chunks: Sequence[np.ndarray]
    queue_ms: float
    infer_ms: float
    batch: int
    said: Sequence[Sequence[Said]] = ()


@dataclass(frozen=True, eq=False)
class _Waiting:
    queries: Queries
    since: float
    answer: asyncio.Future[Answer]

    @property
    def size(self) -> int:
        return len(self.queries.keys)

    def resolve(self, answer: Answer) -> None:
        if not self.answer.done():  # it is done where the client has left
            self.answer.set_result(answer)

    def fail(self, error: UserError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """`ask` returns only while `run` is running as a task of the same event loop."""

    def __init__(self, policy: PolicyLike, max_batch: int) -> None:
        """max_batch: the most chunks that are computed together; with 1, no other client changes an answer."""
        self.policy = policy
        self.max_batch = max_batch
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._left_over: _Waiting | None = None
        self._open: set[_Waiting] = set()
        self._computed: Sequence[_Waiting] = ()
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, "policy")

    async def ask(self, queries: Queries) -> Answer:
        """The answer to the queries of one message. Cancelled before its batch begins, it costs nothing.

        Raises UserError for an observation that the policy refuses and for more queries than a batch holds, and
        PolicyLost where the server has stopped.
        """
        if len(queries.keys) > self.max_batch:
            raise UserError(f"{len(queries.keys)} queries came in one message, --max-batch is {self.max_batch}.")
        if self._stopped:
            raise _stopped()
        loop = asyncio.get_running_loop()
        waiting = _Waiting(queries, time.perf_counter(), loop.create_future())
        self._open.add(waiting)
        self._waiting.put_nowait(waiting)
        try:
            return await waiting.answer
        finally:
            self._open.remove(waiting)

    async def run(self) -> None:
        """Answers until it is cancelled, or until the policy raises something else than a UserError; whoever waits
        then gets PolicyLost."""
        try:
            while True:
                self._computed = await self._next_batch()
                await self._answer(self._computed)
        finally:
            self._stopped = True
            for waiting in self._open:
                waiting.fail(_stopped())
            self._thread.shutdown()

    async def stop(self) -> None:
        """Refuses the queries that wait and those that come, and returns when the present batch is answered."""
        self._stopped = True
        for waiting in self._open.difference(self._computed):
            waiting.fail(_stopped())
        if self._computed:
            await asyncio.wait([waiting.answer for waiting in self._computed])

    async def _next_batch(self) -> Sequence[_Waiting]:
        """The first message that waits, and those behind it that fit into the batch. The first that does not fit begins
        the next batch. Messages of clients that have left are dropped."""
        batch: list[_Waiting] = []
        size = 0
        while not batch or not self._waiting.empty():
            following = self._left_over or await self._waiting.get()
            self._left_over = None
            if following.answer.done():
                continue
            size += following.size
            if size > self.max_batch:
                self._left_over = following
                break
            batch.append(following)
        return batch

    def _infer(
        self, observations: Sequence[Observation], keys: Sequence[NoiseKey]
    ) -> tuple[list[np.ndarray], Sequence[Sequence[Said]]]:
        """Runs in the policy's thread: chunks, and what was written for them. A batch that is refused comes again
        message by message, and then opens its episodes again."""
        open_episodes(self.policy, keys)
        return self.policy.infer(observations, keys), self.policy.said()

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        observations = [observation for waiting in batch for observation in waiting.queries.observations]
        keys = [key for waiting in batch for key in waiting.queries.keys]
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            chunks, said = await loop.run_in_executor(self._thread, self._infer, observations, keys)
        except UserError as error:
            if len(batch) == 1:
                batch[0].fail(error)
            else:  # one of the messages is at fault, and the others must not suffer for it
                for waiting in batch:
                    await self._answer([waiting])
            return
        infer_ms = 1000 * (time.perf_counter() - began)
        rest, rest_said = iter(chunks), iter(said)
        for waiting in batch:
            own = [next(rest) for _ in waiting.queries.keys]
            own_said = [next(rest_said, ()) for _ in waiting.queries.keys] if said else ()
            if all(np.isfinite(chunk_TA).all() for chunk_TA in own):
                waiting.resolve(Answer(own, 1000 * (began - waiting.since), infer_ms, len(keys), own_said))
            else:
                waiting.fail(UserError(NOT_FINITE))


def _stopped() -> PolicyLost:
    return PolicyLost("the server has stopped; connect again when it is back.")
