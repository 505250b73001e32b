"""Words for directions, as the robot sees them: forward is away from its base, left is its own left."""

from __future__ import annotations

import re

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


def words_of(sentence: str) -> list[str]:
    """The words of a sentence in lower case. `object's` becomes `object`; numbers are left out."""
    return WORD.findall(re.sub(r"['\u2019]s\b", "", sentence.lower()))
