"""Rates over seeds, and paired differences of two conditions on the same episodes, from the rows of evaluations.

The unit is one episode of one seed's policy. Two conditions are paired by (seed, task, episode): the same initial state
and flow noise, and seeds of the same number in pretraining and finetuning. A difference has two p values. McNemar's
exact test takes episodes as independent. The sign-flip test takes only tasks as independent, so it asks whether the
difference would hold on other tasks. Neither says what other trainings would give; the rates by seed show that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.results import stats
from benchmarks.results.stats import Pairs, Rate
from benchmarks.study.rows import StudyRow
from la4vla.types import UserError

Episode = tuple[int, str, int]
"""Seed, task, and place in the task's string of outcomes."""


@dataclass(frozen=True)
class ConditionRates:
    """A condition's rates.

    groups      group -> rate over all seeds
    macro       mean of the groups
    micro       over all episodes of all seeds
    seeds       seed -> rate over its episodes
    """

    groups: Mapping[str, Rate]
    macro: Rate
    micro: Rate
    seeds: Mapping[int, Rate]


@dataclass(frozen=True)
class Difference:
    """What sets a condition apart from a reference, on the same episodes.

    pairs       outcomes; A is the reference, B the condition
    tasks       task -> difference of the rates
    seeds       seed -> difference of the rates
    """

    pairs: Pairs
    tasks: Mapping[str, float]
    seeds: Mapping[int, float]

    @property
    def p_tasks(self) -> float:
        return stats.sign_flip(list(self.tasks.values()))


def episodes(rows: Iterable[StudyRow]) -> dict[Episode, bool]:
    """The outcome of every episode of the rows. Raises UserError for rows of different protocols."""
    rows = list(rows)
    if len({row["protocol_hash"] for row in rows}) > 1:
        raise UserError(f"rows of {rows[0]['job']} and others are of different protocols; evaluate them with one.")
    return {
        (row["seed"], task, number): end == "1"
        for row in rows
        for task, ends in row["successes"].items()
        for number, end in enumerate(ends)
    }


def score(rows: Iterable[StudyRow], groups: Mapping[str, Sequence[str]]) -> ConditionRates:
    """The rates of one condition's rows. groups: the protocol's, group -> tasks."""
    ended = episodes(rows)

    def rate(keys: Iterable[Episode]) -> Rate:
        return stats.rate([ended[key] for key in keys])

    by_group = {group: rate(key for key in ended if key[1] in tasks) for group, tasks in groups.items()}
    seeds = sorted({seed for seed, _, _ in ended})
    return ConditionRates(
        by_group,
        stats.macro(list(by_group.values())),
        rate(ended),
        {seed: rate(key for key in ended if key[0] == seed) for seed in seeds},
    )


def difference(reference: Iterable[StudyRow], condition: Iterable[StudyRow]) -> Difference | None:
    """Over the episodes that both have; None where they share none."""
    reference, condition = list(reference), list(condition)
    episodes([*reference, *condition])
    before, after = episodes(reference), episodes(condition)
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
