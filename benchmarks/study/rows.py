"""The rows of a study: one JSON object for each job, appended to `<kind>.jsonl`, small enough to be committed.

A row names its job (`job`) and the job's digest (`of`); of several rows of a digest the newest counts. So rows of other
days and machines add up, and a job that has its row is not run again.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import la4vla
from benchmarks.study.config import StudyConfig
from benchmarks.study.jobs import StudyJob
from la4vla.types import UserError

StudyRow = dict[str, Any]
PACKAGES = ("torch", "transformers", "mujoco", "metaworld")


class StudyRows:
    """All rows of a folder, of every study."""

    def __init__(self, folder: Path) -> None:
        """Reads every `*.jsonl` in the folder. Raises UserError for a line that is not a row."""
        self.folder = folder
        self.all: list[StudyRow] = []
        for path in sorted(folder.glob("*.jsonl")):
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                try:
                    self.all.append({**json.loads(line), "file": path.name})
                except (json.JSONDecodeError, TypeError) as error:
                    raise UserError(f"{path}:{number}: not a row ({error}); remove that line.") from error

    def of(self, job: StudyJob) -> StudyRow | None:
        """The newest row with this job's name and digest, or None."""
        return next((row for row in reversed(self.all) if row["of"] == job.of and row["job"] == job.name), None)

    def newest(self, jobs: Sequence[StudyJob]) -> list[StudyRow]:
        """The newest row of every job that has one, in the order of the jobs."""
        rows = [self.of(job) for job in jobs]
        return [row for row in rows if row is not None]

    def append(
        self, job: StudyJob, study: StudyConfig, began: StudyRow, seconds: float, measured: StudyRow
    ) -> StudyRow:
        """Writes and returns the row of a job that has just been made. began: circumstances when it did. seconds: all
        that it took, restarts included."""
        row = {"study": study.name, "job": job.name, "of": job.of, **began, "seconds": round(seconds)}
        row |= {**job.about, **measured}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{job.kind}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.all.append({**row, "file": path.name})
        return self.all[-1]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def circumstances() -> StudyRow:
    """Date, code, versions and cores of this moment, as a row says them."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    git = subprocess.run(command, capture_output=True, text=True)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "git": git.stdout.strip() if git.returncode == 0 else "unknown",
        "versions": {"python": platform.python_version(), "la4vla": la4vla.__version__, **versions},
        "cores": cores(),
    }
