"""What a value may be: one of a few, or in an interval. Raises UserError with the cure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from la4vla.types import UserError


def within(prefix: str, values: Mapping[str, Any], intervals: Mapping[str, str]) -> None:
    """Those of `values` that have an interval must lie in it; NaN lies nowhere."""
    for key in (key for key in values if key in intervals):
        value, interval = values[key], intervals[key]
        low, high = map(float, interval[1:-1].split(","))
        if not (low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")):
            raise UserError(f"{prefix}{key} is {value}; it must be in {interval}.")


def choice(key: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        nearest = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1, cutoff=0.0)
        hint = f"; the nearest is `{nearest[0]}`" if nearest else ""
        raise UserError(f"{key}: `{value}` is not one of {', '.join(map(str, allowed)) or 'none at all'}{hint}.")
