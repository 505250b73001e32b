"""The tables of a study of hierarchical policies, from its rows alone: what came out otherwise than in the paper first.

A claim is a sign: one arm before another in one column. It is met or contradicted where the interval of the difference,
drawn by episode over all seeds, leaves zero out, and open elsewhere. Success is compared on the same initial states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.hierarchy import intervals, table
from benchmarks.hierarchy.intervals import EpisodeMean
from benchmarks.hierarchy.texts import BLEU, NO_SYNONYMS, ROUGE
from benchmarks.hierarchy.words import SCORE
from benchmarks.results import compare, markdown, stats
from benchmarks.results.stats import Rate
from benchmarks.study.claims import Claim, JudgedClaims
from benchmarks.study.config import StudyConfig
from benchmarks.study.rows import StudyRow
from benchmarks.study.scores import difference, episodes

SUCCESS = "success"
MSE, COSINE = table.MOTION_COLUMNS[0], table.MOTION_COLUMNS[2]


ARM_CLAIMS = (
    Claim("lt_supervised", "lt_gpla", BLEU, "GPLA loses words that overlap (BLEU)", "Table 1"),
    Claim("lt_supervised", "lt_gpla", ROUGE, "GPLA loses words that overlap (ROUGE-1)", "Table 1"),
    Claim("lt_gpla", "lt_supervised", MSE, "GPLA's trajectories err less", "Table 1", lower=True),
    Claim("lt_gpla", "lt_supervised", COSINE, "GPLA's trajectories point better", "Table 1"),
    Claim("lt_oracle", "lt_supervised", MSE, "people's words make the best trajectories", "Table 1", lower=True),
    Claim("lt_gpla", "lt_gpla_blind", ROUGE, "a scorer that sees the scene teaches better words", "section 6.3"),
    Claim("lt_gpla_10", "lt_supervised_10", ROUGE, "GPLA makes up for captions, 10 %", "section 1"),
    Claim("lt_gpla_30", "lt_supervised_30", ROUGE, "GPLA makes up for captions, 30 %", "section 1"),
    Claim("lt_gpla", "lt_supervised", SCORE, "GPLA's words fit its deeds better", "section 4.3"),
    Claim("mw_gpla", "mw_supervised", SCORE, "GPLA's words fit its deeds better, MetaWorld", "section 4.3"),
    Claim("mw_supervised", "mw_flat", SUCCESS, "words help to act", "asked here"),
    Claim("mw_gpla", "mw_supervised", SUCCESS, "grounded words help to act", "asked here"),
    Claim("mw_oracle", "mw_flat", SUCCESS, "true words help to act", "asked here"),
)


def lines(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    """The tables as Markdown."""
    words = {arm: [row for row in made if row["job"].startswith(f"words/{arm}/")] for arm in study.hierarchies}
    words = {arm: rows for arm, rows in words.items() if rows}
    body = judged(made).lines("As in the paper, or as hoped:")
    for title, start in (("LanguageTable, offline", "lt"), ("MetaWorld's clips, offline", "mw")):
        here = {arm: table.pooled(rows) for arm, rows in words.items() if arm.startswith(f"{start}_")}
        body += ["", f"## {title}", ""]
        if not here:
            body += ["Nothing yet; the parts `seed_0` and its like make it."]
            continue
        first, beside = table.table_1(here, start == "lt"), table.more(here)
        missing = table.empty_cells([row for arm in here for row in words[arm]])
        body += [
            "Means over moments of all seeds; intervals draw episodes.",
            "",
            *markdown.table(first[0], first[1:]),
            "",
            *markdown.table(beside[0], beside[1:]),
            "",
            *table.how_to_fill(missing),
            "",
            *_differences(study, here),
        ]
    body += ["", "## Rounds", "", *_rounds(study, made)]
    body += ["", "## Success in MetaWorld", "", *_success(study, made)]
    return [*body, "", "## Two judges of clips", "", *_judges(made), "", "## Sentences", "", *_sentences(words)]


def judged(made: Sequence[StudyRow]) -> JudgedClaims:
    found = JudgedClaims([], [], [])
    for claim in ARM_CLAIMS:
        change = _change(claim, made)
        name = f"{claim.says} ({claim.where})"
        if change is None:
            found.undecided.append(f"{name}: no rows yet.")
            continue
        value, low, high, shown = change
        line = f"{name}: {claim.better} - {claim.worse} in {claim.column} {shown}."
        sign = -1 if claim.lower else 1
        if low is None or high is None or low <= 0 <= high:
            found.undecided.append(line)
        else:
            (found.met if sign * value > 0 else found.against).append(line)
    return found


def _change(claim: Claim, made: Sequence[StudyRow]) -> tuple[float, float | None, float | None, str] | None:
    """Better minus worse, its interval, and both as text; None without rows."""
    if claim.column == SUCCESS:
        before, after = (
            [row for row in made if row["job"].startswith(f"evaluate/{arm}/")] for arm in (claim.worse, claim.better)
        )
        change = difference(before, after) if before and after else None
        if change is None:
            return None
        return change.pairs.difference, *change.pairs.interval, compare.difference(change.pairs)
    worse, better = (
        table.pooled([row for row in made if row["job"].startswith(f"words/{arm}/")])
        for arm in (claim.worse, claim.better)
    )
    if claim.column not in worse or claim.column not in better:
        return None
    found = intervals.difference(worse[claim.column], better[claim.column])
    return None if found.value is None else (found.value, found.low, found.high, found.text())


def _differences(study: StudyConfig, arms: Mapping[str, table.Sums]) -> list[str]:
    """Each arm minus what it is compared with, by episode."""
    columns = [BLEU, ROUGE, NO_SYNONYMS, *table.MOTION_COLUMNS, SCORE]
    cells = [
        [f"{arm} - {other}", *(_difference_cell(arms[other], arms[arm], column) for column in columns)]
        for arm in arms
        for other in study.hierarchies[arm].against
        if other in arms
    ]
    return markdown.table(["difference", *columns], cells) if cells else ["No two arms to compare yet."]


def _difference_cell(before: table.Sums, after: table.Sums, column: str) -> str:
    if column not in before or column not in after:
        return ""
    found: EpisodeMean = intervals.difference(before[column], after[column])
    return found.text()


def _rounds(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    """Whether candidates score higher after the rounds: means of the seeds."""
    cells = []
    for name in study.rounds:
        rows = [row for row in made if row["job"].startswith(f"gpla/{name}/")]
        if rows:
            first, last = ([row[end] for row in rows] for end in ("first", "last"))
            cells.append(
                [
                    name,
                    str(len(rows)),
                    str(rows[0]["count"]),
                    *(f"{_mean(ends, key)}" for key in ("mean", "chosen", "rejected") for ends in (first, last)),
                    f"{sum(one['pairs'] for one in first + last)} of {sum(one['prompts'] for one in first + last)}",
                ]
            )
    head = ["rounds", "seeds", "of each"]
    head += [f"{key}, {end}" for key in ("score", "chosen", "rejected") for end in ("first", "last")]
    return markdown.table([*head, "pairs that count"], cells) if cells else ["Nothing yet."]


def _mean(ends: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [one[key] for one in ends if one[key] is not None]
    return f"{fmean(values):.3f}" if values else ""


def _success(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    acted = {arm: [row for row in made if row["job"].startswith(f"evaluate/{arm}/")] for arm in study.hierarchies}
    acted = {arm: rows for arm, rows in acted.items() if rows}
    if not acted:
        return ["Nothing yet; the parts `seed_0` and its like make it."]
    cells = []
    for arm, rows in acted.items():
        by_seed = ", ".join(f"{100 * fmean(episodes([row]).values()):.0f}" for row in rows)
        rate = stats.rate(list(episodes(rows).values()))
        others = [
            f"{other}: {compare.difference(change.pairs)}"
            for other in study.hierarchies[arm].against
            if other in acted and (change := difference(acted[other], rows))
        ]
        cells.append([arm, str(len(rows)), f"{str(rate).strip()}, n {rate.n}", by_seed, "; ".join(others)])
    return markdown.table(["arm", "seeds", SUCCESS, "by seed, %", "minus, points [95 %]"], cells)


def _judges(made: Sequence[StudyRow]) -> list[str]:
    """Over the seeds, whose clips are the same and whose scorers are not: Wilson's intervals of all together."""
    rows = [row for row in made if row["job"].startswith("judges/")]
    cells = []
    for name in dict.fromkeys(row["clips"] for row in rows):
        here = [row for row in rows if row["clips"] == name]
        spoils = list(here[0]["judges"]["rules"]["caught"])
        for judge in here[0]["judges"]:
            asked = [row["judges"][judge] for row in here]
            cells.append([name, judge, _summed([one["lost"] for one in asked])])
            cells[-1] += [f"{how}: {_summed([one['caught'][how] for one in asked])}" for how in spoils]
            cells[-1] += [""] * (3 - len(spoils))
    head = ["clips", "judge", "good ones lost", "caught", "", ""]
    return markdown.table(head, cells) if cells else ["Nothing yet."]


def _summed(rates: Sequence[Mapping[str, Any]]) -> str:
    hits, n = sum(one["successes"] for one in rates), sum(one["n"] for one in rates)
    return str(Rate(hits, n, hits / n, *stats.wilson(hits, n))).strip() if n else ""


def _sentences(words: Mapping[str, Sequence[StudyRow]]) -> list[str]:
    """What the first seed of every arm said at the same few moments."""
    said = {arm: rows[0]["said"] for arm, rows in words.items() if any(one["said"] for one in rows[0]["said"])}
    if not said:
        return ["Nothing yet."]
    cells = [[arm, one["task"], one["instruction"], one["said"]] for arm, rows in said.items() for one in rows[:2]]
    return markdown.table(["arm", "task", "people", "said"], cells)
