"""Rows through a model, always so many at once: what a row gives does not depend on what it is asked with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")

ROWS = 32
"""At once. Matrix products of another shape round otherwise, so a last part is filled up with copies."""


def in_fixed_parts(items: Sequence[Item], embed: Callable[[list[Item]], Tensor]) -> np.ndarray:
    """float32 [items, D]. embed: ROWS of them -> [ROWS, D]. At least one item."""
    parts = []
    for first in range(0, len(items), ROWS):
        part = list(items[first : first + ROWS])
        filled = part + [part[0]] * (ROWS - len(part))
        with torch.no_grad():
            parts.append(embed(filled)[: len(part)].float().cpu().numpy())
    return np.concatenate(parts)


def each_once(
    items: Sequence[Item], key: Callable[[Item], Hashable], embed: Callable[[list[Item]], Tensor]
) -> np.ndarray:
    """float32 [items, D], where items of one key are embedded once."""
    places: dict[Hashable, int] = {}
    distinct: list[Item] = []
    numbers = []
    for item in items:
        name = key(item)
        if name not in places:
            places[name] = len(distinct)
            distinct.append(item)
        numbers.append(places[name])
    return in_fixed_parts(distinct, embed)[numbers]
