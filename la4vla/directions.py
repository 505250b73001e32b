"""Words for directions, as the robot sees them: forward is away from its base, left is its own left. And words that say
which of two arms is meant, in which `left` and `right` are no directions."""

from __future__ import annotations

import re

from la4vla.types import ARMS

DIRECTIONS = (("forward", "backward"), ("left", "right"), ("up", "down"))
"""Canonical words of the positive and negative ends of (forward, left, up)."""

DIRECTION_SPELLINGS = {
    **{word: (axis, 1 - 2 * end) for axis, ends in enumerate(DIRECTIONS) for end, word in enumerate(ends)},
    **{"forwards": (0, 1), "backwards": (0, -1), "leftward": (1, 1), "rightward": (1, -1), "upward": (2, 1)},
    **{"upwards": (2, 1), "downward": (2, -1), "downwards": (2, -1), "lift": (2, 1), "raise": (2, 1)},
    **{"lower": (2, -1), "ascend": (2, 1), "descend": (2, -1)},
}
"""Word -> (axis of (forward, left, up), sign), verbs with a direction of their own included."""

IN_A_PLANE = {"top": "bottom", "bottom": "top", "above": "below", "below": "above"}
"""Words for directions on a table or in a picture, which are not among a hand's own -> their opposites."""

WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
ARM = re.compile(r"\b(left|right|both)[ -]+(arms?)\b", re.IGNORECASE)
ARM_WORDS = frozenset({"left-arm", "right-arm", "both-arms"})


def words_of(sentence: str) -> list[str]:
    """The words of a sentence in lower case. `object's` becomes `object`; numbers are left out. `left arm` is the one
    word `left-arm`, which is no direction."""
    return WORD.findall(ARM.sub(r"\1-\2", re.sub(r"['\u2019]s\b", "", sentence.lower())))


def arms_named(sentence: str) -> tuple[str, ...]:
    """Of two arms those that a sentence names, `left` before `right`; empty if it names none."""
    said = {match[1].lower() for match in ARM.finditer(sentence)}
    return ARMS if "both" in said else tuple(arm for arm in ARMS if arm in said)
