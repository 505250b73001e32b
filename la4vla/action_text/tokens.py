"""`tokens`: `decimals` whose ten digits are tokens of their own (the paper's VLM2VLA-AT, B.3).

Which of a model's tokens they are is the tokenizer's business: it maps these names to its least likely ones. A base
that has unused tokens with names of their own (`<unused6133>`, Gemma 3) can be given those names as `digits`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from la4vla.action_text.codec import check_whole, too_long
from la4vla.action_text.decimals import Decimals
from la4vla.action_text.motion import Motion, Parsed, Written, refused
from la4vla.types import UserError

DIGITS = tuple(f"<digit_{digit}>" for digit in range(10))


@dataclass(frozen=True)
class Tokens:
    """digits: the names of the tokens of 0 to 9."""

    gripper: bool = True
    places: int = 3
    digits: tuple[str, ...] = DIGITS
    name: str = field(default="tokens", init=False)
    version: int = field(default=1, init=False)
    merged: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_whole("places", self.places, 1, 6)
        object.__setattr__(self, "digits", tuple(self.digits))
        clear = all(
            isinstance(name, str)
            and len(name) > 1
            and not name.isdigit()
            and not any(c in "[],.+-" or c.isspace() for c in name)
            for name in self.digits
        )
        if len(set(self.digits)) != 10 or not clear or any(a != b and a in b for a in self.digits for b in self.digits):
            raise UserError(
                "action text: `digits` must be ten different names, none inside another and none with brackets, signs, "
                "points, commas or spaces, such as <digit_0> to <digit_9>."
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.digits

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"places": self.places, "digits": list(self.digits)}

    @property
    def _decimals(self) -> Decimals:
        return Decimals(self.gripper, self.places)

    def encode(self, motion: Motion) -> Written:
        written = self._decimals.encode(motion)
        text = "".join(self.digits[int(letter)] if letter.isdigit() else letter for letter in written.text)
        return Written(text, written.dropped)

    def decode(self, text: str) -> Parsed:
        """Space between tokens is skipped: tokenizers differ in where they put it."""
        if reason := too_long(text):
            return refused(reason)
        value = {name: str(digit) for digit, name in enumerate(self.digits)}
        pieces = re.split(f"({'|'.join(map(re.escape, self.digits))})", "".join(text.split()))
        if any(letter.isdigit() for piece in pieces if piece not in value for letter in piece):
            return refused("the text has digits that are none of the codec's tokens")
        return self._decimals.parse("".join(value.get(piece, piece) for piece in pieces))
