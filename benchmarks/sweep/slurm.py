"""A sweep's jobs as a SLURM job array, through submitit.

Every job of the array runs the command that would run on this machine. A job that is preempted, or whose time is up, is
queued again and goes on from its rows. `submitted.json` records which SLURM job runs which command. So the same sweep,
started again, waits for the jobs that still run, says what became of those that ended, and submits unfinished ones
again.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.sweep.jobs import SLURM, State, SweepCondition, SweepJob
from la4vla.files import write_atomic
from la4vla.types import UserError

if TYPE_CHECKING:
    import submitit
    from submitit.helpers import DelayedSubmission

SUBMITTED = "submitted.json"
POLL_S = 10.0
ENDING_S = 30.0  # an evaluation that does not end on SIGTERM is killed after this; SLURM gives submitit 90 s


class SlurmCommand:
    """What a job of the array runs.

    The command gets a process session of its own. So SLURM's signals reach this process alone, and it decides what to
    do.
    """

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
        """Ends the command and returns what to run instead; submitit calls this when SLURM takes the machine back."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return DelayedSubmission(SlurmCommand(self._argv))


def run(
    jobs: Sequence[SweepJob], out: Path, parameters: Mapping[str, Any], wait: bool, cluster: str = SLURM
) -> dict[SweepJob, State]:
    """Submits the jobs that do not run yet and returns what became of each.

    wait: return when all jobs have ended. cluster: submitit's name of it.
    Raises UserError where nothing can be submitted.
    """
    earlier = _earlier(jobs, out / SLURM, cluster)
    handles = submit(jobs, earlier, out / SLURM, parameters, cluster)
    if wait:
        _wait(handles)
    states = {job: _state(handle) for job, handle in handles.items()}
    for job, before in earlier.items():
        if handles[job] is not before and not handles[job].done():
            why = _state(before).text or f"job {before.job_id} ended, but episodes are missing"
            states[job] = State(f"{why}; submitted again as {handles[job].job_id}", failed=True)
    return states


def submit(
    jobs: Sequence[SweepJob],
    earlier: Mapping[SweepJob, submitit.Job[int]],
    folder: Path,
    parameters: Mapping[str, Any],
    cluster: str,
) -> dict[SweepJob, submitit.Job[int]]:
    """The cluster's job for each of ours: the earlier one where that has not ended, else one of a new array."""
    submitit = _submitit()
    handles = {job: handle for job, handle in earlier.items() if not handle.done()}
    fresh = [job for job in jobs if job not in handles]
    if fresh:
        executor = _executor(folder, parameters, cluster)
        try:
            submitted = executor.submit_array([SlurmCommand(job.argv) for job in fresh])
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM refused the jobs ({_line(error)}); correct `slurm` in the sweep's file.") from error
        handles |= dict(zip(fresh, submitted, strict=True))
        known = _known(folder) | {str(job.folder): {"job": handles[job].job_id, "argv": job.argv} for job in fresh}
        write_atomic(folder / SUBMITTED, json.dumps(known, indent=1).encode() + b"\n")
    for job in jobs:
        print(f"{cluster} job {handles[job].job_id}{' (submitted earlier)' if job not in fresh else ''}: {job.name}")
    return {job: handles[job] for job in jobs}


def _earlier(jobs: Sequence[SweepJob], folder: Path, cluster: str) -> dict[SweepJob, submitit.Job[int]]:
    """The jobs that an earlier run of this sweep submitted with the same commands.

    Raises UserError where a job with another command still writes into the folder of one.
    """
    submitit = _submitit()
    kind = {SLURM: submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
    known, earlier = _known(folder), {}
    for job in jobs:
        if (before := known.get(str(job.folder))) is None:
            continue
        handle = kind(folder, before["job"])
        if before["argv"] == list(job.argv):
            earlier[job] = handle
        elif not handle.done():
            raise UserError(
                f"{job.folder}: {cluster} job {handle.job_id}, with another command, still writes there; let it end "
                f"or `scancel {handle.job_id}`, then start the sweep again."
            )
    return earlier


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """Folder of one of our jobs -> `job`, the id of the cluster job submitted last for it, and `argv`, its command."""
    record = folder / SUBMITTED
    known = json.loads(record.read_text()) if record.is_file() else {}
    if any(isinstance(before, str) for before in known.values()):
        raise UserError(
            f"{record}: written by an older version; let its jobs end or `scancel` them, and remove the file."
        )
    return known


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


def _wait(handles: Mapping[SweepJob, submitit.Job[int]]) -> None:
    """Returns when every job has ended; shows a bar of the episodes that have ended."""
    conditions = [(job, variant) for job in handles for variant in job.variants]
    with tqdm(total=sum(len(job.wanted) for job, _ in conditions), desc="sweep", unit="episode") as bar:
        while True:
            ended = sum(handle.done() for handle in handles.values())
            bar.n = sum(len(SweepCondition.read(job, variant).rows) for job, variant in conditions)
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
