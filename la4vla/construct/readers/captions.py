"""Captions of an episode from sentences for its frames, and the checks that all ways to write them share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from la4vla.construct.episodes import BadEpisode, Caption


def from_changes(sentences: Sequence[str]) -> tuple[Caption, ...]:
    """Captions of a sentence for every frame; frames without one are in none."""
    edges = [0, *(t for t in range(1, len(sentences)) if sentences[t] != sentences[t - 1]), len(sentences)]
    spans = pairwise(edges) if sentences else ()
    return tuple(Caption(start, end, sentences[start]) for start, end in spans if sentences[start])


def joined(captions: Sequence[Caption]) -> str:
    """The task of an episode that has no other words for it: its captions in order."""
    return ", then ".join(dict.fromkeys(caption.instruction for caption in captions))


def checked(captions: Sequence[Caption], frames: int, where: str) -> tuple[Caption, ...]:
    """The captions within the frames that are kept. Raises BadEpisode for spans that are none or overlap."""
    for item in captions:
        if not 0 <= item.start < item.end or not item.instruction.strip():
            raise BadEpisode(
                f"{where}: [{item.start}, {item.end}) `{item.instruction}` is no caption; a start lies before its end, "
                "and a sentence stands beside it."
            )
    for one, two in pairwise(captions):
        if two.start < one.end:
            raise BadEpisode(f"{where}: the captions at {one.start} and {two.start} overlap; correct their spans.")
    if captions and captions[-1].end > frames:
        raise BadEpisode(
            f"{where}: a caption ends at {captions[-1].end}, and the episode has {frames} steps; correct its span."
        )
    return tuple(Caption(item.start, item.end, " ".join(item.instruction.split())) for item in captions)
