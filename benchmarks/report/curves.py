"""Training curves of a run's `metrics.jsonl`, drawn as SVG that is legible on light and dark pages alike."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la4vla.page import style
from la4vla.page.style import INK
from la4vla.types import UserError

METRICS = "metrics.jsonl"
LINES = {
    "loss": "#7d8590",
    "loss/la": "#d97706",
    "loss/la_leaky": "#cf222e",
    "loss/vla": "#2f81f7",
    "lr": "#8957e5",
    "grad_norm": "#2da44e",
}
PANELS = (
    ("loss", ("loss", "loss/la", "loss/la_leaky", "loss/vla"), True),
    ("learning rate", ("lr",), False),
    ("gradient norm", ("grad_norm",), True),
)
"""Title, keys of a record, logarithmic axis."""


@dataclass(frozen=True)
class Curves:
    """One run's log.

    records     the lines of metrics.jsonl in the order of steps; a number that was not finite is None
    """

    records: Sequence[Mapping[str, Any]]

    @property
    def steps(self) -> int:
        return self.records[-1]["step"] if self.records else 0

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(record["stage"] for record in self.records))

    def points(self, key: str) -> tuple[list[int], list[float]]:
        """The steps that logged a value of `key`, and the values."""
        pairs = [(record["step"], record[key]) for record in self.records if record.get(key) is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def last(self, key: str, of: int = 5) -> float:
        """Mean of the last `of` values of `key`; NaN without any."""
        values = self.points(key)[1][-of:]
        return statistics.fmean(values) if values else math.nan

    def median(self, key: str) -> float:
        values = self.points(key)[1]
        return statistics.median(values) if values else math.nan


def read(run: Path) -> Curves:
    """A training run's curves. A last line without its newline is still being written and is left out.

    Raises UserError for a line that is not JSON."""
    lines = (run / METRICS).read_text().split("\n")[:-1]
    try:
        return Curves([json.loads(line) for line in lines if line])
    except json.JSONDecodeError as error:
        raise UserError(f"{run / METRICS}: not one JSON object a line ({error}); remove the broken line.") from error


def svg(curves: Curves) -> bytes:
    """The three panels as one SVG document without a background."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style.style(9)):
        figure = Figure(figsize=(11, 2.9), layout="constrained")
        for axes, (title, keys, logarithmic) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            axes.set_title(title, fontsize=10, color=INK, loc="left")
            axes.set_xlabel("step")
            axes.grid(color=INK, alpha=0.2, linewidth=0.6)
            for key in keys:
                steps, values = curves.points(key)
                if values:
                    axes.plot(steps, values, color=LINES[key], linewidth=1.4, label=key)
            if logarithmic and axes.lines:
                axes.set_yscale("log")
            if len(axes.lines) > 1:
                axes.legend(frameon=False, fontsize=8)
            for boundary in _stage_starts(curves):
                axes.axvline(boundary, color=INK, linewidth=0.8, linestyle=":")
        return style.rendered(figure)


def _stage_starts(curves: Curves) -> list[int]:
    """The first logged step of every stage after the first one."""
    pairs = zip(curves.records, curves.records[1:], strict=False)
    return [after["step"] for before, after in pairs if before["stage"] != after["stage"]]
