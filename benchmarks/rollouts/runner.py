"""The policy's side of an evaluation: worker processes with one env each, one process that holds the policy.

Whatever queries wait when the policy is free become one batch, so that batches grow by themselves where the policy is
the slow part. An episode's actions depend on (task, episode, query number) alone, never on its place in a batch or its
turn. A worker that dies is replaced and its episode is run once more; the second death is an error in the result.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.results.protocols import Protocol
from benchmarks.rollouts.rollout import Job, Outcome, Query, Ready, Refusal, work
from la4vla.serve.policy_like import NoiseKey, PolicyLike, open_episodes
from la4vla.sim import render
from la4vla.sim.registry import Simulator
from la4vla.types import UserError

ATTEMPTS = 2
SILENCE_S = 600.0
"""A worker that says nothing for this long hangs (the slowest known scene takes 5 s to build) and is treated as
dead."""

HOPELESS = 3
"""So many episodes lost before any was ever finished, and the simulator itself is broken: the run stops."""


@dataclass(frozen=True)
class Finished:
    """An episode that is over. outcome: None where every attempt crashed, then `error` is the last one's last words.
    gpu: EGL's number of the one that drew its pictures, None where none was chosen."""

    job: Job
    attempts: int
    outcome: Outcome | None
    gpu: int | None
    error: str = ""


@dataclass
class Worker:
    """born_at: bytes that the log had before this process; a number's workers, of earlier runs too, share one log."""

    process: BaseProcess
    connection: Connection
    log: Path
    born_at: int
    gpu: int | None
    job: Job | None = None
    heard: float = 0.0


@dataclass
class Spent:
    """Where the time of a run went.

    wall_s         of the whole run
    worker_s       seconds of all workers, by activity
    policy_s       seconds that the parent spent in the policy
    batches        calls of the policy
    queries        chunks that it gave
    short_chunks   chunks that had fewer actions than the protocol executes before the next query
    """

    wall_s: float = 0.0
    worker_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    policy_s: float = 0.0
    batches: int = 0
    queries: int = 0
    short_chunks: int = 0

    def sentence(self, workers: int, episodes: int) -> str:
        """One line for a person."""
        total = max(workers * self.wall_s, 1e-9)
        known = {name: seconds / total for name, seconds in self.worker_s.items()}
        parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in known.items())
        minutes = max(self.wall_s / 60, 1e-9)
        idle = max(0.0, 1 - sum(known.values()))
        short = (
            f"; {self.short_chunks} chunks were shorter than replan_every and executed whole"
            if self.short_chunks
            else ""
        )
        return (
            f"{episodes} episodes in {minutes:.1f} min ({episodes / minutes:.1f} a minute); {workers} workers: "
            f"{parts}, idle {100 * idle:.0f} %; policy busy {100 * self.policy_s / max(self.wall_s, 1e-9):.0f} %, "
            f"{self.queries / max(self.batches, 1):.1f} queries a batch{short}"
        )


