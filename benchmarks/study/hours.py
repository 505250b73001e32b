"""How long a study's jobs took and how long those without a row will take, from the rows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.study.config import StudyConfig
from benchmarks.study.jobs import StudyJob, everything
from benchmarks.study.plan import expand
from benchmarks.study.rows import StudyRows

DEFAULT_MINUTES = 5.0  # of a kind of job that `minutes` in the study's YAML does not name


@dataclass(frozen=True)
class PartHours:
    """The hours of one part. A job that several parts need is counted in the first of them.

    part        its name
    jobs        number of jobs that the part asks for
    done        number of them that have a row
    measured    hours of the counted jobs that have a row
    left        expected hours of the counted jobs that have none
    cores       numbers of cores of the machines that made the rows
    """

    part: str
    jobs: int
    done: int
    measured: float
    left: float
    cores: tuple[int, ...]


def expected_minutes(study: StudyConfig, rows: StudyRows, job: StudyJob, cores: int | None = None) -> float:
    """Minutes that a job will take: the median of this study's rows of the same kind and variation.

    cores: only rows of machines with that many count; None: all do. Without such a row: `minutes` in the study's YAML.
    """
    alike = (study.name, f"{job.kind}.jsonl", job.name.split("/")[:2])
    past = [
        row["seconds"] / 60
        for row in rows.all
        if (row.get("study"), row["file"], row["job"].split("/")[:2]) == alike and cores in (None, row.get("cores"))
    ]
    return statistics.median(past) if past else study.minutes.get(job.kind, DEFAULT_MINUTES)


def by_part(study: StudyConfig, rows: StudyRows) -> list[PartHours]:
    """The hours of every part, in the order of the study's YAML."""
    counted: set[str] = set()
    parts = []
    for name in study.parts:
        asked = expand(study, [name])
        new = [job for job in everything(asked) if job.name not in counted]
        counted |= {job.name for job in new}
        made = rows.newest(new)
        left = sum(expected_minutes(study, rows, job) for job in new if rows.of(job) is None)
        parts.append(
            PartHours(
                part=name,
                jobs=len(asked),
                done=len(rows.newest(asked)),
                measured=sum(row["seconds"] for row in made) / 3600,
                left=left / 60,
                cores=tuple(sorted({row["cores"] for row in made})),
            )
        )
    return parts
