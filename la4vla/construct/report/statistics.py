"""Statistics: every number of the report, counted from the ledgers and the reviews as they are.

Nothing is computed anew. A step that has not run yet has no rows, so a report may be drawn at any time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from la4vla.construct import steps
from la4vla.construct.ledger import LedgerRow
from la4vla.construct.propose.candidates import Candidate, candidates_of
from la4vla.construct.readers.checks import task_name
from la4vla.construct.review import agreement
from la4vla.construct.scores import QUALITIES, Score
from la4vla.data.inspect.contents import Label, contents, sizes

PAPER = {
    "original": {"clips": 9560, "frames": 2751615},
    "candidates": {"clips": 56899, "frames": 2551102},
    "kept": {"clips": 33116, "frames": 1524990},
}
"""Table 3 of the paper (FACTS 1.3.6)."""

PAPER_FPS = 15.0  # frames a second of DROID (FACTS 1.3.6)
PAPER_TOKENS = {"in": 4633.0, "out": 354.0}
"""Tokens of an episode, Qwen3-VL-Plus (FACTS 1.3.4)."""

REASONS = 20  # the most that are listed
GROUNDED_SHARES = (5, 50, 95)  # percent of the candidates below
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class LedgerRows:
    """The rows of all ledgers by episode key, in the dataset's order.

    episodes      rows of `read` without faults
    faulty        rows of `read` with faults
    keyframes, candidates, kept    rows of the later steps, of episodes without faults
    """

    episodes: Mapping[str, LedgerRow]
    faulty: Mapping[str, LedgerRow]
    keyframes: Mapping[str, LedgerRow]
    candidates: Mapping[str, LedgerRow]
    kept: Mapping[str, LedgerRow]

    @staticmethod
    def of(ledgers: Mapping[str, Sequence[LedgerRow]]) -> LedgerRows:
        """ledgers: name of steps (READ ...) -> steps.rows of it."""
        read = {row["key"]: row for row in ledgers[steps.READ]}
        good = {key: row for key, row in read.items() if not row["faults"]}

        def later(name: str) -> dict[str, LedgerRow]:
            return {row["key"]: row for row in ledgers[name] if row["key"] in good}

        faulty = {key: row for key, row in read.items() if row["faults"]}
        return LedgerRows(good, faulty, later(steps.KEYFRAMES), later(steps.CANDIDATES), later(steps.KEPT))

    def proposed(self) -> dict[str, Candidate]:
        """The present candidates, by candidate_key."""
        return {key: item for row in self.candidates.values() for key, item in candidates_of(row).items()}


def statistics(
    rows: LedgerRows,
    scores: Sequence[Score],
    outdated: int,
    paid: tuple[int, int, int],
    seed: int,
    grounded: Sequence[LedgerRow] = (),
) -> dict[str, Any]:
    """All numbers of the report, JSON-able.

    scores: those that count now (steps.reviewed). outdated: number of other scores. paid: calls, input tokens and
    output tokens that the dataset has cost (Responses.paid). seed: for the interval of alpha. grounded: rows of
    steps.GROUNDED. Raises UserError if there are scores and the `krippendorff` library is not installed.
    """
    candidates, kept = _labels(rows, rows.candidates, "candidates"), _labels(rows, rows.kept, "kept")
    return {
        "phases": _phases(rows, candidates, kept),
        "paper": _paper(),
        "clips": contents(kept),
        "candidates": contents(candidates),
        "dropped": dict(sum((Counter(row["dropped"]) for row in rows.kept.values()), Counter[str]())),
        "frames": _frames(rows),
        "keyframes": _keyframes(rows),
        "automatic": _automatic(rows),
        "grounding": _grounding(rows, grounded),
        "unusable": _unusable(rows),
        "review": _review(rows, scores, outdated, seed),
        "tokens": _tokens(rows, paid),
        "tasks": _tasks(rows),
        "episodes": [_episode(rows, key) for key in [*rows.episodes, *rows.faulty]],
    }


def _labels(rows: LedgerRows, ledger: Mapping[str, LedgerRow], name: str) -> list[Label]:
    """The spans of all rows. name: `candidates` or `kept`. A candidate's quality is its automatic score."""
    return [
        Label(
            item["primitive"],
            item["status"],
            item["instruction"],
            item["end"] - item["start"],
            rows.episodes[key]["fps"],
            item["quality"] if name == "kept" else item["score"],
        )
        for key, row in ledger.items()
        for item in row[name]
    ]


