"""Success rates of a study drawn: a panel a perturbation, a line an arm, all seeds together and each alone."""

from __future__ import annotations

import io
from collections.abc import Mapping

from benchmarks.study.scores import Score
from la4vla.page import style
from la4vla.page.style import INK

BAR, DOT = "#2f81f7", "#d97706"


def rates(scores: Mapping[str, Mapping[str, Score]]) -> bytes:
    """SVG without a background. scores: perturbation -> arm -> score. Bars are 95 % intervals, dots single seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    longest = max(len(arms) for arms in scores.values())
    with rc_context({**style.style(9), "svg.hashsalt": "study"}):
        figure = Figure(figsize=(3.6 * len(scores) + 1, 0.32 * longest + 1), layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(1, len(scores), squeeze=False)[0]
        for axes, (variant, arms) in zip(panels, scores.items(), strict=True):
            axes.patch.set_alpha(0)
            axes.set_title(variant, fontsize=10, color=INK, loc="left")
            axes.set_xlabel("success, percent")
            axes.set_xlim(0, 100)
            axes.grid(color=INK, alpha=0.2, linewidth=0.6, axis="x")
            for place, found in enumerate(arms.values()):
                low, high = 100 * found.micro.low, 100 * found.micro.high
                axes.plot([low, high], [place, place], color=BAR, linewidth=3, alpha=0.4)
                axes.plot([100 * found.micro.value], [place], "|", color=BAR, markersize=12)
                seeds = [100 * rate.value for rate in found.seeds.values()]
                axes.plot(seeds, [place] * len(seeds), ".", color=DOT, markersize=5)
            axes.set_yticks(range(len(arms)), list(arms))
            axes.invert_yaxis()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
