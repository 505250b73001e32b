"""What the two judges of a construction catch: clips that were spoiled on purpose, at the same loss of good ones.

Good are the candidates that the rules pass (filter.min_quality), so the rules lose none of them at their usual
threshold. Each is spoiled in three ways, where it can be:

    words   every direction word is turned around
    span    the same words about a span half its length later, or earlier where there is no room
    status  the object is in the gripper where it was not, or the other way round: label, status and words

A judge's threshold is as high as it can be while at most LOSS of the good ones lie below it. Both: the rules at theirs,
and the second judge at the highest threshold with which both together lose no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import stats
from la4vla import __version__
from la4vla.config import ConstructConfig
from la4vla.construct import steps
from la4vla.construct.episodes import Episode
from la4vla.construct.propose import judge
from la4vla.construct.propose.candidates import Candidate, Proposal, candidates_of
from la4vla.construct.readers import open_dataset
from la4vla.construct.second_judge import SecondJudge
from la4vla.construct.vocabulary import phrase, way
from la4vla.directions import IN_A_PLANE, WORD
from la4vla.page import page
from la4vla.probe.wording import opposite
from la4vla.types import UserError

LOSS = 0.05  # of the good clips
RULES, GROUNDING, BOTH = "rules", "grounding", "both"
WORDS, SPAN, STATUS = "words", "span", "status"
SPOILS = (WORDS, SPAN, STATUS)
LEVELS_OF_RULES = (0.5, 1.5, 2.5, 3.5)  # between the scores 0 .. 3

OTHER_STATUS = {
    **{"move": "transport", "transport": "move", "lift": "move", "lower": "move", "grasp": "place", "place": "grasp"},
    **{"wrist_rotate": "rotate_free", "rotate_free": "wrist_rotate"},
    **{"reorient": "reorient_free", "reorient_free": "reorient"},
}
"""Primitive -> the one of the same motion with the other status."""
CLOCKWISE = re.compile(r"counter-?clockwise|clockwise")


@dataclass(frozen=True)
class JudgedClip:
    """What both judges say.

    rules      0 .. 3
    grounding  on its scorer's scale; None without a second judge
    """

    rules: float
    grounding: float | None


def measure(config: ConstructConfig, out: Path | None = None) -> dict[str, Any]:
    """Brings the candidates of a construct config up to date, spoils the good ones and asks both judges.

    out: gets the result as JSON. Raises UserError where nothing is good.
    """
    dataset = open_dataset(config)
    ledger = steps.propose(config, dataset, steps.detect_keyframes(config, dataset, steps.read(config, dataset)))
    second = SecondJudge(config.grounding) if config.grounding.scorer else None
    good: list[JudgedClip] = []
    spoiled: dict[str, list[JudgedClip]] = {name: [] for name in SPOILS}
    for row in steps.rows(ledger, dataset):
        chosen = [item for item in candidates_of(row).values() if item.score >= config.filter.min_quality]
        if not chosen:
            continue
        episode = dataset.read(row["key"])
        good += _asked(episode, chosen, config, second)
        for name in SPOILS:
            worse = [made for item in chosen if (made := spoil(item, name, len(episode), config)) is not None]
            spoiled[name] += _asked(episode, worse, config, second)
    if not good:
        raise UserError(f"{config.out_dir}: no candidate reaches filter.min_quality; lower it, or propose others.")
    numbers = {
        "la4vla": __version__,
        "scorer": second.scorer.name if second else "",
        "loss": LOSS,
        "good": len(good),
        "judges": caught(good, spoiled),
    }
    if out is not None:
        page.write(out, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    return numbers


def spoil(item: Candidate, how: str, frames: int, config: ConstructConfig) -> Proposal | None:
    """The candidate made wrong; None where this spoils nothing. frames: of the episode."""
    if how == WORDS:
        turned = turned_around(item.instruction)
        return None if turned == item.instruction else _proposal(item, instruction=turned)
    if how == SPAN:
        length = item.end - item.start
        shift = max(length // 2, 1)
        start = item.start + shift if item.end + shift <= frames else item.start - shift
        return _proposal(item, start=start, end=start + length) if start >= 0 else None
    if item.primitive not in OTHER_STATUS or not item.status:
        return None
    primitive = OTHER_STATUS[item.primitive]
    status = "EMPTY" if item.status == "HOLDING" else "HOLDING"
    return _proposal(item, primitive=primitive, status=status, instruction=_told(primitive, item, config))


def turned_around(sentence: str) -> str:
    """The sentence with every direction word turned around."""
    return WORD.sub(lambda found: IN_A_PLANE.get(found[0].lower(), found[0]), opposite(sentence))


def caught(good: Sequence[JudgedClip], spoiled: Mapping[str, Sequence[JudgedClip]]) -> dict[str, Any]:
    """By judge: its thresholds, the share of good clips that it loses, and by spoil the share that it catches."""
    rules = np.array([one.rules for one in good])
    least = max((level for level in LEVELS_OF_RULES if (rules < level).mean() <= LOSS), default=0.0)
    judges: dict[str, tuple[float, float]] = {RULES: (least, -np.inf)}
    if all(one.grounding is not None for one in good):
        second = np.array([one.grounding for one in good], float)
        judges[GROUNDING] = (0.0, _highest(second, LOSS * len(good)))
        left = LOSS * len(good) - (rules < least).sum()
        judges[BOTH] = (least, _highest(second[rules >= least], left))
    return {
        name: {
            "rules": by_rules,
            "grounding": None if np.isinf(by_score) else float(by_score),
            "lost": asdict(stats.rate([_fails(one, by_rules, by_score) for one in good])),
            "caught": {
                how: asdict(stats.rate([_fails(one, by_rules, by_score) for one in clips]))
                for how, clips in spoiled.items()
                if clips
            },
        }
        for name, (by_rules, by_score) in judges.items()
    }


def table(numbers: Mapping[str, Any]) -> str:
    """For a terminal."""
    found = numbers["judges"]
    spoils = list(next(iter(found.values()))["caught"])
    head = f"{'judge':12}{'good ones lost':>26}" + "".join(f"{f'{name} caught':>26}" for name in spoils)
    lines = [f"{numbers['good']} good clips; second judge: {numbers['scorer'] or 'none'}", head]
    for name, one in found.items():
        cells = [one["lost"], *(one["caught"][how] for how in spoils)]
        lines.append(f"{name:12}" + "".join(f"{stats.Rate(**cell)!s:>26}" for cell in cells))
    return "\n".join(lines)


def _asked(
    episode: Episode, items: Sequence[Proposal], config: ConstructConfig, second: SecondJudge | None
) -> Iterator[JudgedClip]:
    proposals = [_proposal(item) for item in items]
    scores = [item.score for item in judge.judge(proposals, episode, config)]
    if second is None or not proposals:
        return (JudgedClip(score, None) for score in scores)
    named = {f"{episode.key}-{number}": item for number, item in enumerate(proposals)}
    fit = second.scores(episode, named)
    return (JudgedClip(score, fit[key]) for score, key in zip(scores, named, strict=True))


def _fails(one: JudgedClip, by_rules: float, by_score: float) -> bool:
    return one.rules < by_rules or (one.grounding is not None and one.grounding < by_score)


def _highest(scores: np.ndarray, lose: float) -> float:
    """The highest threshold with at most so many scores below it; nothing is below the lowest score."""
    ordered = np.sort(scores)
    return float(ordered[min(int(lose + 1e-9), len(ordered) - 1)]) if len(ordered) else -np.inf


def _proposal(item: Proposal, **changes: Any) -> Proposal:
    """Without what a judge said of it."""
    values = {name: vars(item)[name] for name in Proposal.__dataclass_fields__}
    return replace(Proposal(**values), **changes)


def _told(primitive: str, item: Candidate, config: ConstructConfig) -> str:
    """The sentence of that primitive for the candidate's motion."""
    moved_3 = np.array(item.displacement)
    turn = CLOCKWISE.search(item.instruction)
    still = primitive in ("grasp", "place")
    words = "" if still else way(moved_3, config.propose.second_axis, config.propose.slight_move)
    return phrase(primitive, 0.0, grip="", way=words, turn=turn[0] if turn else "clockwise")
