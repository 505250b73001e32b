"""Which pairs of a motion and a sentence are told apart together: arithmetic on a folder's clips, without a buffer.

Group g of a source is a pure function of (seed, source, g). A pass permutes the distinct sentences and cuts them into
groups; those that do not fill one more group are left out of the pass, others in every pass. So a group holds each
sentence at most once, all sentences are drawn equally often, and seeking to any group costs one permutation. In pass p
a sentence stands with its p-th sample: its clips' starts, permuted anew whenever all were taken.
Knows nothing of ranks or steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from la4vla.data.shards.read import ClipPlace
from la4vla.data.transforms import clean_sentence
from la4vla.rng import RngUse, generator
from la4vla.types import UserError


class Pair(NamedTuple):
    """place: of the clip. frame: where the motion starts in it."""

    place: ClipPlace
    frame: int


@dataclass(frozen=True)
class Groups:
    """The groups of a source.

    size       pairs of a group
    sentences  distinct ones, as the model reads them
    places     of each sentence, its clips
    """

    seed: int
    source: str
    size: int
    sentences: tuple[str, ...]
    places: tuple[tuple[ClipPlace, ...], ...]
    _orders: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def per_pass(self) -> int:
        """Groups in which a pass takes every sentence once, but for `left_out` of them."""
        return len(self.sentences) // self.size

    @property
    def left_out(self) -> int:
        return len(self.sentences) % self.size

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Of each sentence."""
        return tuple(int(self._ends(sentence)[-1]) for sentence in range(len(self.sentences)))

    @property
    def too_rare(self) -> list[int]:
        """The sentences that are drawn less often than they occur, the most frequent first."""
        share = sum(self.samples) / len(self.sentences)
        frequent = [number for number, count in enumerate(self.samples) if count > share]
        return sorted(frequent, key=lambda number: -self.samples[number])

    def group(self, number: int) -> list[Pair]:
        """The pairs of group `number`, from 0."""
        turn, within = divmod(number, self.per_pass)
        order = generator(self.seed, RngUse.CONTRAST, self.source, turn).permutation(len(self.sentences))
        return [self._pair(int(sentence), turn) for sentence in order[within * self.size : (within + 1) * self.size]]

    def _pair(self, sentence: int, turn: int) -> Pair:
        ends = self._ends(sentence)
        again, position = divmod(turn, int(ends[-1]))
        if self._orders.get(sentence, (None,))[0] != again:
            draw = generator(self.seed, RngUse.CONTRAST, self.source, self.sentences[sentence], again)
            self._orders[sentence] = again, draw.permutation(int(ends[-1])).astype(np.uint32)
        sample = int(self._orders[sentence][1][position])
        clip = int(np.searchsorted(ends, sample, side="right"))
        first = int(ends[clip - 1]) if clip else 0
        place = self.places[sentence][clip]
        return Pair(place, place.frames[sample - first])

    def _ends(self, sentence: int) -> np.ndarray:
        """int [clips], running sum of their starts."""
        return np.cumsum([len(place.frames) for place in self.places[sentence]])


def make_groups(seed: int, source: str, size: int, places: Sequence[ClipPlace]) -> Groups:
    """The groups of a folder. Instructions that the model reads alike are one sentence.

    Raises UserError where the distinct sentences do not fill a group.
    """
    by_sentence: dict[str, list[ClipPlace]] = defaultdict(list)
    for place in (place for place in places if place.frames):
        by_sentence[clean_sentence(place.instruction)].append(place)
    if len(by_sentence) < size:
        raise UserError(
            f"{source}: its clips have {len(by_sentence)} distinct instructions, and data.contrast_group is {size}, "
            f"in which each occurs at most once; set it to at most {len(by_sentence)}, or add clips with others."
        )
    names = sorted(by_sentence)
    return Groups(seed, source, size, tuple(names), tuple(tuple(by_sentence[name]) for name in names))
