"""Runs the jobs of a sweep, here or on a SLURM cluster, and writes its tables.

    la4vla eval sweep configs/sweep/quickstart.yaml

A job whose episodes have all ended is not started again, so an interrupted sweep goes on where it stopped. On this
machine the tables are written whenever a job has ended. They mark what did not run and what failed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.sweep import slurm, tables
from benchmarks.sweep.jobs import SLURM, State, SweepConfig, SweepJob, expand
from la4vla import config


def run(path: Path, overrides: Sequence[str]) -> int:
    """Runs the sweep that a YAML describes and writes its tables; 1 where a job failed, else 0."""
    sweep: SweepConfig = config.load(path, overrides, schema=SweepConfig)
    jobs, out = expand(sweep), Path(sweep.out)
    waiting = [job for job in jobs if not job.complete]
    print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them complete", flush=True)
    states = {job: State("not run yet" if job in waiting else "") for job in jobs}
    tables.write(tables.build_tables(jobs, states, sweep.baseline), out)
    for ended in _on_cluster(waiting, sweep) if sweep.runner == SLURM else _here(waiting):
        states |= ended
        tables.write(tables.build_tables(jobs, states, sweep.baseline), out)
    for job, state in states.items():
        if state.failed:
            print(f"{job.name} ({job.folder}): {state.text}", file=sys.stderr)
    print("tables: " + ", ".join(str(out / name) for name in tables.NAMES))
    return 1 if any(state.failed for state in states.values()) else 0


def _here(jobs: Sequence[SweepJob]) -> Iterator[dict[SweepJob, State]]:
    """One job after another, each yielded when it has ended."""
    for number, job in enumerate(jobs, start=1):
        print(f"job {number} of {len(jobs)}: {job.name}", flush=True)
        status = subprocess.run(job.argv).returncode
        yield {job: State(f"failed, exit status {status}", failed=True) if status else _ended(job)}


def _on_cluster(jobs: Sequence[SweepJob], sweep: SweepConfig) -> Iterator[dict[SweepJob, State]]:
    """All jobs at once. A job with exit status 0 is checked for missing episodes, since episodes may have crashed."""
    if jobs:
        states = slurm.run(jobs, Path(sweep.out), sweep.slurm, sweep.wait)
        yield {job: state if state.text else _ended(job) for job, state in states.items()}


def _ended(job: SweepJob) -> State:
    """The state of a job that ended with exit status 0."""
    return State() if job.complete else State("episodes are missing", failed=True)
