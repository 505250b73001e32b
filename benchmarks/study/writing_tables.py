"""The tables of a study about models that write, from its rows alone: what came out otherwise than in the paper first.

A claim of the paper is a sign: one condition above another in one column. It is met or contradicted where the interval
of the difference on the same questions, or episodes, leaves zero out, and open elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.results import markdown, stats
from benchmarks.results.stats import Pairs
from benchmarks.study.claims import Claim, JudgedClaims
from benchmarks.study.config import StudyConfig
from benchmarks.study.rows import StudyRow
from benchmarks.study.scores import episodes
from benchmarks.writing.retention import SEES

SCENES, SUCCESS = "scene questions right", "success"


CLAIMS = (
    Claim("lora_decimals", "whole_decimals", SCENES, "LoRA keeps more than training the whole model", "section 3"),
    Claim("lora_decimals", "whole_flow", SCENES, "actions as text keep more than an action head", "Table 1, pi0.5"),
    Claim("lora_decimals", "flow_scene", SCENES, "no co-training is needed to keep what was known", "section 1"),
    Claim("lora_decimals", "lora_tokens", SCENES, "words keep more than rare tokens", "Table 1, AT"),
    Claim("lora_decimals", "lora_tokens", SUCCESS, "words act better than rare tokens", "Figure 5, AT"),
    Claim("lora_decimals", "lora_direct", SUCCESS, "a plan acts better than none", "NR"),
)


def lines(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    """The tables as Markdown."""
    kinds = {kind: [row for row in made if row["job"].startswith(f"{kind}/")] for kind in ("evaluate", "retention")}
    return [
        *_judged(kinds).lines("As in the paper:"),
        "",
        "## Acting and keeping",
        "",
        "Over all questions or episodes of all seeds, with Wilson's intervals. `kept` is what is left of the rate",
        "above chance, the mean of the seeds. The ceiling is the demonstrations' own texts, played again.",
        "",
        *_table(study, made),
        "",
        "## Scene questions by type",
        "",
        *_by_type(study, kinds["retention"]),
        "",
        "## Seconds a decision",
        "",
        *_seconds(study, kinds["evaluate"]),
        "",
        "## Ceiling",
        "",
        *_ceiling(made),
    ]


def _table(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    head = ["condition", "seeds", SCENES, "kept", "valid texts", "direction words", "main direction", SUCCESS]
    cells = [_ceiling_cells(made), _before_cells(made)]
    for condition in study.conditions:
        rows = [row for row in made if row.get("arm") == condition]
        kept = [row for row in rows if row["job"].startswith("retention/")]
        said = [row for row in rows if row["job"].startswith("answers/")]
        acted = [row for row in rows if row["job"].startswith("evaluate/")]
        if not rows:
            continue
        cells.append(
            [
                condition,
                str(len({row["seed"] for row in rows})),
                _pooled([row["rates"]["after"]["all"][SEES] for row in kept]),
                _mean([row["change"]["all"]["kept"] for row in kept]),
                *(_pooled([row["rates"][name] for row in said if name in row["rates"]]) for name in NAMED),
                _success(acted),
            ]
        )
    return markdown.table(head, [row for row in cells if row])


NAMED = ("valid", "words", "main")


def _before_cells(made: Sequence[StudyRow]) -> list[str]:
    """The model before it met a robot row: once a seed."""
    kept = {row["seed"]: row["rates"]["before"]["all"][SEES] for row in made if row["job"].startswith("retention/")}
    return ["before", str(len(kept)), _pooled(list(kept.values())), "", "", "", "", ""] if kept else []


def _ceiling_cells(made: Sequence[StudyRow]) -> list[str]:
    """The usual codec's."""
    for row in made:
        for name, one in row.get("conditions", {}).items() if row["job"].startswith("ceiling/") else ():
            if name == "decimals, commanded":
                return [f"ceiling ({name})", "", "", "", "", "", "", _rate(one["successes"], one["n"])]
    return []


