"""How figures are drawn that stand on HTML pages and in Markdown: no background, legible on light and dark alike."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#7d8590"  # text and axes; legible on white and on near-black


def style(font_size: float) -> dict[Any, Any]:
    """matplotlib's settings of such a figure; `rendered` takes its background away. font_size: pt."""
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    fixed = {"svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False}
    return {**dict.fromkeys(inked, INK), **fixed, "font.size": font_size}


def rendered(figure: Figure, kind: Literal["svg", "png"] = "svg") -> bytes:
    """The figure as a file of that kind, without background and without a date in it."""
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_alpha(0)
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=150)
    return file.getvalue()
