"""Success by severity: a policy under perturbations against the same policy clean, as numbers and as curves.

A difference is over the episodes that ended under both conditions; the clean rate is over all clean episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.perturb.perturb import CLEAN, KNOWN, SEVERITIES, WORDINGS, Variant
from benchmarks.results import compare, stats
from benchmarks.results.results import Row
from benchmarks.results.stats import Pairs, Rate
from la4vla.page import style
from la4vla.page.style import INK
from la4vla.types import UserError

COLOURS = ("#2f81f7", "#d97706", "#2da44e", "#8957e5", "#cf222e")
COLUMNS = 3  # panels a row


@dataclass(frozen=True)
class CurveCondition:
    """A policy under one variant.

    name        of the result folder, as the report shows it
    policy      identity of the weights
    variant     clean, or a perturbation and its severity
    rows        its episodes
    """

    name: str
    policy: str
    variant: Variant
    rows: Sequence[Row]


@dataclass(frozen=True)
class Point:
    """A policy at one severity.

    variant     the perturbation and its severity
    pairs       A is the policy clean, B the policy perturbed
    """

    variant: Variant
    pairs: Pairs

    @property
    def rate(self) -> Rate:
        solved = self.pairs.both + self.pairs.only_b
        return Rate(solved, self.pairs.n, self.pairs.rate_b, *stats.wilson(solved, self.pairs.n))

    @property
    def change(self) -> str:
        """Perturbed minus clean with its paired interval, in points."""
        return compare.difference(self.pairs)


@dataclass(frozen=True)
class Series:
    """One policy under one perturbation.

    policy          its name in the report
    perturbation    a name of KNOWN
    clean           the rate over all its clean episodes
    points          one a severity, in ascending order
    """

    policy: str
    perturbation: str
    clean: Rate
    points: Sequence[Point]


def series(conditions: Sequence[CurveCondition]) -> list[Series]:
    """The curves of one protocol's conditions, by perturbation and policy.

    A policy's largest clean condition is its reference. A condition whose policy has none, or that shares no episode
    with it, is on no curve.
    """
    curves = []
    clean = {
        condition.policy: condition
        for condition in sorted(conditions, key=lambda condition: len(condition.rows))
        if condition.variant == CLEAN
    }
    for name in KNOWN:
        for policy, reference in clean.items():
            mine = [
                condition for condition in conditions if (condition.policy, condition.variant.name) == (policy, name)
            ]
            paired = [Point(condition.variant, compare.pair(reference.rows, condition.rows)) for condition in mine]
            points = sorted((point for point in paired if point.pairs.n), key=lambda point: point.variant.severity)
            if points:
                rate = stats.rate([bool(row.success) for row in reference.rows if row.success is not None])
                curves.append(Series(reference.name, name, rate, points))
    return curves


def svg(curves: Sequence[Series]) -> bytes:
    """One panel a perturbation, one line a policy, Wilson intervals as bars; without a background."""
    return _drawn(curves, "svg")


def write(curves: Sequence[Series], path: Path) -> None:
    """The same as a file that ends in .svg or .png. Raises UserError for another ending, or without any curve."""
    kinds: dict[str, Literal["svg", "png"]] = {".svg": "svg", ".png": "png"}
    if path.suffix not in kinds:
        raise UserError(f"{path}: curves are written as .svg or .png; change the ending.")
    if not curves:
        raise UserError(f"{path}: there is no perturbed evaluation here to draw; run one with --perturb.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_drawn(curves, kinds[path.suffix]))


def _drawn(curves: Sequence[Series], kind: Literal["svg", "png"]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.perturbation for curve in curves))
    policies = list(dict.fromkeys(curve.policy for curve in curves))
    rows = -(-len(names) // COLUMNS)
    with rc_context(style.style(9)):
        figure = Figure(figsize=(11, 2.7 * rows), layout="constrained")
        panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
        for name, axes in zip(names, panels, strict=False):
            axes.set_title(name, fontsize=10, color=INK, loc="left")
            named = KNOWN[name].levels if name in WORDINGS else tuple(map(str, SEVERITIES))
            axes.set_xticks(range(len(named) + 1), ("clean", *named))
            axes.set(xlim=(-0.3, 5.3), ylim=(-4, 104), ylabel="success, %")
            axes.grid(color=INK, alpha=0.2, linewidth=0.6)
            for curve in (curve for curve in curves if curve.perturbation == name):
                number = policies.index(curve.policy)
                _line(axes, curve, COLOURS[number % len(COLOURS)], 0.06 * number)
            if len(policies) > 1:
                axes.legend(frameon=False, fontsize=8)
        for axes in panels:
            axes.set_visible(False)
        return style.rendered(figure, kind)


def _line(axes: Any, curve: Series, colour: str, shift: float) -> None:
    """Rates in percent over severity; `shift` keeps the bars of several policies apart."""
    rates = [curve.clean, *(point.rate for point in curve.points)]
    x = [shift + severity for severity in (0, *(point.variant.severity for point in curve.points))]
    y = [100 * rate.value for rate in rates]
    bars = [[100 * (rate.value - rate.low) for rate in rates], [100 * (rate.high - rate.value) for rate in rates]]
    axes.errorbar(x, y, yerr=bars, color=colour, linewidth=1.4, marker="o", markersize=4, capsize=2, label=curve.policy)