def _phases(rows: LedgerRows, candidates: Sequence[Label], kept: Sequence[Label]) -> dict[str, Any]:
    """Table 3 of the paper for this dataset, with its ratios."""
    demonstrations = [Label("", "", "", row["frames"], row["fps"], 0.0) for row in rows.episodes.values()]
    return _ratios({"original": sizes(demonstrations), "candidates": sizes(candidates), "kept": sizes(kept)})


def _paper() -> dict[str, Any]:
    """Table 3 of the paper with the paper's own numbers."""
    phases = {}
    for name, row in PAPER.items():
        mean = row["frames"] / row["clips"]
        phases[name] = {**row, "frames_per_clip": mean, "seconds_per_clip": mean / PAPER_FPS}
    return {**_ratios(phases), "tokens_per_episode": PAPER_TOKENS}


def _ratios(phases: dict[str, Any]) -> dict[str, Any]:
    original, candidates, kept = (phases[name]["clips"] for name in ("original", "candidates", "kept"))
    return {
        **phases,
        "candidates_per_episode": _share(candidates, original),
        "retention": _share(kept, candidates),
        "kept_per_episode": _share(kept, original),
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _frames(rows: LedgerRows) -> dict[str, int]:
    """Counts each frame once: kept, in dropped candidates only, or in no candidate (waits and gaps)."""
    total = kept = discarded = 0
    for key, episode in rows.episodes.items():
        state_T = np.zeros(episode["frames"], np.int8)
        for item in rows.candidates[key]["candidates"] if key in rows.candidates else ():
            state_T[item["start"] : item["end"]] = 1
        for item in rows.kept[key]["kept"] if key in rows.kept else ():
            state_T[item["start"] : item["end"]] = 2
        total += len(state_T)
        discarded += int((state_T == 1).sum())
        kept += int((state_T == 2).sum())
    return {"all": total, "kept": kept, "discarded": discarded, "in_no_candidate": total - kept - discarded}


def _keyframes(rows: LedgerRows) -> dict[str, Any]:
    """Counts a kind, and the mean, least and most an episode."""
    kinds = Counter(item[1] for row in rows.keyframes.values() for item in row["keyframes"])
    counts = [len(row["keyframes"]) for row in rows.keyframes.values()]
    return {
        "kinds": dict(sorted(kinds.items())),
        "per_episode": {"mean": float(np.mean(counts)), "min": min(counts), "max": max(counts)} if counts else None,
    }


def _automatic(rows: LedgerRows) -> dict[str, Any]:
    """reasons: with their numbers taken out, the most frequent first; a candidate may have several."""
    all_reasons = [
        [NUMBER.sub("#", reason) for reason in item["reasons"]]
        for row in rows.candidates.values()
        for item in row["candidates"]
    ]
    counts = Counter(reason for reasons in all_reasons for reason in set(reasons))
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:REASONS]
    return {"reasons": [{"reason": reason, "candidates": count} for reason, count in top]}


def _grounding(rows: LedgerRows, grounded: Sequence[LedgerRow]) -> dict[str, Any] | None:
    """What the second judge says of the candidates, by the score of the first; None where it was not asked."""
    found = {key: score for row in grounded for key, score in row["scores"].items()}
    by_rules: dict[float, list[float]] = {}
    for key, item in rows.proposed().items():
        if key in found:
            by_rules.setdefault(item.score, []).append(found[key])
    if not by_rules:
        return None
    return {
        "scorer": grounded[0]["scorer"],
        "by_rules": [
            {
                "rules": rules,
                "candidates": len(values),
                "mean": float(np.mean(values)),
                **{f"p{share}": float(np.quantile(values, share / 100)) for share in GROUNDED_SHARES},
            }
            for rules, values in sorted(by_rules.items())
        ],
    }


