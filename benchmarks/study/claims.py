"""Claims that a study judges, and how its page begins: with what came out otherwise than in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

UNDECIDED = "Nothing that the rows so far decide."


@dataclass(frozen=True)
class Claim:
    """A sign.

    better  the condition, or arm, that is ahead of `worse` in `column`
    says    the claim in words
    where   in the paper, or `asked here` for what it does not measure
    lower   ahead means less
    """

    better: str
    worse: str
    column: str
    says: str
    where: str
    lower: bool = False


class JudgedClaims(NamedTuple):
    """Claims as sentences, by what the rows say of them."""

    met: list[str]
    against: list[str]
    undecided: list[str]

    def lines(self, met: str) -> list[str]:
        """As Markdown. met: the heading of those that are met."""
        return [
            "",
            "## What came out otherwise than in the paper",
            "",
            *_listed(self.against, UNDECIDED),
            "",
            met,
            "",
            *_listed(self.met, UNDECIDED),
            "",
            "Open, since the interval holds zero or rows are missing:",
            "",
            *_listed(self.undecided, "Nothing."),
        ]


def _listed(sentences: Sequence[str], otherwise: str) -> list[str]:
    return [f"- {sentence[:1].upper()}{sentence[1:]}" for sentence in sentences] or [otherwise]
