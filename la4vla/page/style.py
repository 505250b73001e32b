"""The style of figures on HTML pages and in Markdown: no background, legible on light and on dark pages."""

from __future__ import annotations

from typing import Any

INK = "#7d8590"  # text and axes; legible on white and on near-black


def style(font_size: float) -> dict[Any, Any]:
    """matplotlib's settings for such a figure; its background must be made transparent as well. font_size: pt."""
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    fixed = {"svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False}
    return {**dict.fromkeys(inked, INK), **fixed, "font.size": font_size}
