"""Rows of evaluations as numbers: rates over seeds, and paired differences of two arms on the same episodes. Pure.

An episode of one seed's policy is a unit. Two arms are paired by (seed, task, episode): the same initial state and flow
noise, and pretraining and finetuning seeds of the same number. Two p values go with a difference: McNemar's exact one
over episodes, which takes them as independent, and a sign-flip one over tasks, which does not and so asks whether the
difference would hold on other tasks. Neither says what other trainings would give: for that there are the seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.results import stats
from benchmarks.results.stats import Pairs, Rate
from benchmarks.study.rows import Row
from la4vla.types import UserError

Episode = tuple[int, str, int]
"""seed, task, place in the string of outcomes"""


@dataclass(frozen=True)
class Score:
    """An arm's rates, all its seeds together. seeds: seed -> rate."""

    groups: Mapping[str, Rate]
    macro: Rate
    micro: Rate
    seeds: Mapping[int, Rate]


@dataclass(frozen=True)
class Difference:
    """Of an arm from a reference, in rates; b is the arm. tasks, seeds: differences of their means."""

    pairs: Pairs
    tasks: Mapping[str, float]
    seeds: Mapping[int, float]

    @property
    def p_tasks(self) -> float:
        return stats.sign_flip(list(self.tasks.values()))


def episodes(rows: Iterable[Row]) -> dict[Episode, bool]:
    """Raises UserError where rows of different protocols meet."""
    rows = list(rows)
    if len({row["protocol_hash"] for row in rows}) > 1:
        raise UserError(f"rows of {rows[0]['job']} and others are of different protocols; evaluate them with one.")
    return {
        (row["seed"], task, number): end == "1"
        for row in rows
        for task, ends in row["successes"].items()
        for number, end in enumerate(ends)
    }


def score(rows: Iterable[Row], groups: Mapping[str, Sequence[str]]) -> Score:
    ended = episodes(rows)

    def rate(keep: Iterable[Episode]) -> Rate:
        return stats.rate([ended[key] for key in keep])

    by_group = {group: rate(key for key in ended if key[1] in tasks) for group, tasks in groups.items()}
    seeds = sorted({seed for seed, _, _ in ended})
    return Score(
        by_group,
        stats.macro(list(by_group.values())),
        rate(ended),
        {seed: rate(key for key in ended if key[0] == seed) for seed in seeds},
    )


def difference(reference: Iterable[Row], arm: Iterable[Row]) -> Difference | None:
    """Over the episodes that both have; None without any."""
    reference, arm = list(reference), list(arm)
    episodes([*reference, *arm])
    before, after = episodes(reference), episodes(arm)
    both = [key for key in before if key in after]
    if not both:
        return None

    def mean(place: int, name: int | str) -> float:
        return fmean(after[key] - before[key] for key in both if key[place] == name)

    return Difference(
        stats.pairs((before[key], after[key]) for key in both),
        {task: mean(1, task) for task in dict.fromkeys(key[1] for key in both)},
        {seed: mean(0, seed) for seed in sorted({key[0] for key in both})},
    )
