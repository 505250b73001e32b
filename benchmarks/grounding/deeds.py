"""Held-out clips as deeds: a motion, its scene, its sentence; and when two sentences mean the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg

from la4vla.construct.vocabulary import NEUTRAL, VERB_LABELS, VERBS
from la4vla.data.shards.index import Index
from la4vla.data.shards.read import read_shard
from la4vla.data.transforms import clean_sentence
from la4vla.directions import DIRECTION_SPELLINGS, words_of
from la4vla.types import Deed, UserError

Meaning = tuple[frozenset[tuple[int, int]], tuple[str, ...]]
"""The directions that are named, and the other words that matter, in order."""


@dataclass(frozen=True)
class ClipDeed:
    """The deed with which a clip begins.

    episode  that the clip was cut from
    """

    deed: Deed
    episode: str

    @property
    def meaning(self) -> Meaning:
        return meaning(self.deed.sentence)


def read_deeds(index: Index, view: str, horizon: int, most: int) -> list[ClipDeed]:
    """The first `horizon` actions, or as many as there are, of at most `most` clips (0: of all), evenly spread over the
    folder. Raises UserError for a damaged shard and for a view that the folder has not."""
    if view not in index.views:
        raise UserError(f"{index.location} has no view `{view}`; it has {', '.join(index.views) or 'no images'}.")
    clips = [(shard, place) for shard, one in enumerate(index.shards) for place in range(len(one.keys))]
    chosen = range(len(clips)) if not most else np.unique(np.linspace(0, len(clips) - 1, most).round().astype(int))
    wanted = {clips[number] for number in chosen}
    deeds = []
    for shard in sorted({shard for shard, _ in wanted}):
        for place, clip in enumerate(read_shard(index, shard, [view])):
            if (shard, place) in wanted:
                image = simplejpeg.decode_jpeg(clip.frames[view][0], colorspace="RGB")
                sentence = clean_sentence(clip.instruction)
                deeds.append(ClipDeed(Deed(clip.key, sentence, image, clip.action[:horizon]), clip.episode))
    return deeds


def meaning(sentence: str) -> Meaning:
    """What is left when synonyms are one: directions whatever their form, verbs by what they label, and without words
    that change nothing. `bring the gripper leftward` means `move left with the gripper`."""
    directions: set[tuple[int, int]] = set()
    others: list[str] = []
    words = words_of(sentence)
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if (word, after) == ("open", "gripper"):
            continue  # says how the gripper is, not what is done
        if word in DIRECTION_SPELLINGS:
            directions.add(DIRECTION_SPELLINGS[word])
        if word in VERB_LABELS:
            others.append(VERB_LABELS[word])
        elif word not in DIRECTION_SPELLINGS.keys() | NEUTRAL | VERBS:
            others.append(word)
    return frozenset(directions), tuple(others)
