"""A study's success rates as a figure: a panel for each perturbation, a line for each condition."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.study.scores import ConditionRates
from la4vla.page import style
from la4vla.page.style import INK

BAR, DOT = "#2f81f7", "#d97706"


def rates(scores: Mapping[str, Mapping[str, ConditionRates]]) -> bytes:
    """SVG without a background; bars are 95 % intervals over all seeds, dots single seeds.

    scores: perturbation -> condition -> its rates.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    longest = max(len(conditions) for conditions in scores.values())
    with rc_context({**style.style(9), "svg.hashsalt": "study"}):
        figure = Figure(figsize=(3.6 * len(scores) + 1, 0.32 * longest + 1), layout="constrained")
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for axes, (variant, conditions) in zip(panels, scores.items(), strict=True):
            axes.set_title(variant, fontsize=10, color=INK, loc="left")
            axes.set_xlabel("success, percent")
            axes.set_xlim(0, 100)
            axes.grid(color=INK, alpha=0.2, linewidth=0.6, axis="x")
            for place, score in enumerate(conditions.values()):
                low, high = 100 * score.micro.low, 100 * score.micro.high
                axes.plot([low, high], [place, place], color=BAR, linewidth=3, alpha=0.4)
                axes.plot([100 * score.micro.value], [place], "|", color=BAR, markersize=12)
                seeds = [100 * rate.value for rate in score.seeds.values()]
                axes.plot(seeds, [place] * len(seeds), ".", color=DOT, markersize=5)
            axes.set_yticks(range(len(conditions)), list(conditions))
            axes.invert_yaxis()
        return style.rendered(figure)
