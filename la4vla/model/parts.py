"""Which weights of another checkpoint a policy begins with, chosen by name: patterns in, a plan out; nothing is loaded.

Names of the checkpoint are renamed first; then those are taken that `take` matches (all of them where it is empty) and
`leave` does not. What is taken must be in the policy with the same shape. Patterns are a shell's: `*` stands for any
characters, dots included, `?` for one, `[0-3]` for one of these. In `rename` only `*` is known, and the new name has
as many of them as the old one.
Refuses: a pattern that matches nothing, two weights under one name, taking nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from la4vla.config import InitPartsConfig
from la4vla.model.base import some
from la4vla.types import UserError

KEY = "run.init_parts"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Parts:
    """What comes from where.

    taken  name in the policy -> name in the checkpoint
    left   name after renaming -> name in the checkpoint, of what is not taken
    fresh  names in the policy that the checkpoint does not give
    """

    taken: Mapping[str, str]
    left: Mapping[str, str]
    fresh: tuple[str, ...]


def choose(stored: Shapes, needed: Shapes, wanted: InitPartsConfig, place: str) -> Parts:
    """stored: shapes in the checkpoint. needed: shapes in the policy. place: where the checkpoint lies, for messages.

    Raises UserError for patterns that match nothing, and where what is taken does not fit.
    """
    names = _renamed(stored, wanted.rename, place)
    for key, patterns in (("take", wanted.take), ("leave", wanted.leave)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise _nothing(key, pattern, names, place)
    chosen = [name for name in names if _matches(name, wanted.take or ["*"]) and not _matches(name, wanted.leave)]
    if not chosen:
        raise UserError(f"{KEY} takes nothing of {place}; leave less, or leave out run.init_from.")
    if homeless := [name for name in chosen if name not in needed]:
        raise UserError(
            f"{KEY} takes {some(homeless)} of {place}, which this model does not have; add them to {KEY}.leave, or "
            f"give them a name of the model with {KEY}.rename."
        )
    other = [name for name in chosen if stored[names[name]] != needed[name]]
    if other:
        first = other[0]
        raise UserError(
            f"{KEY} takes {some(other)} of {place}, which have another shape in this model ({first}: "
            f"{list(stored[names[first]])} there, {list(needed[first])} here); add them to {KEY}.leave, and they begin "
            "fresh."
        )
    taken = {name: names[name] for name in chosen}
    left = {name: old for name, old in names.items() if name not in taken}
    return Parts(taken, left, tuple(name for name in needed if name not in taken))


def _renamed(stored: Collection[str], rename: Mapping[str, str], place: str) -> dict[str, str]:
    """Name after renaming -> name before. The first pattern that matches a name renames it."""
    used: set[str] = set()
    names: dict[str, str] = {}
    for name in stored:
        new = name
        for old, to in rename.items():
            if old.count("*") != to.count("*"):
                raise UserError(f"{KEY}.rename: `{old}` and `{to}` must have the same number of *.")
            if found := re.fullmatch(".*".join(f"({re.escape(part)})" for part in old.split("*")), name):
                new = _filled(to, name, found)
                used.add(old)
                break
        if new in names:
            raise UserError(
                f"{KEY}.rename gives {names[new]} and {name} the same name, {new}; rename one of them only."
            )
        names[new] = name
    for old in rename:
        if old not in used:
            raise _nothing("rename", old, stored, place)
    return names


def _filled(to: str, name: str, found: re.Match[str]) -> str:
    """`to`, with what stood for each * in `name` in its place. found: a group for each part between them."""
    first, *parts = to.split("*")
    gaps = [name[found.end(number) : found.start(number + 1)] for number in range(1, len(parts) + 1)]
    return first + "".join(gap + part for gap, part in zip(gaps, parts, strict=True))


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _nothing(key: str, pattern: str, names: Collection[str], place: str) -> UserError:
    nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
    return UserError(
        f"{KEY}.{key}: `{pattern}` matches no weight of {place}; the nearest names are {', '.join(nearest)}."
    )
