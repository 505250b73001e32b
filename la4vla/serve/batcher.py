"""Questions of many clients, answered by one policy in one thread, as many at once as are waiting.

A client's questions of one message stay together, in their order: what one client alone gets is bit for bit what the
same call in process gives. Refuses more questions in a message than a batch may hold, and actions that are not finite.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from la4vla.serve.policy import NOT_FINITE, PolicyLost
from la4vla.serve.policy_like import NoiseKey, PolicyLike, open_episodes
from la4vla.types import Observation, UserError


@dataclass(frozen=True)
class Question:
    """One observation and one noise key for each chunk that a message asks for."""

    observations: Sequence[Observation]
    keys: Sequence[NoiseKey]


@dataclass(frozen=True)
class Answer:
    """chunks: float32 [T, A] each, raw units. queue_ms: waiting before the batch began. infer_ms: of the whole batch.

    batch: chunks that were computed together, those of other clients included.
    """

    chunks: Sequence[np.ndarray]
    queue_ms: float
    infer_ms: float
    batch: int


@dataclass(frozen=True, eq=False)
class _Waiting:
    question: Question
    since: float
    answer: asyncio.Future[Answer]

    @property
    def size(self) -> int:
        return len(self.question.keys)

    def resolve(self, answer: Answer) -> None:
        if not self.answer.done():  # who has left waits no more
            self.answer.set_result(answer)

    def fail(self, error: UserError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """`run` must be running, as a task of the same event loop, for `ask` to return."""

    def __init__(self, policy: PolicyLike, max_batch: int) -> None:
        """max_batch: chunks computed together at most; 1 makes every answer independent of other clients' presence."""
        self.policy = policy
        self.max_batch = max_batch
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._left_over: _Waiting | None = None
        self._open: set[_Waiting] = set()
        self._computed: Sequence[_Waiting] = ()
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, "policy")

    async def ask(self, question: Question) -> Answer:
        """Raises UserError for an observation the policy refuses and for more questions than a batch holds, PolicyLost
        where nothing is answered any more. A question whose asking is cancelled before its batch begins costs nothing.
        """
        if len(question.keys) > self.max_batch:
            raise UserError(f"{len(question.keys)} queries came in one message, --max-batch is {self.max_batch}.")
        if self._stopped:
            raise _stopped()
        loop = asyncio.get_running_loop()
        waiting = _Waiting(question, time.perf_counter(), loop.create_future())
        self._open.add(waiting)
        self._waiting.put_nowait(waiting)
        try:
            return await waiting.answer
        finally:
            self._open.remove(waiting)

    async def run(self) -> None:
        """Answers until it is cancelled or the policy raises what is no UserError; then all who wait hear so."""
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
        """Refuses what waits and all that comes, and returns when what is being computed is answered."""
        self._stopped = True
        for waiting in self._open.difference(self._computed):
            waiting.fail(_stopped())
        if self._computed:
            await asyncio.wait([waiting.answer for waiting in self._computed])

    async def _next_batch(self) -> Sequence[_Waiting]:
        """The first that waits, and those behind it that fit; the first that does not fit begins the next batch. Who
        waits no more is left out."""
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

    def _infer(self, observations: Sequence[Observation], keys: Sequence[NoiseKey]) -> list[np.ndarray]:
        """In the policy's thread. A batch that is refused is computed again one by one, and its episodes open again."""
        open_episodes(self.policy, keys)
        return self.policy.infer(observations, keys)

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        observations = [seen for waiting in batch for seen in waiting.question.observations]
        keys = [key for waiting in batch for key in waiting.question.keys]
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            chunks = await loop.run_in_executor(self._thread, self._infer, observations, keys)
        except UserError as error:
            if len(batch) == 1:
                batch[0].fail(error)
            else:  # one of them is at fault; the others shall not notice
                for waiting in batch:
                    await self._answer([waiting])
            return
        infer_ms = 1000 * (time.perf_counter() - began)
        rest = iter(chunks)
        for waiting in batch:
            own = [next(rest) for _ in waiting.question.keys]
            if all(np.isfinite(chunk_TA).all() for chunk_TA in own):
                waiting.resolve(Answer(own, 1000 * (began - waiting.since), infer_ms, len(keys)))
            else:
                waiting.fail(UserError(NOT_FINITE))


def _stopped() -> PolicyLost:
    return PolicyLost("the server has stopped; connect again when it is back.")
