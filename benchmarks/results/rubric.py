"""Partial credit and keywords, after VLM2VLA's appendices D.1 and D.3: how far an episode came, and whether what was
planned names what the task needs. Files of benchmarks/rubrics/ say both, by task.

A ladder is a list of milestones, each worth a point; the furthest one that was reached gives its points and those
before it. `plan` is a point of its own for a plan with every keyword, `plan+contact` a milestone that counts with such
a plan alone, `success` the protocol's own. Policies that write a plan have another ladder than those that write none.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.results import stats
from benchmarks.results.results import Row
from benchmarks.results.stats import Rate
from la4vla.sim.milestones import MILESTONES
from la4vla.types import UserError

FOLDER = Path(__file__).parents[1] / "rubrics"
USUAL = "simulators"
PLAN, SUCCESS = "plan", "success"
PLANNED = ("subtasks", "plan")
"""Questions whose answers are a plan."""


@dataclass(frozen=True)
class TaskRubric:
    """What a task needs.

    keywords      that a plan must name, each by itself or by a synonym; empty: no plan is judged
    without_plan  ladder of policies that write no plan
    with_plan     ladder of those that do
    """

    keywords: tuple[str, ...]
    without_plan: tuple[str, ...]
    with_plan: tuple[str, ...]


@dataclass(frozen=True)
class Credit:
    """What an episode earned.

    points   of `most`
    planned  whether what was written as a plan names every keyword; None where no plan was written or none is judged
    """

    points: int
    most: int
    planned: bool | None


@dataclass(frozen=True)
class TaskCredit:
    """The episodes of a task, or of all of them.

    n           episodes that ended
    credit      mean share of the points
    success     rate
    planned     rate of plans with every keyword, of the episodes whose plan was judged
    milestones  name -> rate of episodes that reached it
    """

    n: int
    credit: float
    success: Rate
    planned: Rate
    milestones: Mapping[str, Rate]


@dataclass(frozen=True)
class Rubric:
    """name: of its file. tasks: patterns of task names, the first that fits counts."""

    name: str
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tasks: Mapping[str, TaskRubric] = field(default_factory=dict)

    @staticmethod
    def load(name: str = USUAL) -> Rubric:
        """name: of benchmarks/rubrics/, or a YAML file. Raises UserError for a file that is none."""
        path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(item.stem for item in FOLDER.glob("*.yaml")))
            raise UserError(f"no rubric `{name}`; use one of {known}, or a YAML file.")
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        try:
            synonyms = {word: tuple(others) for word, others in raw.get("synonyms", {}).items()}
            tasks = {task: _task(path, task, values) for task, values in raw["tasks"].items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a rubric ({type(error).__name__}: {error}); see benchmarks/rubrics/."
            ) from error
        return Rubric(path.stem, synonyms, tasks)

    def of(self, task: str) -> TaskRubric | None:
        return next((one for pattern, one in self.tasks.items() if fnmatch.fnmatchcase(task, pattern)), None)

    def names(self, task: str, text: str) -> bool:
        """Whether a text names every keyword of the task, upper and lower case alike. Words of the Latin alphabet are
        whole ones, with or without a plural's s."""
        wanted = self.of(task)
        assert wanted is not None, f"{self.name} has no task {task}"
        return all(
            any(_pattern(word).search(text) for word in (keyword, *self.synonyms.get(keyword, ())))
            for keyword in wanted.keywords
        )

    def credit(self, row: Row) -> Credit | None:
        """None for a crash and for a task that the rubric does not know."""
        wanted = self.of(row.task)
        if wanted is None or row.success is None:
            return None
        plan = plan_of(row)
        planned = self.names(row.task, plan) if plan and wanted.keywords else None
        ladder = wanted.with_plan if plan else wanted.without_plan
        reached = {*row.milestones, *([SUCCESS] if row.success else []), *([PLAN] if planned else [])}
        steps = [set(step.split("+")) for step in ladder if step != PLAN]
        furthest = max((number for number, step in enumerate(steps, start=1) if step <= reached), default=0)
        return Credit(furthest + (PLAN in ladder and planned is True), len(ladder), planned)

    def summarise(self, rows: Iterable[Row]) -> dict[str, TaskCredit]:
        """Task -> what its episodes earned, and `all` last. Empty for rows that say no milestone of any step."""
        judged = [(row, credit) for row in rows if (credit := self.credit(row)) is not None]
        if not any(row.milestones for row, _ in judged):
            return {}
        tasks = dict.fromkeys(row.task for row, _ in judged)
        found = {task: _summary([pair for pair in judged if pair[0].task == task]) for task in tasks}
        return {**found, "all": _summary(judged)}


def plan_of(row: Row) -> str:
    """What the policy wrote as its sub-tasks and plans and went by; empty for one that writes none."""
    return "\n".join(text["text"] for text in row.texts if text["question"] in PLANNED and not text["problem"])


def table(summaries: Mapping[str, Mapping[str, TaskCredit]]) -> str:
    """For a terminal. summaries: condition -> task -> credit."""
    width = max(len(task) for tasks in summaries.values() for task in tasks) + 4
    head = "".join(f"{name:>9}" for name in MILESTONES)
    lines = [f"{'':{width}}{'n':>5}{'credit':>8}{'success':>9}{'plan':>7}{head}"]
    for condition, tasks in summaries.items():
        lines.append(condition)
        for task, one in tasks.items():
            milestones = "".join(f"{_percent(one.milestones[name]):>9}" for name in MILESTONES)
            lines.append(
                f"  {task:{width - 2}}{one.n:5d}{100 * one.credit:7.0f}%{_percent(one.success):>9}"
                f"{_percent(one.planned):>7}{milestones}"
            )
    return "\n".join(lines)


def _summary(judged: Sequence[tuple[Row, Credit]]) -> TaskCredit:
    return TaskCredit(
        n=len(judged),
        credit=fmean(credit.points / credit.most for _, credit in judged),
        success=stats.rate([bool(row.success) for row, _ in judged]),
        planned=stats.rate([credit.planned for _, credit in judged if credit.planned is not None]),
        milestones={name: stats.rate([name in row.milestones for row, _ in judged]) for name in MILESTONES},
    )


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.0f}%" if rate.n else "-"


def _task(path: Path, task: str, values: Mapping[str, Any]) -> TaskRubric:
    ladders = {name: tuple(values[name]) for name in ("without_plan", "with_plan")}
    known = {PLAN, SUCCESS, *MILESTONES}
    for name, ladder in ladders.items():
        wrong = {part for step in ladder for part in step.split("+")} - known
        if wrong or (name == "without_plan" and any(PLAN in step for step in ladder)):
            raise UserError(
                f"{path}: {task}.{name} names {', '.join(sorted(wrong)) or PLAN}; its steps are made of "
                f"{', '.join(sorted(known))}, of plan only in with_plan."
            )
    keywords = tuple(values.get("keywords", ()))
    if not keywords and any(PLAN in step for step in ladders["with_plan"]):
        raise UserError(f"{path}: {task}.with_plan counts the plan, and the task has no keywords; give it some.")
    return TaskRubric(keywords, ladders["without_plan"], ladders["with_plan"])


def _pattern(word: str) -> re.Pattern[str]:
    whole = word.isascii()
    return re.compile(rf"\b{re.escape(word)}s?\b" if whole else re.escape(word), re.IGNORECASE)
