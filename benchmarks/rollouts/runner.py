"""The policy's side of an evaluation: worker processes with one env each, one process that holds the policy.

All queries that wait when the policy is free become one batch, so batches grow by themselves where the policy is the
slow part. An episode's actions depend on (task, episode, query number) alone, never on its place in a batch or its
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
from benchmarks.rollouts.rollout import EpisodeOutcome, Query, Ready, Refusal, RolloutJob, work
from la4vla.serve.policy_like import NoiseKey, PolicyLike, Said, open_episodes
from la4vla.sim import render
from la4vla.sim.registry import Simulator
from la4vla.types import UserError

ATTEMPTS = 2
SILENCE_S = 600.0
"""A worker that sends nothing for this long hangs, and is treated as dead. The slowest scene takes 5 s to build."""

HOPELESS = 3
"""The run stops where so many episodes were lost and none has ever finished: then the simulator itself is broken."""


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that is over.

    job        what was run
    attempts   how often it was begun
    outcome    how it ended; None where every attempt crashed
    gpu        EGL's number of the GPU that drew its images; None where none was chosen
    said       what the policy wrote in the last attempt, with the query's number, in order
    error      last output of the last attempt, where every one crashed
    """

    job: RolloutJob
    attempts: int
    outcome: EpisodeOutcome | None
    gpu: int | None
    said: tuple[tuple[int, Said], ...] = ()
    error: str = ""


@dataclass
class Worker:
    """A worker process.

    connection   to it
    log          file of its output, shared by all workers of one number, those of earlier runs included
    born_at      bytes that the log had before this process started
    gpu          EGL's number of the GPU it draws on; None: the driver's choice
    job          what it runs now; None: nothing
    heard        time.monotonic() of its last message
    """

    process: BaseProcess
    connection: Connection
    log: Path
    born_at: int
    gpu: int | None
    job: RolloutJob | None = None
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
        short = f"; {self.short_chunks} chunks were shorter than replan_every and executed whole"
        return (
            f"{episodes} episodes in {minutes:.1f} min ({episodes / minutes:.1f} a minute); {workers} workers: "
            f"{parts}, idle {100 * idle:.0f} %; policy busy {100 * self.policy_s / max(self.wall_s, 1e-9):.0f} %, "
            f"{self.queries / max(self.batches, 1):.1f} queries a batch{short if self.short_chunks else ''}"
        )


