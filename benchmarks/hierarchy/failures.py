"""Failures of written sentences that a metric of overlap hides, counted: GPLA's paper tells of them and does not.

    repeated     a word, or a run of two or three, directly behind itself: `towards towards`
    impossible   a word for what takes a part that the robot lacks (abilities.yaml): `grasp` without a gripper
    absent       an object that is not there: a colour and a noun that no sentence of the data, or no object of the
                 episode's scene, has; or a noun behind an article that the data never uses
    unknown      a word that the data never uses
A sentence counts once for each, however often it fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import yaml

from la4vla.construct.vocabulary import APPEARANCE, NEUTRAL, VERBS
from la4vla.directions import DIRECTION_SPELLINGS, words_of
from la4vla.types import ROTATION, Embodiment, UserError

FAILURES = ("repeated", "impossible", "absent", "unknown")
ABILITIES = Path(__file__).parent / "abilities.yaml"
LONGEST_RUN = 3  # words; a longer run that is said twice is a list, not a slip
ARTICLES = frozenset(("a", "an", "the"))
JOINING = frozenset(("and", "or", "the", "both"))
"""Words between the colours of one noun: `the red and the blue block`."""
NO_NOUNS = (NEUTRAL - {"object", "gripper"}) | VERBS | DIRECTION_SPELLINGS.keys()


@dataclass(frozen=True)
class KnownWords:
    """What a dataset's own sentences say. Make one with `known_words`.

    words       all of them
    objects     (colour, noun) pairs, nouns without the `s` of a plural
    impossible  words and runs of words for what the robot cannot do
    scenes      episode -> (colour, noun) of what is there; empty where nobody listed it
    """

    words: frozenset[str]
    objects: frozenset[tuple[str, str]]
    impossible: tuple[tuple[str, ...], ...]
    scenes: Mapping[str, frozenset[tuple[str, str]]]

    @property
    def nouns(self) -> frozenset[str]:
        """Nouns that a colour stands before, somewhere."""
        return frozenset(noun for _, noun in self.objects)

    @property
    def kinds(self) -> frozenset[str]:
        """Nouns that scenes list. Another one, such as `block`, stands for any of them."""
        return frozenset(noun for scene in self.scenes.values() for _, noun in scene)


def known_words(
    sentences: Iterable[str], robot: Embodiment, scenes: Mapping[str, Sequence[str]] | None = None
) -> KnownWords:
    """sentences: tasks and instructions of the data that the models learned from. scenes: as `read_scenes` gives."""
    every = [words_of(sentence) for sentence in dict.fromkeys(sentences)]
    used = frozenset(word for words in every for word in words)
    said = {run for words in every for run in _runs(words)}
    dims = {*robot.action.names, *robot.state.names}
    lacks = {"gripper": "gripper" not in dims, "z": "z" not in dims, "turn": not dims & set(ROTATION)}
    listed = [tuple(text.split()) for part, lacking in lacks.items() if lacking for text in _abilities()[part]]
    return KnownWords(
        used,
        frozenset(pair for words in every for pair in _objects(words)),
        tuple(dict.fromkeys(run for run in listed if run not in said)),
        {
            episode: frozenset(pair for name in names for pair in _objects(words_of(name)))
            for episode, names in (scenes or {}).items()
        },
    )


def failures(sentence: str, known: KnownWords, episode: str = "") -> dict[str, list[str]]:
    """By failure, the words that are to blame; empty lists in a sound sentence."""
    words = words_of(sentence)
    runs = set(_runs(words))
    return {
        "repeated": [" ".join(run) for run in dict.fromkeys(_repeated(words))],
        "impossible": [" ".join(run) for run in known.impossible if run in runs],
        "absent": list(dict.fromkeys(_absent(words, known, known.scenes.get(episode, frozenset())))),
        "unknown": sorted(set(words) - known.words),
    }


def read_scenes(path: Path) -> dict[str, list[str]]:
    """Episode -> its objects, from a JSON file. Raises UserError for a file of another form."""
    try:
        found = json.loads(path.read_text())
        return {str(episode): [str(name) for name in objects] for episode, objects in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f'{path}: no scenes ({error}); write {{"EPISODE": ["red moon", ...]}}.') from error


def _repeated(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for length in range(1, LONGEST_RUN + 1):
        for start in range(len(words) - 2 * length + 1):
            run = tuple(words[start : start + length])
            if run == tuple(words[start + length : start + 2 * length]):
                yield run


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for length in range(1, LONGEST_RUN + 1):
        yield from (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _objects(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(colour, noun) of every colour that a noun follows, its plural's `s` away."""
    place = 0
    while place < len(words):
        colours = []
        while place < len(words) and (words[place] in APPEARANCE or (colours and words[place] in JOINING)):
            colours += [words[place]] if words[place] in APPEARANCE else []
            place += 1
        if colours and place < len(words) and words[place] not in NO_NOUNS:
            yield from ((colour, singular(words[place])) for colour in colours)
        place += 1


def _absent(words: Sequence[str], known: KnownWords, scene: frozenset[tuple[str, str]]) -> Iterator[str]:
    any_kind, there = known.nouns - known.kinds, {noun for _, noun in scene}
    for colour, noun in _objects(words):
        if scene and noun in any_kind:
            found = any(colour == other for other, _ in scene)
        else:
            found = (colour, noun) in (scene or known.objects)
        if not found:
            yield f"{colour} {noun}"
    known_nouns = {singular(word) for word in known.words}
    for before, word in pairwise(words):
        if before in ARTICLES and word not in APPEARANCE and word not in NO_NOUNS:
            noun = singular(word)
            if noun not in known_nouns or (scene and noun in known.kinds - there):
                yield noun


def singular(noun: str) -> str:
    return noun[:-1] if noun.endswith("s") and len(noun) > 3 else noun


@cache
def _abilities() -> dict[str, list[str]]:
    return yaml.safe_load(ABILITIES.read_text(encoding="utf-8"))
