"""Runs the jobs of a sweep, here or on a SLURM cluster, and writes its tables.

    python -m benchmarks sweep configs/sweep/quickstart.yaml

A job whose episodes are all there is not started again, so an interrupted sweep goes on where it stopped. Here, the
tables are written whenever a job has ended; what did not run or failed is marked in them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.sweep import slurm, tables
from benchmarks.sweep.jobs import SLURM, Job, State, SweepConfig, expand
from la4vla import config


def run(path: Path, overrides: Sequence[str]) -> int:
    """Runs the sweep that a YAML describes and writes its tables; 1 where a job failed, else 0."""
    sweep: SweepConfig = config.load(path, overrides, schema=SweepConfig)
    jobs, out = expand(sweep), Path(sweep.out)
    waiting = [job for job in jobs if not job.complete]
    print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them complete", flush=True)
    states = {job: State("not run yet" if job in waiting else "") for job in jobs}
    tables.write(tables.draw(jobs, states, sweep.baseline), out)
    for ended in _on_cluster(waiting, sweep) if sweep.runner == SLURM else _here(waiting):
        states |= ended
        tables.write(tables.draw(jobs, states, sweep.baseline), out)
    for job, state in states.items():
        if state.failed:
            print(f"{job.name} ({job.folder}): {state.text}", file=sys.stderr)
    print("tables: " + ", ".join(str(out / name) for name in tables.NAMES))
    return 1 if any(state.failed for state in states.values()) else 0


def _here(jobs: Sequence[Job]) -> Iterator[dict[Job, State]]:
    """One job after another, each yielded when it has ended."""
    for number, job in enumerate(jobs, start=1):
        print(f"job {number} of {len(jobs)}: {job.name}", flush=True)
        status = subprocess.run(job.argv).returncode
        yield {job: State(f"failed, exit status {status}", failed=True) if status else _ended(job)}


def _on_cluster(jobs: Sequence[Job], sweep: SweepConfig) -> Iterator[dict[Job, State]]:
    """All jobs at once; those that have ended well are looked at again, since their episodes may have crashed."""
    if jobs:
        states = slurm.run(jobs, Path(sweep.out), sweep.slurm, sweep.wait)
        yield {job: state if state.text else _ended(job) for job, state in states.items()}


def _ended(job: Job) -> State:
    """Of a job with exit status 0."""
    return State() if job.complete else State("episodes are missing", failed=True)