def _unusable(rows: LedgerRows) -> dict[str, int]:
    """Numbers of the proposer's unusable answers, and of the episodes without proposals."""
    return {
        "answers": sum(len(row["rejected"]) for row in rows.candidates.values()),
        "episodes": sum(bool(row["failed"]) for row in rows.candidates.values()),
    }


def _review(rows: LedgerRows, scores: Sequence[Score], outdated: int, seed: int) -> dict[str, Any] | None:
    """What people scored and how they agree; None if there is no score."""
    if not scores:
        return None
    proposed = rows.proposed()
    agreed = agreement.measure(scores, proposed, seed)
    spans = {key: (item.start, item.end) for key, item in proposed.items()}
    names = sorted({score.annotator for score in scores})
    return {
        **asdict(agreed),
        "band": agreed.band,
        "outdated": outdated,
        "candidates": len(proposed),
        "nudged": len({score.candidate for score in scores if (score.start, score.end) != spans[score.candidate]}),
        "qualities": [{"quality": q, "scores": sum(score.quality == q for score in scores)} for q in QUALITIES],
        "annotators": [_annotator(name, [score for score in scores if score.annotator == name]) for name in names],
    }


def _annotator(name: str, scores: Sequence[Score]) -> dict[str, Any]:
    return {
        "name": name,
        "scores": len(scores),
        "quality": float(np.mean([score.quality for score in scores])),
        "confidence": float(np.mean([score.confidence for score in scores])),
    }


def _tokens(rows: LedgerRows, paid: tuple[int, int, int]) -> dict[str, Any]:
    """What the dataset has cost since it exists. A ledger's row holds only what its last making cost."""
    made = list(rows.candidates.values())
    totals = dict(zip(("calls", "tokens_in", "tokens_out"), paid, strict=True))
    each = {f"{name}_per_episode": _share(total, len(made)) for name, total in totals.items()}
    return {"proposers": sorted({row["proposer"] for row in made}), "episodes": len(made), **totals, **each}


def _tasks(rows: LedgerRows) -> list[dict[str, Any]]:
    by_task: dict[str, list[dict[str, Any]]] = {}
    sentences: dict[str, str] = {}
    for key, row in rows.episodes.items():
        by_task.setdefault(row["task"], []).append(_episode(rows, key))
        sentences.setdefault(row["task"], row["instruction"])
    tasks = []
    for task, episodes in sorted(by_task.items()):
        totals = {
            name: sum(item[name] for item in episodes) for name in ("frames", "candidates", "kept", "kept_frames")
        }
        per_clip = _share(totals["kept_frames"], totals["kept"])
        ratios = {"retention": _share(totals["kept"], totals["candidates"]), "frames_per_clip": per_clip}
        names = {"task": task, "name": task_name(task, sentences[task])}
        tasks.append({**names, "episodes": len(episodes), **totals, **ratios})
    return tasks


def _episode(rows: LedgerRows, key: str) -> dict[str, Any]:
    read = rows.episodes[key] if key in rows.episodes else rows.faulty[key]
    candidates = rows.candidates[key]["candidates"] if key in rows.candidates else ()
    kept = rows.kept[key]["kept"] if key in rows.kept else ()
    return {
        "key": key,
        "task": read["task"],
        "frames": read["frames"],
        "keyframes": len(rows.keyframes[key]["keyframes"]) if key in rows.keyframes else 0,
        "candidates": len(candidates),
        "kept": len(kept),
        "kept_frames": sum(item["end"] - item["start"] for item in kept),
        "rejected": rows.candidates[key]["rejected"] if key in rows.candidates else [],
        "failed": rows.candidates[key]["failed"] if key in rows.candidates else "",
        "faults": read["faults"],
        "notes": sorted({note["kind"] for note in read["notes"]}),
    }
