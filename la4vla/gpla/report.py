"""The page of the rounds, `gpla.html` in their folder: how scores and pairs went, and examples to read.

Everything is read from candidates and metrics, so the page can be made at any time. The same files give the same bytes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from la4vla import manifest
from la4vla.config import GplaConfig
from la4vla.gpla.candidates import LEFT_OUT, JudgedPrompt, from_jsonl
from la4vla.gpla.learner import CANDIDATES
from la4vla.gpla.prompts import ClipStarts
from la4vla.page import page
from la4vla.page.strips import strip
from la4vla.page.style import INK, rendered, style
from la4vla.types import UserError

PAGE = "gpla.html"
TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 6  # prompts shown of the first and of the last round
ROWS = 100  # rounds in the table at most


@dataclass(frozen=True)
class RoundNumbers:
    """A round; means of what was judged, None where nothing was.

    pairs       prompts whose pair counts
    left_out    word of LEFT_OUT -> prompts
    mean        score of a sentence
    chosen      score of a chosen sentence
    rejected    of a rejected one
    distinct    different sentences of a prompt
    tokens      of a sentence
    unfinished  share of sentences that candidates.max_tokens cut off
    """

    number: int
    prompts: int
    pairs: int
    left_out: dict[str, int]
    mean: float | None
    chosen: float | None
    rejected: float | None
    distinct: float
    tokens: float
    unfinished: float

    @staticmethod
    def of(rows: Sequence[JudgedPrompt]) -> RoundNumbers:
        every = [item for row in rows for item in row.candidates]
        pairs = [row for row in rows if not row.left_out]
        return RoundNumbers(
            number=rows[0].round,
            prompts=len(rows),
            pairs=len(pairs),
            left_out={why: sum(row.left_out == why for row in rows) for why in LEFT_OUT},
            mean=_mean([item.score for item in every]),
            chosen=_mean([row.candidates[row.chosen].score for row in pairs if row.chosen is not None]),
            rejected=_mean([row.candidates[row.rejected].score for row in pairs if row.rejected is not None]),
            distinct=statistics.fmean(len({item.text for item in row.candidates}) for row in rows),
            tokens=statistics.fmean(len(item.ids) for item in every),
            unfinished=sum(item.ended == "length" for item in every) / len(every),
        )


def report(config: GplaConfig) -> Path:
    """Writes the page and returns its path. Raises UserError before the first round is sampled."""
    folder = Path(config.dir)
    files = sorted((folder / CANDIDATES).glob("round_*.jsonl"))
    if not files:
        raise UserError(f"{folder}: no candidates in it yet; run `la4vla gpla rounds CONFIG` first.")
    rounds = [RoundNumbers.of(from_jsonl(path.read_bytes(), str(path))) for path in files]
    ends = [(path, from_jsonl(path.read_bytes(), str(path))) for path in dict.fromkeys((files[0], files[-1]))]
    values = {
        "title": f"GPLA: {folder.name}",
        "config": config,
        "rounds": [asdict(one) for one in _some(rounds)],
        "count": len(rounds),
        "left_out": LEFT_OUT,
        "figure": page.data_uri("image/svg+xml", _figure(rounds, _losses(folder))),
        "examples": [{"number": rows[0].round, "rows": _examples(config, rows)} for _, rows in ends],
    }
    path = folder / PAGE
    page.write(path, page.render(TEMPLATES, "gpla.html.j2", values))
    return path


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _some(rounds: Sequence[RoundNumbers]) -> list[RoundNumbers]:
    """At most ROWS of them, evenly spaced, the first and the last among them."""
    if len(rounds) <= ROWS:
        return list(rounds)
    places = {round(place * (len(rounds) - 1) / (ROWS - 1)) for place in range(ROWS)}
    return [rounds[place] for place in sorted(places)]


def _losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss of pairs) of the lines of metrics.jsonl that have one."""
    path = folder / manifest.METRICS
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(line["step"], line["loss/preference"]) for line in lines if line.get("loss/preference") is not None]


def _examples(config: GplaConfig, rows: Sequence[JudgedPrompt]) -> list[dict[str, Any]]:
    """The first prompts of a round, each with its image and its sentences from the best to the worst."""
    asked = config.candidates
    views = asked.views or list(ClipStarts(asked.clips, (), config.seed).index.views)
    starts = ClipStarts(asked.clips, views, config.seed)
    prompts = config.prefer.prompts or config.prefer.steps * config.prefer.global_batch
    found = {start.key: start for start in starts.read(rows[0].round * prompts, len(rows))}
    shown = []
    for row in rows[:EXAMPLES]:
        start = found[row.key]
        scores = [float("-inf") if item.score is None else item.score for item in row.candidates]
        judged = [(place, row.candidates[place]) for place in sorted(range(len(scores)), key=lambda n: -scores[n])]
        marks = {row.chosen: "chosen", row.rejected: "rejected", None: ""}
        shown.append(
            {
                "key": row.key,
                "task": row.task,
                "instruction": start.instruction,
                "strips": [strip(view, {0: start.jpegs[view]}) for view in views],
                "left_out": LEFT_OUT[row.left_out] if row.left_out else "",
                "sentences": [
                    {"text": item.text, "score": item.score, "mark": marks.get(number, "")} for number, item in judged
                ],
            }
        )
    return shown


def _figure(rounds: Sequence[RoundNumbers], losses: Sequence[tuple[int, float]]) -> bytes:
    """Scores by round, and the loss of pairs by step."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({**style(9), "svg.hashsalt": PAGE}):
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        numbers = [one.number for one in rounds]
        for name, color in (("chosen", "#2f81f7"), ("mean", INK), ("rejected", "#d97706")):
            heights = [asdict(one)[name] for one in rounds]
            shown = [float("nan") if value is None else value for value in heights]
            left.plot(numbers, shown, color=color, label=name, marker="o", markersize=2)
        for panel in (left, right):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set_xlabel("round")
        left.set_ylabel("score")
        left.legend(frameon=False, labelcolor=INK)
        if losses:
            right.plot(*zip(*losses, strict=True), color="#2f81f7")
        right.set_xlabel("step")
        right.set_ylabel("preference loss")
        return rendered(figure)
