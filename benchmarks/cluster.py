"""A sweep's jobs as a SLURM job array, through submitit.

Every job of the array runs the command that would run here. A preempted one, or one whose time is up, is put back into
the queue and goes on from its rows. `submitted.json` remembers which SLURM job runs what, so that the same sweep,
started again, waits for the jobs that are still there and submits the others only.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.jobs import SLURM, Arm, Job, State
from la4vla.types import UserError

if TYPE_CHECKING:
    import submitit
    from submitit.helpers import DelayedSubmission

SUBMITTED = "submitted.json"
POLL_S = 10.0
ENDING_S = 30.0  # an evaluation that is told to end is killed after this; SLURM gives submitit 90 s


class Command:
    """What a job of the array runs. The command is a session of its own, so that SLURM's signals reach this process
    alone, which then decides."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Runs it to its end and returns its exit status."""
        self._process = subprocess.Popen(self._argv, start_new_session=True)
        while (status := self._process.poll()) is None:  # not wait(): a signal's handler could then not wait itself
            time.sleep(0.5)
        return status

    def checkpoint(self) -> DelayedSubmission:
        """Ends the command and says what to run instead, as submitit asks when SLURM takes the machine back."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return DelayedSubmission(Command(self._argv))


def run(
    jobs: Sequence[Job], out: Path, parameters: Mapping[str, Any], wait: bool, cluster: str = SLURM
) -> dict[Job, State]:
    """Submits what does not run yet, waits if it shall, and returns what became of each job.

    cluster: submitit's name of it. Raises UserError where nothing can be submitted.
    """
    handles = submit(jobs, out / SLURM, parameters, cluster)
    if wait:
        _wait(handles)
    return {job: _state(handle) for job, handle in handles.items()}


def submit(
    jobs: Sequence[Job], folder: Path, parameters: Mapping[str, Any], cluster: str
) -> dict[Job, submitit.Job[int]]:
    """The cluster's job of each of ours: the one of before where that has not ended, else one of a new array."""
    submitit = _submitit()
    kinds = {SLURM: submitit.SlurmJob, "local": submitit.LocalJob}
    record = folder / SUBMITTED
    known: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    earlier = {job: kinds[cluster](folder, known[str(job.folder)]) for job in jobs if str(job.folder) in known}
    handles = {job: handle for job, handle in earlier.items() if not handle.done()}
    fresh = [job for job in jobs if job not in handles]
    if fresh:
        executor = _executor(folder, parameters, cluster)
        try:
            submitted = executor.submit_array([Command(job.argv) for job in fresh])
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM refused the jobs ({_line(error)}); correct `slurm` in the sweep's file.") from error
        handles |= dict(zip(fresh, submitted, strict=True))
        known |= {str(job.folder): handles[job].job_id for job in fresh}
        record.write_text(json.dumps(known, indent=1) + "\n")
    for job in jobs:
        print(f"{cluster} job {handles[job].job_id}{' (of before)' if job not in fresh else ''}: {job.name}")
    return {job: handles[job] for job in jobs}


def _executor(folder: Path, parameters: Mapping[str, Any], cluster: str) -> submitit.AutoExecutor:
    if not {"timeout_min", "slurm_time"} & parameters.keys():
        raise UserError("`slurm` has no timeout_min; set the minutes a job may take (submitit's own default is 5).")
    try:
        executor = _submitit().AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
        raise UserError("there is no `srun` here; start the sweep on a login node, or with runner=here.") from error
    try:
        executor.update_parameters(**{"name": "sweep", **parameters})
    except (NameError, AssertionError) as error:  # submitit's words for an unknown key and a wrong type
        raise UserError(f"`slurm`: {_line(error)}") from error
    return executor


def _wait(handles: Mapping[Job, submitit.Job[int]]) -> None:
    """Until every job has ended; a bar of the episodes that are there."""
    arms = [(job, variant) for job in handles for variant in job.variants]
    with tqdm(total=sum(len(job.wanted) for job, _ in arms), desc="sweep", unit="episode") as bar:
        while True:
            ended = sum(handle.done() for handle in handles.values())
            bar.n = sum(len(Arm.read(job, variant).rows) for job, variant in arms)
            bar.set_postfix_str(f"{ended} of {len(handles)} jobs ended")
            if ended == len(handles):
                return
            time.sleep(POLL_S)


def _state(handle: submitit.Job[int]) -> State:
    if not handle.done():
        return State(f"job {handle.job_id} has not ended")
    log = f"{SLURM}/{handle.paths.stderr.name}"
    try:
        status = handle.result()
    except _submitit().core.utils.UncompletedJobError:
        return State(f"job {handle.job_id} gave no exit status, state {handle.state} ({log})", failed=True)
    return State(f"failed, exit status {status} ({log})", failed=True) if status else State()


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise UserError('runner=slurm needs submitit; pip install "la4vla[sweep]".') from error
    return submitit


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
