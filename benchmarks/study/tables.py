"""Writes `docs/study/tables.md` from the rows alone: every number of ours comes from a row.

A table without rows names the part of the study that makes them. The paper's numbers stand beside ours with their
source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import compare, markdown, protocols
from benchmarks.results.protocols import Protocol
from benchmarks.results.stats import Rate
from benchmarks.study import figures, gpla_tables, hours, writing_tables
from benchmarks.study.config import StudyConfig
from benchmarks.study.jobs import everything, pretrained
from benchmarks.study.plan import expand
from benchmarks.study.rows import StudyRow, StudyRows
from benchmarks.study.scores import ConditionRates, difference, score

DATA = Path(__file__).parents[1] / "data"
CLEAN = "clean"
PAPER = {"base": "No", "la": "LA", "vla": "VLA", "la_vla": "LA-VLA", "mixpt": "MixPT"}
"""Condition -> `pretrain` of the paper's tables."""

PROBED = (
    "standard",
    "visual-removed",
    "visual-masked-released",
    "visual-unaligned",
    "visual-conflict",
    "conflicting-state",
)
SCORES = ("dar", "dcs", "sr", "ss")
NEAR = {"episode": "the same episode", "task": "the same task", "any": "another task"}


def write(study: StudyConfig, folder: Path) -> Path:
    """Writes tables.md and its figure into `folder`; returns the path of the tables."""
    rows = StudyRows(Path(study.rows))
    made = rows.newest(everything(expand(study)))
    lines = [
        f"# Tables of the study `{study.name}`",
        "",
        f"Made from the rows in `{study.rows}` by `la4vla eval study CONFIG --tables`, not edited by hand.",
        "Rates are percent with 95 % intervals over all episodes of all seeds; `macro` is the mean of the groups.",
        *_own(study, made),
        *costs(study, rows),
    ]
    path = folder / ("tables.md" if study.name == "tiny" else f"tables_{study.name}.md")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    scores = _scores(study, made)
    if scores:
        path.with_suffix(".svg").write_bytes(figures.rates(scores))
    return path


