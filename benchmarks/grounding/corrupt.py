"""Pairs spoiled on purpose: one word of a sentence changed, or the motion. A scorer that knows words gives them less.

    reversed_word     every direction word becomes its opposite (top and bottom, too)
    other_primitive   the first verb becomes one of another kind that the folder uses
    other_object      an object becomes another one that the folder names
    other_colour      a colour likewise
    shuffled_actions  the motion of another clip, whose sentence means something else
    negated_actions   every step goes the other way
A deed in which there is nothing to change is left out of that test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from benchmarks.grounding.deeds import ClipDeed, meaning
from la4vla.construct.vocabulary import SCENE, VERB_LABELS
from la4vla.directions import IN_A_PLANE, words_of
from la4vla.probe.wording import opposite
from la4vla.rng import RngUse, generator
from la4vla.types import TRANSLATION, Deed, Embodiment

CORRUPTIONS = (
    *("reversed_word", "other_primitive", "other_object", "other_colour"),
    *("shuffled_actions", "negated_actions"),
)
COLOURS = frozenset(
    (
        *("red", "green", "blue", "yellow", "orange", "purple", "pink", "black", "white", "gray", "grey", "brown"),
        *("cyan", "golden", "silver"),
    )
)
ANY_OBJECT = frozenset(("block", "blocks", "object", "objects", "thing", "things", "one"))
"""Names that may be right for any object."""


class FolderWords:
    """What a folder's sentences are made of.

    verbs    label -> verbs, sorted
    colours  sorted
    objects  nouns behind a colour, and names of things, sorted
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        rows = [words_of(sentence) for sentence in sentences]
        said = {word for row in rows for word in row}
        self.colours = sorted(said & COLOURS)
        behind = {after for row in rows for before, after in pairwise(row) if before in COLOURS}
        self.objects = sorted(((behind - COLOURS) | (said & SCENE)) - ANY_OBJECT)
        first = {next((word for word in row if word in VERB_LABELS), "") for row in rows} - {""}
        self.verbs: dict[str, list[str]] = {}
        for verb in sorted(first):
            self.verbs.setdefault(VERB_LABELS[verb], []).append(verb)


def corrupted(deeds: Sequence[ClipDeed], name: str, embodiment: Embodiment, seed: int) -> list[Deed | None]:
    """One of CORRUPTIONS, of each deed; None where there is nothing to change. A pure function of its arguments."""
    words, meanings = FolderWords([item.deed.sentence for item in deeds]), [item.meaning for item in deeds]
    changed: list[Deed | None] = []
    for number, item in enumerate(deeds):
        draw = generator(seed, RngUse.CORRUPT, name, number)
        if name == "shuffled_actions":
            others = [other for other, one in enumerate(meanings) if one != meanings[number]]
            changed.append(_of_another(deeds, number, others, draw))
        elif name == "negated_actions":
            changed.append(_negated(item.deed, embodiment))
        else:
            sentence = SENTENCES[name](item.deed.sentence, words, draw)
            same = sentence is None or meaning(sentence) == meanings[number]
            changed.append(None if same else replace(item.deed, sentence=sentence))
    return changed


def _reversed(sentence: str, words: FolderWords, draw: np.random.Generator) -> str | None:
    return re.sub(rf"\b(?:{'|'.join(IN_A_PLANE)})\b", lambda match: IN_A_PLANE[match[0]], opposite(sentence))


def _other_primitive(sentence: str, words: FolderWords, draw: np.random.Generator) -> str | None:
    verb = next((word for word in words_of(sentence) if word in VERB_LABELS), None)
    if verb is None:
        return None
    labels = [label for label in words.verbs if label != VERB_LABELS[verb]]
    return _swapped(sentence, verb, words.verbs[labels[int(draw.integers(len(labels)))]], draw) if labels else None


def _other_object(sentence: str, words: FolderWords, draw: np.random.Generator) -> str | None:
    return _swapped_one(sentence, words.objects, draw)


def _other_colour(sentence: str, words: FolderWords, draw: np.random.Generator) -> str | None:
    return _swapped_one(sentence, words.colours, draw)


SENTENCES: dict[str, Callable[[str, FolderWords, np.random.Generator], str | None]] = {
    "reversed_word": _reversed,
    "other_primitive": _other_primitive,
    "other_object": _other_object,
    "other_colour": _other_colour,
}


def _swapped_one(sentence: str, known: Sequence[str], draw: np.random.Generator) -> str | None:
    """The first of the known words in the sentence becomes one that the sentence has not."""
    said = words_of(sentence)
    here, others = [word for word in said if word in known], [word for word in known if word not in said]
    return _swapped(sentence, here[0], others, draw) if here and others else None


def _swapped(sentence: str, word: str, others: Sequence[str], draw: np.random.Generator) -> str:
    other = others[int(draw.integers(len(others)))]
    return re.sub(rf"\b{re.escape(word)}\b", other, sentence, count=1)


def _of_another(
    deeds: Sequence[ClipDeed], number: int, others: Sequence[int], draw: np.random.Generator
) -> Deed | None:
    if not others:
        return None
    return replace(deeds[number].deed, actions=deeds[others[int(draw.integers(len(others)))]].deed.actions)


def _negated(deed: Deed, embodiment: Embodiment) -> Deed | None:
    dims = embodiment.action.dims(*TRANSLATION)
    if not dims:
        return None
    actions = deed.actions.copy()
    start = 0.0 if embodiment.action.reference == "delta" else 2 * actions[:1, dims]
    actions[:, dims] = start - actions[:, dims]
    return replace(deed, actions=actions)
