"""Runs a study: its missing jobs one after another, each as a process of its own, until all have run or time is up.

A job that was killed goes on where it stopped, because its command does; the seconds it took before count. One study
runs at a time in a folder. The command holds the folder's lock too, so a command that outlived its study keeps the next
run out. A job that fails stops the run, since others may build on it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmarks.study.config import StudyConfig
from benchmarks.study.hours import by_part, expected_minutes
from benchmarks.study.jobs import StudyJob, everything, reread
from benchmarks.study.measure import measure
from benchmarks.study.plan import expand
from benchmarks.study.rows import StudyRows, circumstances, cores
from la4vla.files import locked, write_atomic
from la4vla.types import UserError

TICK_S = 5.0
"""How often the seconds of a running job are written to its note; a kill loses no more than this."""


@dataclass
class StudyRunner:
    """Runs single jobs of a study.

    study       whose jobs they are
    rows        gets a row for each finished job
    lock        file descriptor of the study's lock, which commands inherit
    """

    study: StudyConfig
    rows: StudyRows
    lock: int

    def made(self, job: StudyJob) -> bool:
        """Whether the job's folder is on this machine and finished. (Its row may come from another machine.)"""
        return job.folder.exists() and self._note(job).get("finished", False)

    def missing(self, job: StudyJob) -> list[StudyJob]:
        """The jobs to run for this one, in order: those whose folders it needs and that are not made, and itself."""
        before = [item for need in job.needs if not self.made(need) for item in self.missing(need)]
        return list(dict.fromkeys([*before, job]))

    def make(self, job: StudyJob) -> None:
        """Runs a job's command to its end and appends its row. Raises UserError if it fails."""
        note = self._note(job)
        before, since = note.get("seconds", 0.0), time.monotonic()

        def seconds() -> float:
            return before + time.monotonic() - since

        reread()
        if job.of not in {item.of for item in everything(expand(self.study))}:
            raise UserError(f"{job.name}: its recipe has changed since this run began; start again.")
        began = circumstances()
        self._forget_others(job)
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        for path, text in job.files:
            write_atomic(path, text.encode())
        process = subprocess.Popen(job.command, env=self._environment(), pass_fds=(self.lock,))
        try:
            while True:
                try:
                    status = process.wait(TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    self._write_note(job, {"seconds": seconds()})
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            self._write_note(job, {"seconds": seconds()})
        if status:
            raise UserError(f"{job.name} failed with status {status}: {' '.join(job.command)}")
        row = self.rows.append(job, self.study, began, seconds(), measure(job))
        self._write_note(job, {"seconds": seconds(), "finished": True})
        print(f"{job.name}: {row['seconds']} s, row in {self.rows.folder / row['file']}", flush=True)

    def _environment(self) -> dict[str, str]:
        """One thread for each process, as two ranks on two cores need; no GPU where the study is for the CPU."""
        return {**os.environ, "OMP_NUM_THREADS": "1"} | (
            {"CUDA_VISIBLE_DEVICES": ""} if self.study.device == "cpu" else {}
        )

    def _note_path(self, job: StudyJob) -> Path:
        return Path(self.study.out) / "jobs" / f"{job.name.replace('/', '-')}-{job.of}.json"

    def _forget_others(self, job: StudyJob) -> None:
        """Removes notes of data that another recipe wrote into this folder: this job replaces them."""
        for path in self._note_path(job).parent.glob(f"{job.name.replace('/', '-')}-*.json"):
            if job.kind in ("construct", "texts") and path != self._note_path(job):
                path.unlink()

    def _note(self, job: StudyJob) -> dict:
        path = self._note_path(job)
        return json.loads(path.read_text()) if path.is_file() else {}

    def _write_note(self, job: StudyJob, note: dict) -> None:
        write_atomic(self._note_path(job), json.dumps(note).encode())


def run(study: StudyConfig, parts: Sequence[str], hours: float) -> None:
    """Runs the parts' jobs that have no row yet. A job that would not end within `hours` is not started.

    Raises UserError where a job fails or another run of this study is still at work.
    """
    jobs = expand(study, parts)
    until = time.monotonic() + hours * 3600
    out = Path(study.out)
    taken = f"{out}: a run of this study, or a command that one left, is still at work; wait for it or end it."
    with locked(out / "lock", taken) as lock, _stop_on_terminate():
        runner = StudyRunner(study, StudyRows(Path(study.rows)), lock.fileno())
        for number, job in enumerate(jobs, start=1):
            if runner.rows.of(job) is not None:
                print(f"{number}/{len(jobs)} {job.name}: has its row", flush=True)
                continue
            for item in runner.missing(job):
                needed = expected_minutes(study, runner.rows, item, cores())
                left = (until - time.monotonic()) / 60
                if needed > left:
                    print(
                        f"{item.name} takes about {needed:.0f} minutes and {left:.0f} are left; start again to go on",
                        flush=True,
                    )
                    return
                print(f"{number}/{len(jobs)} {item.name}, about {needed:.0f} min", flush=True)
                runner.make(item)
    print(f"all {len(jobs)} jobs have their rows", flush=True)


def listing(study: StudyConfig, parts: Sequence[str]) -> str:
    """The jobs of every part, and which of them have rows, as text."""
    rows = StudyRows(Path(study.rows))
    lines = []
    for item in by_part(study, rows):
        if parts and item.part not in parts:
            continue
        spent = f"{item.measured:.2f} h measured, about {item.left:.2f} h left"
        lines.append(f"{item.part}: {item.done} of {item.jobs} done, {spent}")
        lines += [f"  {'done' if rows.of(job) else 'todo'}  {job.name}" for job in expand(study, [item.part])]
    return "\n".join(lines)


@contextmanager
def _stop_on_terminate() -> Iterator[None]:
    """SIGTERM ends the run and its command, as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