def _own(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    """The tables of its kind of study."""
    if study.hierarchies:
        return gpla_tables.lines(study, made)
    return writing_tables.lines(study, made) if study.scenes else _about_paradigms(study, made)


def _about_paradigms(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    return [
        *data(made),
        *paradigms(study, made),
        *noise(study, made),
        *directions(made),
        *variations(study, made),
    ]


def data(made: Sequence[StudyRow]) -> list[str]:
    """What the construct jobs wrote."""
    rows = [row for row in made if row["job"].startswith("construct/")]
    cells = [
        [
            row["data"],
            row["demonstrations"],
            row["folders"]["la"]["clips"],
            row["folders"]["la"]["samples"],
            row["folders"]["vla"]["samples"],
            row["folders"]["task"]["samples"],
            ", ".join(f"{name} {count}" for name, count in row["primitives"].items()),
        ]
        for row in rows
    ]
    head = ["data", "demonstrations", "clips", "la samples", "vla samples", "task samples", "primitives"]
    return _section("Data", "construct", head, cells, "construct.jsonl")


def paradigms(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    """Table 4's question: rates by bucket, and differences from `base` and `vla` on the same episodes."""
    protocol = protocols.load(study.protocol)
    conditions = [condition for condition in study.conditions if condition in PAPER]
    scored = {condition: rows for condition in conditions if (rows := _clean(made, condition))}
    cells = [_rate_cells(condition, score(rows, protocol.groups), protocol) for condition, rows in scored.items()]
    head = _rate_head(protocol)
    lines = _section("Table 4: paradigms", "paradigms_0 and its like", head, cells, "evaluate.jsonl")
    lines += published("metaworld")
    lines += ["", *differences(study, scored, conditions)]
    return [*lines, "", *_budgets(study, made, conditions)]


def differences(study: StudyConfig, scored: Mapping[str, Sequence[StudyRow]], conditions: Iterable[str]) -> list[str]:
    """Each condition minus what it is compared with, on the same episodes, as a table behind one sentence."""
    cells = []
    for condition, reference in [(name, other) for name in conditions for other in study.conditions[name].against]:
        change = difference(scored.get(reference, ()), scored.get(condition, ()))
        if change is not None:
            by_seed = ", ".join(f"{seed}: {100 * value:+.1f}" for seed, value in change.seeds.items())
            shown = [change.pairs.n, compare.difference(change.pairs)]
            cells.append(
                [f"{condition} - {reference}", *shown, f"{change.pairs.p_value:.3g}", f"{change.p_tasks:.3g}", by_seed]
            )
    head = ["difference", "pairs", "points [95 %]", "p, episodes (McNemar)", "p, tasks (sign flip)", "by seed"]
    if not cells:
        return ["No two conditions have a seed in common yet."]
    about = [
        "Points on the same initial states, condition minus reference. Intervals and p are of these trained policies",
        "alone: how far other seeds would differ shows in `by seed` only.",
    ]
    return [" ".join(about), "", *markdown.table(head, cells)]


def noise(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    """Table 6's question: the same policies under perturbed images, and what each lost."""
    protocol = protocols.load(study.protocol)
    rows = [row for row in made if row["job"].startswith("evaluate/") and row["perturbation"] != CLEAN]
    lines = _heading("Table 6: noise and a changed scene", "noise" if not rows else "", "perturb.jsonl, evaluate.jsonl")
    for variant in dict.fromkeys(row["perturbation"] for row in rows):
        here = {
            condition: [row for row in rows if (row["arm"], row["perturbation"]) == (condition, variant)]
            for condition in study.conditions
        }
        here = {condition: perturbed for condition, perturbed in here.items() if perturbed}
        cells = []
        for condition, perturbed in here.items():
            clean = [row for row in _clean(made, condition) if row["policy"] in {item["policy"] for item in perturbed}]
            lost = difference(clean, perturbed) if clean else None
            own = compare.difference(lost.pairs) if lost else "no clean rows of these policies"
            cells.append([*_rate_cells(condition, score(perturbed, protocol.groups), protocol), own])
        head = [*_rate_head(protocol), "minus clean [95 %]"]
        lines += ["", f"### {variant}", "", *markdown.table(head, cells), "", *differences(study, here, here)]
    return [*lines, *published("noise")]


def published(name: str) -> list[str]:
    """The paper's rows of its own model, from a table in published.json, with their source."""
    table = json.loads((DATA / "published.json").read_text())["tables"][name]
    rows = [row for row in table["rows"] if row["model"] == "LA4VLA-1B"]
    cells = [[f"{row['model']} {row['pretrain']}", *row["rates"], row["average"]] for row in rows]
    head = ["condition", *table["columns"], "macro"]
    return ["", f"{table['source']}, about 1 B parameters. {table['note']}", "", *markdown.table(head, cells)]


def directions(made: Sequence[StudyRow]) -> list[str]:
    """Tables 1 and 7: scores of every probe condition, a line for each policy and seed, and the paper's."""
    rows = [row for row in made if row["job"].startswith("probe/")]
    lines = _heading("Tables 1 and 7: directions", "directions" if not rows else "", "probe.jsonl")
    for training, cases in dict.fromkeys((row["training"], row["cases"]) for row in rows):
        here = [row for row in rows if (row["training"], row["cases"]) == (training, cases)]
        listed = here[0]["listed"]
        lines += ["", f"### `{training}`, cases `{cases}`", ""]
        of = f"{listed['n']} cases of {listed['clips']} clips and {listed['tasks']} tasks"
        lines += [f"{of}; the demonstrations' own DAR is {listed['demonstrated']:.2f}.", ""]
        cells = []
        for name in PROBED:
            for row in here:
                one = row["conditions"].get(name)
                if one and one["pooled"]:
                    shown = [_estimate(one["pooled"][key]) for key in SCORES]
                    cells.append([name, row["seed"], one["trials"], *shown])
        lines += markdown.table(["condition", "seed", "n", *(key.upper() for key in SCORES)], cells)
        lines += _conflicts(here)
    known = json.loads((DATA / "directions.json").read_text())
    cells = [[name, *values] for name, values in known["rows"].items()]
    lines += ["", f"{known['source']}. {known['note']}", "", *markdown.table(["", *known["columns"]], cells)]
    return lines


def _conflicts(rows: Sequence[StudyRow]) -> list[str]:
    """DAR under visual conflict by what the conflicting image shares with the case. An image of another task is of
    another scene, too."""
    known = [row for row in rows if row["conditions"].get("visual-conflict", {}).get("by_nearness")]
    shown = []
    for near in ("episode", "task", "any"):
        parts = [row["conditions"]["visual-conflict"]["by_nearness"].get(near) for row in known]
        if any(parts):
            values = ", ".join(f"{part['dar']:.2f}" for part in parts if part)
            shown.append(f"{NEAR[near]} {values} ({max(part['trials'] for part in parts if part)} cases)")
    return ["", f"DAR under visual-conflict, seed by seed, with an image of {'; of '.join(shown)}."] if shown else []


def variations(study: StudyConfig, made: Sequence[StudyRow]) -> list[str]:
    """Every condition that the paper does not have: rates, and differences from what it is compared with."""
    protocol = protocols.load(study.protocol)
    conditions = [condition for condition in study.conditions if condition not in PAPER]
    scored = {condition: rows for condition in conditions if (rows := _clean(made, condition))}
    cells = [_rate_cells(condition, score(rows, protocol.groups), protocol) for condition, rows in scored.items()]
    lines = _section(
        "Leaky masking and variations", "leaky or variations_*", _rate_head(protocol), cells, "evaluate.jsonl"
    )
    lines += [
        "",
        *differences(
            study, {condition: rows for condition in study.conditions if (rows := _clean(made, condition))}, conditions
        ),
    ]
    return [*lines, "", *_budgets(study, made, conditions)]


def costs(study: StudyConfig, rows: StudyRows) -> list[str]:
    """Hours of every part, measured and expected, with their sum."""
    parts = hours.by_part(study, rows)
    cells = []
    for item in parts:
        machines = ", ".join(f"{cores} cores" for cores in item.cores)
        cells.append([item.part, f"{item.done}/{item.jobs}", f"{item.measured:.2f}", f"{item.left:.2f}", machines])
    measured, left = sum(item.measured for item in parts), sum(item.left for item in parts)
    done, jobs = sum(item.done for item in parts), sum(item.jobs for item in parts)
    cells.append(["all", f"{done}/{jobs}", f"{measured:.2f}", f"{left:.2f}", ""])
    head = ["part", "jobs done", "hours measured", "hours left, expected", "machine"]
    about = "A job that several parts need is counted in the first of them; other jobs ran on the same cores at times."
    return [*_heading("Hours", "", "*.jsonl"), "", about, "", *markdown.table(head, cells)]


def _budgets(study: StudyConfig, made: Sequence[StudyRow], conditions: Sequence[str]) -> list[str]:
    """Samples and operations of pretraining and finetuning by condition, of the first seed that has rows."""
    trained = {row["job"]: row for row in made if "samples" in row}
    cells = []
    for condition in conditions:
        tuned = next((row for row in trained.values() if row.get("arm") == condition), None)
        if tuned is None:
            continue
        start = tuned["pretraining"]
        before = trained.get(pretrained(study, start, tuned["seed"]).name) if start else None
        cells.append([condition, _budget(before), _budget(tuned), f"{tuned['loss']:.4f}"])
    head = ["condition", "pretraining", "finetuning", "last loss"]
    return ["Budgets (`train.jsonl`):", "", *markdown.table(head, cells)] if cells else []


def _budget(row: StudyRow | None) -> str:
    if row is None:
        return "none"
    counts = " + ".join(f"{count:,} {source}" for source, count in row["samples"].items())
    return f"{counts} samples, {row['operations'] / 1e12:.1f} TFLOP"


def _clean(made: Sequence[StudyRow], condition: str) -> list[StudyRow]:
    return [row for row in made if row.get("arm") == condition and row.get("perturbation") == CLEAN]


def _scores(study: StudyConfig, made: Sequence[StudyRow]) -> dict[str, dict[str, ConditionRates]]:
    """Perturbation -> condition -> rates, for the figure."""
    groups = protocols.load(study.protocol).groups
    rows = [row for row in made if "successes" in row]
    drawn: dict[str, dict[str, ConditionRates]] = {}
    for variant in dict.fromkeys(row["perturbation"] for row in rows):
        for condition in (*study.conditions, *study.hierarchies):
            here = [row for row in rows if (row["arm"], row["perturbation"]) == (condition, variant)]
            if here:
                drawn.setdefault(variant, {})[condition] = score(here, groups)
    return drawn


def _rate_head(protocol: Protocol) -> list[str]:
    return ["condition", "seeds", *protocol.groups, "macro", "micro", "by seed"]


def _rate_cells(condition: str, scored: ConditionRates, protocol: Protocol) -> list[Any]:
    rates = [_percent(scored.groups[group]) for group in protocol.groups]
    by_seed = ", ".join(f"{100 * rate.value:.1f}" for rate in scored.seeds.values())
    return [
        condition,
        len(scored.seeds),
        *rates,
        _percent(scored.macro),
        f"{_percent(scored.micro)}, n {scored.micro.n}",
        by_seed,
    ]


def _percent(rate: Rate) -> str:
    return str(rate).replace(" %", "").strip() if rate.n else ""


def _estimate(one: Mapping[str, float | None]) -> str:
    value, low, high = one["value"], one["low"], one["high"]
    if value is None:
        return ""
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _section(title: str, part: str, head: Sequence[str], cells: Sequence[Sequence[Any]], file: str) -> list[str]:
    return [*_heading(title, "" if cells else part, file), *(["", *markdown.table(head, cells)] if cells else [])]


def _heading(title: str, missing: str, file: str) -> list[str]:
    lines = ["", f"## {title}", "", f"Rows: `{file}`."]
    return [*lines, "", f"Nothing yet; the part {missing} makes it."] if missing else lines
