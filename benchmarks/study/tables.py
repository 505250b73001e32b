"""`docs/study/tables.md` from the rows alone: every number has its row, nothing is typed in.

A table that has no row yet says which part makes it. Numbers of the paper stand beside ours with what they are of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import compare, protocols
from benchmarks.results.protocols import Protocol
from benchmarks.results.stats import Rate
from benchmarks.study import figures
from benchmarks.study.plan import StudyConfig, everything, expand
from benchmarks.study.rows import Row, Rows
from benchmarks.study.scores import Score, difference, score

DATA = Path(__file__).parents[1] / "data"
CLEAN = "clean"
PAPER = {"base": "No", "la": "LA", "vla": "VLA", "la_vla": "LA-VLA", "mixpt": "MixPT"}
"""Arm -> `pretrain` of the paper's tables."""

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
    """tables.md and figures in `folder`; returns the path of the tables."""
    rows = Rows(Path(study.rows))
    found = rows.newest(everything(expand(study)))
    drawn = [
        f"# Tables of the study `{study.name}`",
        "",
        f"Made from the rows in `{study.rows}` by `python -m benchmarks study CONFIG --tables`, not edited by hand.",
        "Rates are percent with 95 % intervals over all episodes of all seeds; `macro` is the mean of the groups.",
        *data(found),
        *paradigms(study, found),
        *noise(study, found),
        *directions(found),
        *variations(study, found),
        *costs(study, rows),
    ]
    path = folder / ("tables.md" if study.name == "tiny" else f"tables_{study.name}.md")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(drawn) + "\n")
    scores = _scores(study, found)
    if scores:
        path.with_suffix(".svg").write_bytes(figures.rates(scores))
    return path


def data(found: Sequence[Row]) -> list[str]:
    """What the construct jobs wrote."""
    rows = [row for row in found if row["job"].startswith("construct/")]
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


def paradigms(study: StudyConfig, found: Sequence[Row]) -> list[str]:
    """Table 4's question: rates by bucket, and differences from `base` and `vla` on the same episodes."""
    protocol = protocols.load(study.protocol)
    arms = [arm for arm in study.arms if arm in PAPER]
    scored = {arm: rows for arm in arms if (rows := _clean(found, arm))}
    cells = [_rate_cells(arm, score(rows, protocol.groups), protocol) for arm, rows in scored.items()]
    head = _rate_head(protocol)
    lines = _section("Table 4: paradigms", "paradigms_0 and its like", head, cells, "evaluate.jsonl")
    lines += published("metaworld")
    lines += ["", *differences(study, scored, arms)]
    return [*lines, "", *_budgets(found, arms)]


def differences(study: StudyConfig, scored: Mapping[str, Sequence[Row]], arms: Iterable[str]) -> list[str]:
    """Each arm minus what it is compared with, on the same episodes; what another training would give is in no p."""
    cells = []
    for arm, reference in [(name, other) for name in arms for other in study.arms[name].against]:
        found = difference(scored.get(reference, ()), scored.get(arm, ()))
        if found is not None:
            by_seed = ", ".join(f"{seed}: {100 * value:+.1f}" for seed, value in found.seeds.items())
            shown = [found.pairs.n, compare.difference(found.pairs)]
            cells.append(
                [f"{arm} - {reference}", *shown, f"{found.pairs.p_value:.3g}", f"{found.p_tasks:.3g}", by_seed]
            )
    head = ["difference", "pairs", "points [95 %]", "p, episodes (McNemar)", "p, tasks (sign flip)", "by seed"]
    if not cells:
        return ["No two arms have a seed in common yet."]
    said = (
        "Points on the same initial states, arm minus reference. Intervals and p are of these trained policies: how far"
    )
    return [f"{said} other seeds would differ is in no one of them, only in `by seed`.", "", *_table(head, cells)]


def noise(study: StudyConfig, found: Sequence[Row]) -> list[str]:
    """Table 6's question: the same policies under perturbed pictures, and what each lost."""
    protocol = protocols.load(study.protocol)
    rows = [row for row in found if row["job"].startswith("evaluate/") and row["perturbation"] != CLEAN]
    lines = _heading("Table 6: noise and a changed scene", "noise" if not rows else "", "perturb.jsonl, evaluate.jsonl")
    for variant in dict.fromkeys(row["perturbation"] for row in rows):
        here = {arm: [row for row in rows if (row["arm"], row["perturbation"]) == (arm, variant)] for arm in study.arms}
        here = {arm: kept for arm, kept in here.items() if kept}
        cells = []
        for arm, kept in here.items():
            clean = [row for row in _clean(found, arm) if row["policy"] in {item["policy"] for item in kept}]
            lost = difference(clean, kept) if clean else None
            own = compare.difference(lost.pairs) if lost else "no clean rows of these policies"
            cells.append([*_rate_cells(arm, score(kept, protocol.groups), protocol), own])
        head = [*_rate_head(protocol), "minus clean [95 %]"]
        lines += ["", f"### {variant}", "", *_table(head, cells), "", *differences(study, here, here)]
    return [*lines, *published("noise")]


def published(name: str) -> list[str]:
    """The paper's rows of its own model, of a table in published.json, with what they are of."""
    table = json.loads((DATA / "published.json").read_text())["tables"][name]
    rows = [row for row in table["rows"] if row["model"] == "LA4VLA-1B"]
    cells = [[f"{row['model']} {row['pretrain']}", *row["rates"], row["average"]] for row in rows]
    head = ["arm", *table["columns"], "macro"]
    return ["", f"{table['source']}, about 1 B parameters. {table['note']}", "", *_table(head, cells)]


