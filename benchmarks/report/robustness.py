"""Success by severity: a policy's perturbed arms against its own clean arm, as numbers and as curves with intervals.

Every difference is of the episodes that ended in both arms; the clean rate is of all episodes of the clean arm.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.perturb.perturb import CLEAN, PERTURBATIONS, SEVERITIES, Variant
from benchmarks.results import compare, stats
from benchmarks.results.results import Row
from benchmarks.results.stats import Pairs, Rate
from la4vla.page import style
from la4vla.page.style import INK
from la4vla.types import UserError

COLOURS = ("#2f81f7", "#d97706", "#2da44e", "#8957e5", "#cf222e")
COLUMNS = 3  # panels a row


@dataclass(frozen=True)
class Arm:
    """One evaluation. name: of its folder. policy: identity of the weights."""

    name: str
    policy: str
    variant: Variant
    rows: Sequence[Row]


@dataclass(frozen=True)
class Point:
    """One severity; pairs: A the clean arm, B the perturbed one."""

    variant: Variant
    pairs: Pairs

    @property
    def rate(self) -> Rate:
        solved = self.pairs.both + self.pairs.only_b
        return Rate(solved, self.pairs.n, self.pairs.rate_b, *stats.wilson(solved, self.pairs.n))

    @property
    def change(self) -> str:
        """Minus clean, with its paired interval, in points."""
        return compare.difference(self.pairs)


@dataclass(frozen=True)
class Series:
    """One policy under one perturbation. clean: its clean arm as a whole; points by severity."""

    policy: str
    perturbation: str
    clean: Rate
    points: Sequence[Point]


def series(arms: Sequence[Arm]) -> list[Series]:
    """The curves of one protocol's arms, by perturbation and policy; a policy's largest clean arm is its reference. An
    arm without one, or without a common episode, is on no curve."""
    found = []
    clean = {arm.policy: arm for arm in sorted(arms, key=lambda arm: len(arm.rows)) if arm.variant == CLEAN}
    for name in PERTURBATIONS:
        for policy, reference in clean.items():
            mine = [arm for arm in arms if (arm.policy, arm.variant.name) == (policy, name)]
            paired = [Point(arm.variant, compare.pair(reference.rows, arm.rows)) for arm in mine]
            points = sorted((point for point in paired if point.pairs.n), key=lambda point: point.variant.severity)
            if points:
                rate = stats.rate([bool(row.success) for row in reference.rows if row.success is not None])
                found.append(Series(reference.name, name, rate, points))
    return found


def svg(curves: Sequence[Series]) -> bytes:
    """One panel a perturbation, one line a policy, Wilson intervals as bars; without a background."""
    buffer = io.BytesIO()
    _draw(curves, buffer, "svg")
    return buffer.getvalue()


def write(curves: Sequence[Series], path: Path) -> None:
    """The same as a file, by its ending .svg or .png. Raises UserError for another one, or where there is no curve."""
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"{path}: curves are written as .svg or .png; change the ending.")
    if not curves:
        raise UserError(f"{path}: there is no perturbed evaluation here to draw; run one with --perturb.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        _draw(curves, file, path.suffix[1:])


def _draw(curves: Sequence[Series], file: Any, kind: str) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.perturbation for curve in curves))
    policies = list(dict.fromkeys(curve.policy for curve in curves))
    rows = -(-len(names) // COLUMNS)
    with rc_context(style.style(9)):
        figure = Figure(figsize=(11, 2.7 * rows), layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
        for name, axes in zip(names, panels, strict=False):
            axes.patch.set_alpha(0)
            axes.set_title(name, fontsize=10, color=INK, loc="left")
            axes.set_xticks((0, *SEVERITIES), ("clean", *map(str, SEVERITIES)))
            axes.set(xlim=(-0.3, 5.3), ylim=(-4, 104), ylabel="success, %")
            axes.grid(color=INK, alpha=0.2, linewidth=0.6)
            for curve in (curve for curve in curves if curve.perturbation == name):
                number = policies.index(curve.policy)
                _line(axes, curve, COLOURS[number % len(COLOURS)], 0.06 * number)
            if len(policies) > 1:
                axes.legend(frameon=False, fontsize=8)
        for axes in panels:
            axes.set_visible(False)
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=150)


def _line(axes: Any, curve: Series, colour: str, shift: float) -> None:
    """Rates in percent over severity; `shift` keeps the bars of several policies apart."""
    rates = [curve.clean, *(point.rate for point in curve.points)]
    x = [shift + severity for severity in (0, *(point.variant.severity for point in curve.points))]
    y = [100 * rate.value for rate in rates]
    bars = [[100 * (rate.value - rate.low) for rate in rates], [100 * (rate.high - rate.value) for rate in rates]]
    axes.errorbar(x, y, yerr=bars, color=colour, linewidth=1.4, marker="o", markersize=4, capsize=2, label=curve.policy)
