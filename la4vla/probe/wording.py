"""Other sentences for a case: the same command in the opposite direction, and the same command in other words."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from la4vla.construct.vocabulary import DIRECTION_SPELLINGS, DIRECTIONS, PHRASINGS, named_direction
from la4vla.directions import arms_named

SWAPS = {
    **{pair[end]: pair[1 - end] for pair in DIRECTIONS for end in (0, 1)},
    **{"forwards": "backwards", "backwards": "forwards", "leftward": "rightward", "rightward": "leftward"},
    **{"upward": "downward", "downward": "upward", "upwards": "downwards", "downwards": "upwards"},
    **{"lift": "lower", "raise": "lower", "lower": "lift", "ascend": "descend", "descend": "ascend"},
}
"""Direction word -> the one of the same form and the opposite direction."""

SYNONYMS = {
    **{"move": "bring", "bring": "move", "transport": "carry", "carry": "transport", "lift": "raise", "raise": "lift"},
    **{"lower": "bring down", "ascend": "move up", "descend": "move down"},
}
"""Verb -> another for the same motion."""

FIELDS = {
    "way": r"(?:slightly )?[a-z]+(?: and [a-z]+)?",
    "grip": r"(?:open |empty |closed )?",
    "turn": r".+",
    "acting": r"[a-z]+",
}
_WORDS = "|".join(sorted(DIRECTION_SPELLINGS, key=len, reverse=True))
DIRECTION_WORD = re.compile(rf"\b(?:{_WORDS})\b(?![ -]+arms?\b)", re.IGNORECASE)
ARM_FIRST = re.compile(r"(with (?:the (?:left|right) arm|both arms), )(.+)", re.IGNORECASE)


def opposite(instruction: str) -> str:
    """The instruction with every direction word swapped for its opposite; all else is untouched."""
    return DIRECTION_WORD.sub(lambda match: _like(match[0], SWAPS[match[0].lower()]), instruction)


def only_direction(instruction: str) -> tuple[int, int] | None:
    """(axis of (forward, left, up), sign) if the instruction names exactly one direction, and does not contradict
    itself; else None."""
    named_3 = named_direction(instruction)
    axes = np.flatnonzero(named_3)
    said = {DIRECTION_SPELLINGS[word.lower()] for word in DIRECTION_WORD.findall(instruction)}
    return (int(axes[0]), int(named_3[axes[0]])) if len(axes) == len(said) == 1 else None


def paraphrase(instruction: str, draw: float) -> str:
    """The same command in other words, chosen by draw in [0, 1): another phrasing of the vocabulary where the sentence
    is one of its own, else another verb, else other spellings of its direction words. The arm that it begins with stays
    in front."""
    if (of_arm := ARM_FIRST.fullmatch(instruction)) is not None and len(arms_named(of_arm[2])) == 0:
        return of_arm[1] + paraphrase(of_arm[2], draw)
    for options in PHRASINGS.values():
        for number, template in enumerate(options):
            match = _pattern(template).fullmatch(instruction.strip().rstrip(".").lower())
            if match is None:
                continue
            fields = match.groupdict()
            fitting = [
                other
                for place, other in enumerate(options)
                if place != number and set(_names(other)) <= fields.keys() and _tells(template, other, fields)
            ]
            if fitting:
                return fitting[int(draw * len(fitting))].format(**fields)
    for verb, other in SYNONYMS.items():
        verb_pattern = re.compile(rf"\b{verb}\b", re.IGNORECASE)
        if verb_pattern.search(instruction):
            return verb_pattern.sub(lambda match, other=other: _like(match[0], other), instruction, count=1)
    return DIRECTION_WORD.sub(lambda match: _like(match[0], _respelled(match[0].lower(), draw)), instruction)


def _respelled(word: str, draw: float) -> str:
    same = [
        other for other in SWAPS if other not in SYNONYMS and DIRECTION_SPELLINGS[other] == DIRECTION_SPELLINGS[word]
    ]
    others = [other for other in same if other != word]
    return others[int(draw * len(others))]


def _tells(template: str, other: str, fields: dict[str, str]) -> bool:
    """Whether `other` says everything that `template` says with these fields."""
    return all(name in _names(other) for name in _names(template) if fields[name])


def _names(template: str) -> list[str]:
    return re.findall(r"{(\w+)}", template)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w+)}", template)
    text = "".join(f"(?P<{part}>{FIELDS[part]})" if odd % 2 else re.escape(part) for odd, part in enumerate(parts))
    return re.compile(text)


def _like(model: str, word: str) -> str:
    return word.capitalize() if model[0].isupper() else word
