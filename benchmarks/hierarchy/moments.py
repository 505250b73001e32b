"""Held-out moments: an image, the task, what people said the robot does now, and what it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from la4vla.data.shards.index import Index
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import Clip
from la4vla.types import Deed, Observation, UserError


@dataclass(frozen=True)
class Moment:
    """A frame of a clip.

    key          clip and frame, unique in its folder
    episode      that intervals draw
    task         the episode's sentence
    instruction  the clip's, which people gave
    frame        of the clip
    jpegs        view -> the image at this frame
    state        float32 [S], raw units
    chunk        float32 [T, A], raw units: the clip's actions from this frame on, `horizon` at most
    """

    key: str
    episode: str
    task: str
    instruction: str
    frame: int
    jpegs: dict[str, bytes]
    state: np.ndarray
    chunk: np.ndarray

    def seen(self, instruction: str) -> Observation:
        """What a policy is shown, told this."""
        views = {name: simplejpeg.decode_jpeg(jpeg, colorspace="RGB") for name, jpeg in self.jpegs.items()}
        return Observation(views, self.state, instruction)

    def deed(self, sentence: str, chunk_TA: np.ndarray) -> Deed:
        """Other words and another motion here. The first view is what a scorer sees."""
        image = simplejpeg.decode_jpeg(next(iter(self.jpegs.values())), colorspace="RGB")
        return Deed(self.key, sentence, image, chunk_TA)


def moments(index: Index, views: Sequence[str], horizon: int, every: int, most: int = 0) -> list[Moment]:
    """Those of a folder of clips with images, in its order.

    every: frames between two of a clip, the first is its beginning; where there is no image, the next one with an
    image. most: of the whole folder, evenly; 0: all. Raises UserError for a folder without these views, or without a
    moment.
    """
    if missing := [view for view in views if view not in index.views] or ([] if views else ["any"]):
        raise UserError(f"{index.location}: has no view {missing[0]}; name a folder of clips with images (vla).")
    found = [moment for clip in clips(index, views) for moment in _of_clip(clip, views, horizon, every)]
    if not found:
        raise UserError(f"{index.location}: holds no clip.")
    if most and most < len(found):
        found = [found[int(place)] for place in np.linspace(0, len(found) - 1, most)]
    return found


def clips(index: Index, views: Sequence[str] = ()) -> Iterator[Clip]:
    """All clips of a folder, in its order."""
    for number in range(len(index.shards)):
        yield from read_shard(index, number, views)


def sentences(index: Index) -> list[str]:
    """Tasks and instructions of a folder of clips."""
    return [text for clip in clips(index) for text in (clip.task, clip.instruction)]


def _of_clip(clip: Clip, views: Sequence[str], horizon: int, every: int) -> Iterator[Moment]:
    with_image = sorted(clip.frames[views[0]])
    due = 0
    for frame in with_image:
        if frame >= due:
            due = frame + every
            jpegs = {view: bytes(clip.frames[view][frame]) for view in views}
            chunk = clip.action[frame : frame + horizon]
            about = (f"{clip.key}/{frame}", clip.episode, clip.task, clip.instruction, frame)
            yield Moment(*about, jpegs=jpegs, state=clip.state[frame], chunk=chunk)
