"""The wordings of questions, and the words of the few answers that have a form of their own.

One file has the texts, so that a policy asks what its model was trained on, to the letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from la4vla.types import Turn

FILE = Path(__file__).parent / "wordings.yaml"
YES, NO = "yes", "no"


def wordings(question: str, form: str = "", held_out: bool = False) -> tuple[str, ...]:
    """All wordings of a type of question, with `{names}` to be filled in.

    form: of the action text, for `actions` and `direct`. held_out: those that are never trained on. Raises KeyError for
    what does not exist.
    """
    entry = _all()[question]
    return tuple((entry[form] if form else entry)["held_out" if held_out else "trained"])


def ask(question: str, form: str = "", held_out: bool = False, draw: float = 0.0, **fields: str) -> str:
    """A question in words. draw: in [0, 1), chooses the wording; 0 is the one that policies use. fields: filled in."""
    options = wordings(question, form, held_out)
    return options[int(draw * len(options))].format(**fields)


def system(question: str, **fields: str) -> str:
    """What stands in a system turn before a question of this type; empty for most. fields: as of `ask`. They lose their
    full stop: the sentence that holds them has one."""
    stripped = {name: text.strip().removesuffix(".") for name, text in fields.items()}
    return _all()[question].get("system", "").format(**stripped)


def turns(question: str, shown: Sequence[int], **fields: str) -> tuple[Turn, ...]:
    """A question as policies put it: its system turn, where it has one, and the user's with the images `shown`."""
    before = system(question, **fields)
    asked = Turn("user", ask(question, "", False, 0.0, **fields), tuple(shown))
    return (Turn("system", before), asked) if before else (asked,)


def with_hand(text: str, place_3: tuple[float, float, float], opening: float | None) -> str:
    """A question with where the hand is, for models that are told.

    place_3: forward, left, up of the robot's base, m. opening: of the gripper, 1 open and 0 closed; None: it has none.
    """
    forward, left, up = (round(100 * value) for value in place_3)
    gripper = "" if opening is None else f", gripper {round(opening)}"
    return f"{text} The hand is at {forward} cm forward, {left} cm left, {up} cm up{gripper}."


@cache
def _all() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
