"""How many samples each source gives to each step: exact, without a coin, a pure function of the config.

The unit of mixing is `data.streams` samples of one source (one from each of its streams), or a group of a grounding
model. A step is a whole number of units; error diffusion hands each unit to the source that is farthest behind what its
share, which may move over the stage, gave it so far. A source's position goes on from stage to stage, so a run that
changes its mixture never sees a pass cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from la4vla.config import TrainConfig, mixing_unit
from la4vla.types import UserError


def plan(shares: Sequence[float], units_per_step: int, steps: int, end: Sequence[float] = ()) -> np.ndarray:
    """Units of each source in each step: int64 [steps, sources], every row sums to `units_per_step`.

    shares: positive, any sum. end: those of the last step, 0 or above, any sum, to which the shares move on a straight
    line; empty: they stay. After every unit each source is within (number of sources - 1) units of its exact share so
    far, with two sources within one; ties go to the earlier source.
    """
    due = _due(shares, end, units_per_step, steps) if end else _steady(shares)
    given = [0] * len(shares)
    units = np.zeros((steps, len(shares)), np.int64)
    sources = range(len(shares))
    for unit in range(1, steps * units_per_step + 1):
        exact = due(unit)
        behind = max(sources, key=lambda source: exact[source] - given[source])
        given[behind] += 1
        units[(unit - 1) // units_per_step, behind] += 1
    return units


def _steady(shares: Sequence[float]) -> Callable[[int], list[float]]:
    """Number of units so far -> what of them each source should have, by shares that stay."""
    total = sum(shares)
    exact = [share / total for share in shares]
    return lambda unit: [share * unit for share in exact]


def _due(
    shares: Sequence[float], end: Sequence[float], units_per_step: int, steps: int
) -> Callable[[int], list[float]]:
    """The same by shares that move: step s of n takes ((n - 1 - s) shares + s end) / (n - 1), each of sum 1."""
    first, last = np.array(shares) / sum(shares), np.array(end) / sum(end)
    at = np.linspace(0.0, 1.0, steps)[:, None]
    by_step = units_per_step * ((1 - at) * first + at * last)
    before = np.cumsum(by_step, axis=0) - by_step

    def due(unit: int) -> list[float]:
        step, inside = divmod(unit - 1, units_per_step)
        return (before[step] + by_step[step] * ((inside + 1) / units_per_step)).tolist()

    return due


@dataclass(frozen=True)
class Draw:
    """What one step takes: source -> (number of its first sample, count), in the order of the stage's mixture."""

    stage: str
    stage_step: int
    step: int
    takes: Mapping[str, tuple[int, int]]


class Schedule:
    """The plan of a whole run, stage after stage."""

    def __init__(self, config: TrainConfig) -> None:
        self._unit = mixing_unit(config)
        self._stages = list(config.stages)
        self._units: dict[str, np.ndarray] = {}
        self._before: dict[str, np.ndarray] = {}
        self._mixture = {name: list(stage.mixture) for name, stage in config.stages.items()}
        self._first = {}
        position = dict.fromkeys(config.data.sources, 0)
        step = 0
        for name, stage in config.stages.items():
            end = [stage.mixture_end[source] for source in stage.mixture] if stage.mixture_end else []
            units = plan(list(stage.mixture.values()), stage.global_batch // self._unit, stage.steps, end)
            start = np.array([position[source] for source in stage.mixture])
            self._units[name], self._before[name] = units, start + np.cumsum(units, axis=0) - units
            self._first[name] = step
            step += stage.steps
            for source, count in zip(stage.mixture, units.sum(0), strict=True):
                position[source] += int(count)

    def total(self, stage: str) -> dict[str, int]:
        """Samples each source gives to a stage."""
        return self._samples(stage, self._units[stage].sum(0))

    def draws(self, stage: str, stage_step: int) -> Iterator[Draw]:
        """The steps of the run from step `stage_step` (counted from 0) of `stage` on, over the following stages."""
        if stage not in self._stages:
            raise UserError(f"stage `{stage}` is not in the config; its stages are {', '.join(self._stages)}.")
        for name in self._stages[self._stages.index(stage) :]:
            for number in range(stage_step if name == stage else 0, len(self._units[name])):
                firsts = self._samples(name, self._before[name][number])
                counts = self._samples(name, self._units[name][number])
                takes = {source: (firsts[source], counts[source]) for source in counts if counts[source]}
                yield Draw(name, number, self._first[name] + number, takes)

    def _samples(self, stage: str, units: np.ndarray) -> dict[str, int]:
        return {source: int(count) * self._unit for source, count in zip(self._mixture[stage], units, strict=True)}