def directions(found: Sequence[Row]) -> list[str]:
    """Tables 1 and 7: scores of every condition, a line a policy and seed, and the paper's."""
    rows = [row for row in found if row["job"].startswith("probe/")]
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
        lines += _table(["condition", "seed", "n", *(key.upper() for key in SCORES)], cells)
        lines += _conflicts(here)
    known = json.loads((DATA / "directions.json").read_text())
    cells = [[name, *values] for name, values in known["rows"].items()]
    lines += ["", f"{known['source']}. {known['note']}", "", *_table(["", *known["columns"]], cells)]
    return lines


def _conflicts(rows: Sequence[Row]) -> list[str]:
    """DAR under visual conflict by what the conflicting picture shares with the case: one of another task is another
    scene, too."""
    known = [row for row in rows if row["conditions"].get("visual-conflict", {}).get("by_nearness")]
    shown = []
    for near in ("episode", "task", "any"):
        parts = [row["conditions"]["visual-conflict"]["by_nearness"].get(near) for row in known]
        if any(parts):
            values = ", ".join(f"{part['dar']:.2f}" for part in parts if part)
            shown.append(f"{NEAR[near]} {values} ({max(part['trials'] for part in parts if part)} cases)")
    return ["", f"DAR under visual-conflict, seed by seed, with a picture of {'; of '.join(shown)}."] if shown else []


def variations(study: StudyConfig, found: Sequence[Row]) -> list[str]:
    """Every arm that the paper has not: rates, and the differences from what it is compared with."""
    protocol = protocols.load(study.protocol)
    arms = [arm for arm in study.arms if arm not in PAPER]
    scored = {arm: rows for arm in arms if (rows := _clean(found, arm))}
    cells = [_rate_cells(arm, score(rows, protocol.groups), protocol) for arm, rows in scored.items()]
    lines = _section(
        "Leaky masking and variations", "leaky or variations_*", _rate_head(protocol), cells, "evaluate.jsonl"
    )
    lines += ["", *differences(study, {arm: rows for arm in study.arms if (rows := _clean(found, arm))}, arms)]
    return [*lines, "", *_budgets(found, arms)]


def costs(study: StudyConfig, rows: Rows) -> list[str]:
    """Hours by part, as they were measured and as the plan expects."""
    cells = []
    for part in study.parts:
        jobs = expand(study, [part])
        done = rows.newest(jobs)
        spent = sum(row["seconds"] for row in rows.newest(everything(jobs))) / 3600
        machines = ", ".join(sorted({f"{row['cores']} cores" for row in done}))
        cells.append([part, f"{len(done)}/{len(jobs)}", f"{spent:.2f}", f"{study.parts[part].hours:g}", machines])
    head = ["part", "jobs done", "hours, all that it builds on included", "planned", "machine"]
    return _section("Hours", "", head, cells, "*.jsonl")


def _budgets(found: Sequence[Row], arms: Sequence[str]) -> list[str]:
    """Samples and operations of pretraining and finetuning by arm, of the first seed at hand."""
    trained = {row["job"]: row for row in found if "samples" in row}
    cells = []
    for arm in arms:
        tuned = next((row for row in trained.values() if row.get("arm") == arm), None)
        if tuned is None:
            continue
        start = tuned["pretraining"]
        before = trained.get(f"pretrain/{start}/{tuned['seed']}") if start else None
        cells.append([arm, _budget(before), _budget(tuned), f"{tuned['loss']:.4f}"])
    head = ["arm", "pretraining", "finetuning", "last loss"]
    return ["Budgets (`train.jsonl`):", "", *_table(head, cells)] if cells else []


def _budget(row: Row | None) -> str:
    if row is None:
        return "none"
    counts = " + ".join(f"{count:,} {source}" for source, count in row["samples"].items())
    return f"{counts} samples, {row['operations'] / 1e12:.1f} TFLOP"


def _clean(found: Sequence[Row], arm: str) -> list[Row]:
    return [row for row in found if row.get("arm") == arm and row.get("perturbation") == CLEAN]


def _scores(study: StudyConfig, found: Sequence[Row]) -> dict[str, dict[str, Score]]:
    """Perturbation -> arm -> score, for the figure."""
    groups = protocols.load(study.protocol).groups
    rows = [row for row in found if "successes" in row]
    drawn: dict[str, dict[str, Score]] = {}
    for variant in dict.fromkeys(row["perturbation"] for row in rows):
        for arm in study.arms:
            here = [row for row in rows if (row["arm"], row["perturbation"]) == (arm, variant)]
            if here:
                drawn.setdefault(variant, {})[arm] = score(here, groups)
    return drawn


def _rate_head(protocol: Protocol) -> list[str]:
    return ["arm", "seeds", *protocol.groups, "macro", "micro", "by seed"]


def _rate_cells(arm: str, found: Score, protocol: Protocol) -> list[Any]:
    rates = [_percent(found.groups[group]) for group in protocol.groups]
    by_seed = ", ".join(f"{100 * rate.value:.1f}" for rate in found.seeds.values())
    return [
        arm,
        len(found.seeds),
        *rates,
        _percent(found.macro),
        f"{_percent(found.micro)}, n {found.micro.n}",
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
    return [*_heading(title, "" if cells else part, file), *(["", *_table(head, cells)] if cells else [])]


def _heading(title: str, missing: str, file: str) -> list[str]:
    lines = ["", f"## {title}", "", f"Rows: `{file}`."]
    return [*lines, "", f"Nothing yet; the part {missing} makes it."] if missing else lines


def _table(head: Sequence[str], cells: Sequence[Sequence[Any]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *cells]]