def _by_type(study: StudyConfig, rows: Sequence[StudyRow]) -> list[str]:
    if not rows:
        return ["Nothing yet; the parts `seed_0` and its like make it."]
    types = [name for name in rows[0]["chance"] if name != "all"]
    chance = [f"{100 * rows[0]['chance'][name]:.0f}" for name in types]
    before = {row["seed"]: row for row in rows}.values()
    cells = [["chance", *chance]]
    cells.append(["before", *(_pooled([row["rates"]["before"][name][SEES] for row in before]) for name in types)])
    cells.append(
        ["before, blind", *(_pooled([row["rates"]["before"][name]["blind"] for row in before]) for name in types)]
    )
    for condition in study.conditions:
        here = [row for row in rows if row["arm"] == condition]
        if here:
            cells.append([condition, *(_pooled([row["rates"]["after"][name][SEES] for row in here]) for name in types)])
    return markdown.table(["", *types], cells)


def _seconds(study: StudyConfig, rows: Sequence[StudyRow]) -> list[str]:
    cells = []
    for condition in study.conditions:
        here = [row["decision_s"] for row in rows if row["arm"] == condition and "decision_s" in row]
        if here:
            values = [fmean(one[name] for one in here) for name in ("median", "mean", "sd", "low", "high")]
            median, mean, sd, low, high = (f"{value:.3g}" for value in values)
            ends = [f"{min(one['least'] for one in here):.3g}", f"{max(one['most'] for one in here):.3g}"]
            cells.append([condition, str(sum(one["n"] for one in here)), median, mean, sd, f"{low} - {high}", *ends])
    head = ["condition", "n", "median", "mean", "sd", "IQR", "min", "max"]
    about = "Means of the seeds' numbers; batches with another episode included (docs/measuring_writing.md)."
    return [about, "", *markdown.table(head, cells)] if cells else ["Nothing yet."]


def _ceiling(made: Sequence[StudyRow]) -> list[str]:
    rows = [row for row in made if row["job"].startswith("ceiling/")]
    if not rows:
        return ["Nothing yet; the part `data` makes it."]
    cells = [[name, _rate(one["successes"], one["n"])] for row in rows for name, one in row["conditions"].items()]
    return markdown.table(["demonstrations played as", SUCCESS], cells)


def _judged(kinds: Mapping[str, Sequence[StudyRow]]) -> JudgedClaims:
    pairing: dict[str, Callable[[str, str], Pairs | None]] = {
        SCENES: lambda worse, better: _paired(
            _answers(kinds["retention"], worse), _answers(kinds["retention"], better)
        ),
        SUCCESS: lambda worse, better: _paired(
            _outcomes(kinds["evaluate"], worse), _outcomes(kinds["evaluate"], better)
        ),
    }
    judged = JudgedClaims([], [], [])
    for claim in CLAIMS:
        pairs = pairing[claim.column](claim.worse, claim.better)
        words = f"{claim.says} ({claim.where})"
        if pairs is None:
            judged.undecided.append(f"{words}: no rows yet.")
            continue
        low, high = pairs.interval
        shown = (
            f"{words}: {claim.column}, {claim.better} - {claim.worse} {100 * pairs.difference:+.1f} points "
            f"[{100 * low:+.1f}, {100 * high:+.1f}], n {pairs.n}."
        )
        (judged.met if low > 0 else judged.against if high < 0 else judged.undecided).append(shown)
    return judged


def _answers(rows: Sequence[StudyRow], condition: str) -> dict[tuple[int, int], bool]:
    return {
        (row["seed"], number): hit == "1"
        for row in rows
        if row["arm"] == condition
        for number, hit in enumerate(row["outcomes"]["after"][SEES])
    }


def _outcomes(rows: Sequence[StudyRow], condition: str) -> Mapping[Any, bool]:
    return episodes([row for row in rows if row["arm"] == condition])


def _paired(worse: Mapping[Any, bool], better: Mapping[Any, bool]) -> Pairs | None:
    both = [key for key in worse if key in better]
    return stats.pairs((worse[key], better[key]) for key in both) if both else None


def _success(rows: Sequence[StudyRow]) -> str:
    ended = episodes(rows)
    return _rate(sum(ended.values()), len(ended)) if ended else ""


def _pooled(rates: Sequence[Mapping[str, Any]]) -> str:
    right = sum(rate["right"] if "right" in rate else rate["successes"] for rate in rates)
    return _rate(right, sum(rate["n"] for rate in rates)) if rates else ""


def _rate(right: int, n: int) -> str:
    if not n:
        return ""
    low, high = stats.wilson(right, n)
    return f"{100 * right / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * fmean(known):.0f}" if known else ""
