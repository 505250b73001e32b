"""Seconds a decision, as VLM2VLA's Table 3: from the question to the actions, plan included.

A policy that writes decides where it writes actions; the queries in between only play what was written. Any other
policy decides at every query. Waiting for a batch with other episodes counts: evaluate with one worker to measure a
policy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.results.results import Row

WRITTEN = "actions"
PAPER = (30, 6.1, 10.5, 14.3, 5.0, 6.7, 3.8, 48.8)
"""Table 3, Gemma-3-12B on an A100: n and seconds in the order of DecisionTimes."""


@dataclass(frozen=True)
class DecisionTimes:
    """Seconds of n decisions; low and high are the ends of the interquartile range, sd divides by n - 1."""

    n: int
    median: float
    mean: float
    sd: float
    low: float
    high: float
    least: float
    most: float


def decisions(rows: Iterable[Row]) -> list[float]:
    """Seconds of every decision."""
    found: list[float] = []
    for row in rows:
        asked = sorted({int(text["query"]) for text in row.texts if text["question"] == WRITTEN})
        chosen = asked if row.texts else range(len(row.latencies_ms))
        found += [row.latencies_ms[query] / 1000 for query in chosen if query < len(row.latencies_ms)]
    return found


def times(rows: Iterable[Row]) -> DecisionTimes | None:
    """None without a decision."""
    seconds = decisions(rows)
    if not seconds:
        return None
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    sd = float(np.std(seconds, ddof=1)) if len(seconds) > 1 else 0.0
    return DecisionTimes(len(seconds), median, float(np.mean(seconds)), sd, low, high, min(seconds), max(seconds))


def table(conditions: Mapping[str, DecisionTimes]) -> str:
    """Markdown, the paper's row last."""
    lines = ["| condition | n | median s | mean s | sd | IQR | min | max |", "| --- " * 8 + "|"]
    shown = {**conditions, "VLM2VLA, Gemma-3-12B, A100 (its Table 3)": DecisionTimes(*PAPER)}
    for name, one in shown.items():
        seconds = [f"{value:.3g}" for value in (one.median, one.mean, one.sd)]
        ends = [f"{one.low:.3g} - {one.high:.3g}", f"{one.least:.3g}", f"{one.most:.3g}"]
        lines.append(f"| {' | '.join([name, str(one.n), *seconds, *ends])} |")
    return "\n".join(lines)
