"""The corruption tests as a picture: an area and its interval for every scorer and way of spoiling a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from la4vla.page import style
from la4vla.page.style import INK

COLOURS = ("#2f81f7", "#d97706", "#16a34a", "#db2777", "#7c3aed", "#0891b2")
SPREAD = 0.6  # of the room between two tests that the scorers of one take


def draw(scorers: Mapping[str, Any], corruptions: Sequence[str]) -> bytes:
    """SVG. scorers: label -> what grounding.json holds of it. A test without a deed has no mark."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**style.style(9), "svg.hashsalt": "grounding"}):
        drawn = Figure(figsize=(8.5, 3.4), layout="constrained")
        axes = drawn.subplots()
        axes.axhline(0.5, color=INK, linewidth=0.8, linestyle="--")
        axes.grid(color=INK, alpha=0.2, linewidth=0.6, axis="y")
        for number, (label, one) in enumerate(scorers.items()):
            colour = COLOURS[number % len(COLOURS)]
            shift = SPREAD * ((number + 0.5) / len(scorers) - 0.5)
            areas = [(place + shift, one["corruptions"][name]) for place, name in enumerate(corruptions)]
            marks = [(at, found) for at, found in areas if found is not None]
            axes.plot([at for at, _ in marks], [found["value"] for _, found in marks], "o", color=colour, label=label)
            for at, found in marks:
                if found["low"] is not None:
                    axes.plot([at, at], [found["low"], found["high"]], color=colour, linewidth=2, alpha=0.6)
        axes.set_xticks(range(len(corruptions)), [name.replace("_", " ") for name in corruptions])
        axes.set_ylabel("AUC, true pairs above spoiled ones")
        axes.set_ylim(-0.02, 1.02)
        axes.legend(frameon=False, labelcolor=INK, ncols=len(scorers), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return style.rendered(drawn)
