"""Instructions in other languages, and with renamed objects: written sentences, not rules. wordings.yaml has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import yaml

from la4vla.types import UserError

FILE = Path(__file__).parent / "wordings.yaml"
LANGUAGES = ("es", "zh", "hi")
RENAMED = ("synonym", "description", "association")


def reworded(instruction: str, how: str) -> str:
    """The instruction in a language of LANGUAGES, or renamed as RENAMED says. Raises UserError for one that the file
    does not have."""
    entry = _all().get(instruction.strip().rstrip("."))
    if entry is None:
        raise UserError(
            f"`{instruction}` has no other wordings; add them to {FILE.parent.name}/{FILE.name}, or leave translation "
            "and renamed out."
        )
    return entry[how]


def check(instructions: Iterable[str]) -> None:
    """Raises UserError for the first instruction that the file does not have."""
    for instruction in instructions:
        reworded(instruction, LANGUAGES[0])


@cache
def _all() -> Mapping[str, Mapping[str, str]]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