class Runner:
    """Runs episodes. Use it as a context: workers start when there are jobs for them, and end at exit.

    spent          where the time went
    has_finished   whether any episode has ever finished. Set it where an earlier run has finished some: then crashes
                   alone do not stop the run
    """

    def __init__(
        self,
        simulator: Simulator,
        protocol: Protocol,
        policy: PolicyLike | None,
        views: tuple[str, ...],
        workers: int,
        logs: Path,
        privileged: tuple[str, ...] = (),
    ) -> None:
        """policy: None for the simulator's scripted expert. views: cameras the envs render, () for none. logs: folder
        for the workers' output. privileged: names of what the policy is told of the simulator. Where there are several
        GPUs, the workers render on them in turn."""
        self._simulator, self._protocol, self._policy, self._views = simulator, protocol, policy, views
        self._count, self._logs, self._privileged = workers, logs, privileged
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Worker] = []
        self._gpus: tuple[int, ...] = ()
        self._queue = TaskQueue([])
        self._attempts: dict[RolloutJob, int] = defaultdict(int)
        self._said: dict[RolloutJob, list[tuple[int, Said]]] = defaultdict(list)
        self._lost = 0
        self.has_finished = False
        self.spent = Spent()

    def __enter__(self) -> Runner:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._gpus = render.gpus() if self._views else ()
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            _stop(worker)

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[FinishedEpisode]:
        """Runs every job and yields each as it finishes. Raises UserError for what another attempt cannot mend."""
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
                elif isinstance(message, EpisodeOutcome):
                    yield self._finish(worker, message)
                elif (lost := self._replace(worker)) is not None:
                    yield lost
            self._answer(queries)
        self.spent.wall_s += time.perf_counter() - start

    def _ready(self, active: list[Worker]) -> list[Worker]:
        """The workers that have sent something, and those that hang. Waits for the first."""
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
        for (worker, query), texts in zip(
            queries, self._policy.said(), strict=False
        ):  # one that writes nothing has none
            if worker.job is not None:
                self._said[worker.job] += [(query.number, text) for text in texts]
        self.spent.policy_s += time.perf_counter() - start
        self.spent.batches += 1
        self.spent.queries += len(queries)
        for (worker, _), chunk in zip(queries, chunks, strict=True):
            if not len(chunk):
                raise UserError("the policy gave a chunk without actions; let it give at least one.")
            self.spent.short_chunks += len(chunk) < self._protocol.replan_every
            _send(worker, chunk)
            worker.heard = time.monotonic()  # waiting for the policy is no silence

    def _finish(self, worker: Worker, outcome: EpisodeOutcome) -> FinishedEpisode:
        job = worker.job
        assert job is not None
        for activity, seconds in outcome.seconds.items():
            self.spent.worker_s[activity] += seconds
        self.has_finished = True
        self._give(worker)
        said = tuple(self._said.pop(job, ()))
        return FinishedEpisode(job, self._attempts.pop(job), outcome, worker.gpu, said)

    def _give(self, worker: Worker) -> None:
        """Gives this worker its next job, of the task whose scene it already has if there is one."""
        worker.job = self._queue.next(worker.job.task if worker.job else "")
        if worker.job is not None:
            self._attempts[worker.job] += 1
            _send(worker, worker.job)
            worker.heard = time.monotonic()

    def _replace(self, worker: Worker) -> FinishedEpisode | None:
        """Puts a new process in a dead worker's place. Its job goes back to the queue, or is returned as an error where
        it has crashed twice."""
        job = worker.job
        assert job is not None
        _stop(worker)
        words = f"{_last_words(worker)} (exit status {worker.process.exitcode}; {worker.log})"
        number = self._workers.index(worker)
        self._workers[number] = self._start(number)
        lost = None
        said = tuple(self._said.pop(job, ()))
        if self._attempts[job] < ATTEMPTS:
            self._queue.put_back(job)
        else:
            self._lost += 1
            lost = FinishedEpisode(job, self._attempts.pop(job), None, worker.gpu, said, words)
        if self._lost >= HOPELESS and not self.has_finished:
            raise UserError(f"{self._lost} episodes crashed and none finished; the last words were: {words}.")
        self._give(self._workers[number])
        return lost

    def _start(self, number: int) -> Worker:
        log = self._logs / f"worker-{number}.log"
        log.touch()  # it is read even if the worker dies before it writes
        born_at = log.stat().st_size
        ours, theirs = self._context.Pipe()
        gpu = render.gpu_of(number, self._gpus)
        arguments = (
            theirs,
            self._simulator,
            self._protocol,
            self._views,
            self._policy is None,
            self._privileged,
            gpu,
            str(log),
        )
        process = self._context.Process(target=work, args=arguments, daemon=True, name=f"env-{number}")
        process.start()
        theirs.close()  # so that a dead worker reads as end-of-file here
        return Worker(process, ours, log, born_at, gpu)


class TaskQueue:
    """Jobs by task. A worker stays with its task while jobs are left (another scene costs seconds), then joins the
    longest one."""

    def __init__(self, jobs: Iterable[RolloutJob]) -> None:
        self._tasks: dict[str, deque[RolloutJob]] = defaultdict(deque)
        for job in jobs:
            self._tasks[job.task].append(job)
        self._begun: set[str] = set()

    def next(self, task: str) -> RolloutJob | None:
        """A job of `task` if one is left, else of the longest task that nobody has begun, else of the longest."""
        left = {name: jobs for name, jobs in self._tasks.items() if jobs}
        if not left:
            return None
        if task not in left:
            fresh = [name for name in left if name not in self._begun] or list(left)
            task = max(fresh, key=lambda name: len(left[name]))
        self._begun.add(task)
        return left[task].popleft()

    def put_back(self, job: RolloutJob) -> None:
        self._tasks[job.task].appendleft(job)


def _receive(worker: Worker) -> object:
    """The worker's message; None where it died, also in the middle of one."""
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
