"""A report's rates for other programs: as one CSV table, and as JSON together with the run that made them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.perturb.perturb import Variant
from benchmarks.results.results import Summary
from benchmarks.results.stats import Rate

COLUMNS: tuple[str, ...] = (
    "evaluation",
    "protocol",
    "policy",
    "perturbation",
    "level",
    "of",
    "successes",
    "n",
    "rate",
    "low",
    "high",
)
"""The columns of the CSV.

level               task, group, macro (mean of groups) or micro (all episodes)
of                  name of the task or group
rate, low, high     in [0, 1], with the ends of the 95 % interval; empty where n is 0
"""


def evaluation(name: str, run: Mapping[str, Any], summary: Summary) -> dict[str, Any]:
    """One evaluation as plain values.

    name: of its folder. run: the content of its run.json.
    """
    rates = [_rate("task", task, rate) for task, rate in summary.tasks.items()]
    rates += [_rate("group", group, rate) for group, rate in summary.groups.items()]
    rates += [_rate("macro", "", summary.macro), _rate("micro", "", summary.micro)]
    return {
        "evaluation": name,
        "protocol": run["title"],
        "policy": run["policy"],
        "perturbation": Variant(**run["perturbation"]).identity,
        "rates": rates,
        "latency_ms": dict(summary.latency_ms),
        "crashed": [{"task": row.task, "episode": row.episode} for row in summary.errors],
        "run": dict(run),
    }


def to_json(evaluations: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"evaluations": list(evaluations)}, indent=1, allow_nan=False) + "\n"


def to_csv(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """CSV with the header COLUMNS and one line for each rate."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for item in evaluations:
        writer.writerows({**item, **rate} for rate in item["rates"])
    return text.getvalue()


def _rate(level: str, of: str, rate: Rate) -> dict[str, Any]:
    shares = {"rate": rate.value, "low": rate.low, "high": rate.high}
    shares = {name: None if math.isnan(value) else value for name, value in shares.items()}
    return {"level": level, "of": of, "successes": rate.successes, "n": rate.n, **shares}