class Runner:
    """Use as a context: workers start when there are jobs for them and end at exit. `policy` is None for the
    simulator's scripted expert.

    views: cameras the envs render, () for none; where there are several GPUs, worker n renders on the n-th, and round
    again. logs: folder for the workers' output. `works` is for the caller to set where episodes of before have ended.
    """

    def __init__(
        self,
        simulator: Simulator,
        protocol: Protocol,
        policy: PolicyLike | None,
        views: tuple[str, ...],
        workers: int,
        logs: Path,
    ) -> None:
        self._simulator, self._protocol, self._policy, self._views = simulator, protocol, policy, views
        self._count, self._logs = workers, logs
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Worker] = []
        self._gpus: tuple[int, ...] = ()
        self._queue = TaskQueue([])
        self._attempts: dict[Job, int] = defaultdict(int)
        self._lost = 0
        self.works = False
        self.spent = Spent()

    def __enter__(self) -> Runner:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._gpus = render.gpus() if self._views else ()
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            _stop(worker)

    def run(self, jobs: Iterable[Job]) -> Iterator[Finished]:
        """Runs every job and yields each as it finishes. Raises UserError for what no rerun can mend."""
        start = time.perf_counter()
        jobs = list(jobs)
        self._queue = TaskQueue(jobs)
        while len(self._workers) < min(self._count, len(jobs)):
            self._workers.append(self._start(len(self._workers)))
        for worker in self._workers:
            self._give(worker)
        while active := [worker for worker in self._workers if worker.job]:
            queries: list[tuple[Worker, Query]] = []
            for worker in self._ready(active):
                message = _receive(worker)
                if isinstance(message, Query):
                    queries.append((worker, message))
                elif isinstance(message, Ready):
                    self._welcome(message)
                elif isinstance(message, Refusal):
                    raise UserError(message.sentence)
                elif isinstance(message, Outcome):
                    yield self._finish(worker, message)
                elif (lost := self._replace(worker)) is not None:
                    yield lost
            self._answer(queries)
        self.spent.wall_s += time.perf_counter() - start

    def _ready(self, active: list[Worker]) -> list[Worker]:
        """The workers that said something or hang; waits for the first."""
        ready = wait([worker.connection for worker in active], timeout=SILENCE_S)
        now = time.monotonic()
        for worker in active:
            if worker.connection in ready:
                worker.heard = now
            elif now - worker.heard > SILENCE_S:
                worker.process.kill()
        return [worker for worker in active if worker.connection in ready or worker.heard < now - SILENCE_S]

    def _welcome(self, message: Ready) -> None:
        if self._policy is not None:
            self._policy.check(message.embodiment, self._views)

    def _answer(self, queries: list[tuple[Worker, Query]]) -> None:
        if not queries:
            return
        assert self._policy is not None
        start = time.perf_counter()
        seed = self._protocol.seed
        keys = [NoiseKey(seed, w.job.task, w.job.episode, query.number) for w, query in queries if w.job]
        open_episodes(self._policy, keys)
        chunks = self._policy.infer([query.observation for _, query in queries], keys)
        self.spent.policy_s += time.perf_counter() - start
        self.spent.batches += 1
        self.spent.queries += len(queries)
        for (worker, _), chunk in zip(queries, chunks, strict=True):
            if not len(chunk):
                raise UserError("the policy gave a chunk without actions; let it give at least one.")
            self.spent.short_chunks += len(chunk) < self._protocol.replan_every
            _send(worker, chunk)
            worker.heard = time.monotonic()  # it was not silent while it waited

    def _finish(self, worker: Worker, outcome: Outcome) -> Finished:
        job = worker.job
        assert job is not None
        for activity, seconds in outcome.seconds.items():
            self.spent.worker_s[activity] += seconds
        self.works = True
        self._give(worker)
        return Finished(job, self._attempts.pop(job), outcome, worker.gpu)

    def _give(self, worker: Worker) -> None:
        """The next job for this worker, of the task whose scene it already has if there is one."""
        worker.job = self._queue.next(worker.job.task if worker.job else "")
        if worker.job is not None:
            self._attempts[worker.job] += 1
            _send(worker, worker.job)
            worker.heard = time.monotonic()

    def _replace(self, worker: Worker) -> Finished | None:
        """A new process for a dead worker. Its job goes back to the queue, or, crashed twice, comes back as an
        error."""
        job = worker.job
        assert job is not None
        _stop(worker)
        words = f"{_last_words(worker)} (exit status {worker.process.exitcode}; {worker.log})"
        number = self._workers.index(worker)
        self._workers[number] = self._start(number)
        lost = None
        if self._attempts[job] < ATTEMPTS:
            self._queue.put_back(job)
        else:
            self._lost += 1
            lost = Finished(job, self._attempts.pop(job), None, worker.gpu, words)
        if self._lost >= HOPELESS and not self.works:
            raise UserError(f"{self._lost} episodes crashed and none finished; the last words were: {words}.")
        self._give(self._workers[number])
        return lost

    def _start(self, number: int) -> Worker:
        log = self._logs / f"worker-{number}.log"
        log.touch()  # its last words are asked for even if it dies before its first
        born_at = log.stat().st_size
        ours, theirs = self._context.Pipe()
        gpu = render.gpu_of(number, self._gpus)
        arguments = (theirs, self._simulator, self._protocol, self._views, self._policy is None, gpu, str(log))
        process = self._context.Process(target=work, args=arguments, daemon=True, name=f"env-{number}")
        process.start()
        theirs.close()  # so that a dead worker reads as end-of-file here
        return Worker(process, ours, log, born_at, gpu)


class TaskQueue:
    """Jobs by task. A worker stays with its task while it lasts (another scene costs seconds), then joins the
    longest."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._tasks: dict[str, deque[Job]] = defaultdict(deque)
        for job in jobs:
            self._tasks[job.task].append(job)
        self._begun: set[str] = set()

    def next(self, task: str) -> Job | None:
        """A job of `task` if it has one left, else of the longest task nobody has begun, else of the longest."""
        left = {name: jobs for name, jobs in self._tasks.items() if jobs}
        if not left:
            return None
        if task not in left:
            fresh = [name for name in left if name not in self._begun] or list(left)
            task = max(fresh, key=lambda name: len(left[name]))
        self._begun.add(task)
        return left[task].popleft()

    def put_back(self, job: Job) -> None:
        self._tasks[job.task].appendleft(job)


def _receive(worker: Worker) -> object:
    """The worker's message; None where it died, were it in the middle of one."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        return None


def _send(worker: Worker, message: object) -> None:
    """A worker that died meanwhile is noticed when its pipe is read."""
    try:
        worker.connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        return


def _stop(worker: Worker) -> None:
    """Ends one of our own processes: politely if it is waiting for a job, else at once."""
    _send(worker, None)
    worker.process.join(timeout=2 if worker.job is None else 0.2)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.connection.close()


def _last_words(worker: Worker) -> str:
    said = worker.log.read_bytes()[worker.born_at :].decode(errors="replace")
    return render.last_words(said) or "no output"
