"""The paper's Figures 2 and 5 as SVG that reads on light and dark paper alike.

Needs matplotlib, an extra. The same answers give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from la4vla.page import style
from la4vla.page.style import INK
from la4vla.probe.query import Answers
from la4vla.probe.representation import WORDS, Representation

ENDS = ("#2f81f7", "#d97706")
"""The positive and the negative end of an axis."""

DIRECTION_COLORS = dict(zip(WORDS, ("#2f81f7", "#d97706", "#8957e5", "#e85aad", "#2da44e", "#cf222e"), strict=True))
COLUMNS = 3  # panels beside each other
PATHS = 20  # drawn of each direction; endpoints of all are
BESIDE = {"forward": "left", "left": "forward", "up": "left"}
"""Tested axis -> the other one of the plane that paths are projected on."""


def opposite_commands(answers: Sequence[Answers], axes: Mapping[str, Sequence[float]], axis: str, unit: str) -> bytes:
    """Predicted paths for the two ends of one axis, a panel a condition, on a plane that contains the axis (Figure 2).

    axes: of the case list. axis: `up/down`. Thin: paths. Dots: endpoints. Arrows: mean start-to-end vectors.
    """
    figure, panels = _figure(len(answers), 3.4, 2.8, sharex=True, sharey=True)
    positive, negative = axis.split("/")
    beside = BESIDE[positive]
    plane_23 = np.array([axes[beside], axes[positive]]) * [[-1 if beside == "left" else 1], [1]]
    for panel, answer in zip(panels, answers, strict=True):
        panel.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        for word, color in zip((positive, negative), ENDS, strict=True):
            chosen = [path for case, path in zip(answer.cases, answer.paths, strict=True) if case.direction == word]
            if not chosen:
                continue
            flat = [np.vstack([np.zeros(2), path @ plane_23.T]) for path in chosen]
            for path_T2 in flat[:PATHS]:
                panel.plot(*path_T2.T, color=color, alpha=0.45, linewidth=0.9)
            ends_N2 = np.array([path_T2[-1] for path_T2 in flat])
            panel.scatter(*ends_N2.T, color=color, s=9, linewidths=0, label=word)
            mean_2 = ends_N2.mean(axis=0)
            panel.annotate(
                "", xy=mean_2, xytext=(0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2}
            )
        panel.set_title(answer.condition.name, fontsize=9, color=INK, loc="left")
        panel.set_xlabel("right" if beside == "left" else beside)
        panel.set_ylabel(f"{positive} ({unit})")
        panel.label_outer()
    panels[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure)


def representation(points: Representation) -> bytes:
    """t-SNE of what enters the head, coloured by direction and by the state (Figure 5, right): by its hand position, or
    by its number where the state does not say x, y and z."""
    figure, (by_direction, by_state) = _figure(2, 5.0, 4.2)
    for number, word in enumerate(WORDS):
        rows = points.direction_M == number
        by_direction.scatter(*points.map_M2[rows].T, s=7, linewidths=0, color=DIRECTION_COLORS[word], label=word)
    by_direction.legend(
        frameon=False, fontsize=8, labelcolor=INK, markerscale=2, ncols=3, loc="lower left", bbox_to_anchor=(0, -0.17)
    )
    placed = points.position_M3.shape[1] == 3
    low_3, high_3 = points.position_M3.min(axis=0), points.position_M3.max(axis=0)
    colors = 0.1 + 0.8 * (points.position_M3 - low_3) / np.where(high_3 > low_3, high_3 - low_3, 1.0)
    by_state.scatter(*points.map_M2.T, s=7, linewidths=0, c=colors if placed else points.state_M)
    for panel, what, value in (
        (by_direction, "direction", points.by_direction),
        (by_state, f"state ({'hand position as red, green, blue' if placed else 'its number'})", points.by_state),
    ):
        panel.set_title(f"by {what}: silhouette {value:.2f}", fontsize=9, color=INK, loc="left")
        panel.set_xticks([])
        panel.set_yticks([])
    return _svg(figure)


def _figure(panels: int, width: float, height: float, **shared: Any) -> tuple[Any, list[Any]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_style()):
        columns = min(panels, COLUMNS)
        rows = -(-panels // columns)
        figure = Figure(figsize=(width * columns + 0.6, height * rows), layout="constrained")
        figure.patch.set_alpha(0)
        axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
        for spare in axes[panels:]:
            spare.remove()
        axes = axes[:panels]
        for panel in axes:
            panel.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Any) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_style()):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _style() -> dict[Any, Any]:
    return {**style.style(8), "svg.hashsalt": "la4vla", "legend.labelcolor": INK}
