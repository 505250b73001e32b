"""Sentences about two arms: which arm a sentence means, and what it says of each.

`with the left arm, lift the held object up` is about one arm, `with both arms, move the gripper up` says the same of
both, `with the left arm, move left, and with the right arm, move up` something else of each.
"""

from __future__ import annotations

import re

from la4vla.construct.vocabulary import VERBS
from la4vla.directions import ARM, arms_named, words_of
from la4vla.types import ARMS

BOTH = "both"
_MENTION = re.compile(rf"(?:\b(?:with|by|using)\s+(?:(?:the|its)\s+)?)?{ARM.pattern}", re.IGNORECASE)


def with_arm(arm: str, sentence: str) -> str:
    """The sentence, said of one arm."""
    return f"with the {arm} arm, {sentence}"


def with_both(left: str, right: str) -> str:
    """What each arm does, in one sentence."""
    if left == right:
        return f"with both arms, {left}"
    return f"{with_arm(ARMS[0], left)}, and {with_arm(ARMS[1], right)}"


def arm_of(sentence: str) -> str:
    """left, right or both; empty if the sentence names no arm."""
    named = arms_named(sentence)
    return BOTH if len(named) == len(ARMS) else "".join(named)


def said_of(sentence: str) -> dict[str, str]:
    """Arm -> the part of the sentence that is about it.

    An arm may be named in front of what it does or behind it, in the whole sentence alike.
    """
    named = arms_named(sentence)
    mentions = [match for match in _MENTION.finditer(sentence) if match[1].lower() != BOTH]
    if len(named) < len(ARMS) or {match[1].lower() for match in mentions} != set(ARMS):
        return dict.fromkeys(named, sentence)
    in_front = not VERBS & set(words_of(sentence[: mentions[0].start()]))
    starts = [match.start() for match in mentions] if in_front else [0, *(match.end() for match in mentions[:-1])]
    ends = [*starts[1:], len(sentence)]
    parts: dict[str, str] = {}
    for match, start, end in zip(mentions, starts, ends, strict=True):
        arm = match[1].lower()
        parts[arm] = f"{parts.get(arm, '')} {sentence[start:end]}".strip(" ,.")
    return parts
