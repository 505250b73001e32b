"""What the high-level model is asked in a round: tasks and first images of clips, in an order that is arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg

from la4vla.data.order import Block, make_streams
from la4vla.data.setup import fingerprint
from la4vla.data.shards.index import Index, read_index
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import Clip
from la4vla.types import UserError

SOURCE = "clips"  # the source's name in the rounds' config, in the seeds of its order and in messages
SHUFFLE_BYTES = 64 * 2**20  # shards that are in memory together


@dataclass(frozen=True)
class ClipStart:
    """A prompt: how a clip begins.

    key          of the clip
    task         what the high-level model is told
    instruction  the clip's own sentence
    state        float32 [S], raw units
    jpegs        view -> first image
    """

    key: str
    task: str
    instruction: str
    state: np.ndarray
    jpegs: Mapping[str, bytes]

    def images(self, views: Sequence[str]) -> dict[str, np.ndarray]:
        """uint8 RGB [H, W, 3] each. Raises UserError for an image that does not decode."""
        try:
            return {view: simplejpeg.decode_jpeg(self.jpegs[view], colorspace="RGB") for view in views}
        except ValueError as error:
            raise UserError(
                f"the first image of clip {self.key} is damaged ({error}); write its folder again."
            ) from error


class ClipStarts:
    """The n-th prompt of a run is a function of the folder, the seed and n: clips in passes, each once a pass.

    index  of the folder
    """

    def __init__(self, folder: str, views: Sequence[str], seed: int) -> None:
        """views: those that somebody is shown. Raises UserError for a folder without clips or without these views."""
        self.index = read_index(folder)
        self._views = tuple(views)
        for view in views:
            if view not in self.index.views:
                has = ", ".join(self.index.views) or "none at all"
                raise UserError(
                    f"candidates.clips: {folder} has no view `{view}` ({has}); "
                    "name a folder with the views that the models were trained on."
                )
        (self._stream,) = make_streams(_of_clips(self.index), SOURCE, 1, seed, SHUFFLE_BYTES)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.index)

    def read(self, first: int, count: int) -> list[ClipStart]:
        """The prompts first .. first + count - 1 of the run. Raises UserError for a damaged shard and for a clip whose
        task is empty."""
        found: list[ClipStart] = []
        while len(found) < count:
            block = self._stream.block(first + len(found))
            stop = min(block.stop, first + count)
            found += self._of_block(block, range(first + len(found), stop))
        return found

    def _of_block(self, block: Block, positions: range) -> list[ClipStart]:
        order, shards = self._stream.shuffled(block), dict[int, list[Clip]]()
        found = []
        for position in positions:
            place = order[position - block.first]
            if place.shard not in shards:
                shards[place.shard] = read_shard(self.index, place.shard, self._views)
            found.append(self._start(shards[place.shard][place.clip]))
        return found

    def _start(self, clip: Clip) -> ClipStart:
        if not clip.task.strip():
            raise UserError(
                f"{self.index.location}: clip {clip.key} has no task, so there is nothing to tell the high-level "
                "model; write clips of demonstrations whose task is known."
            )
        # Copies: a view into a shard would keep all of it in memory.
        jpegs = {view: bytes(clip.frames[view][0]) for view in self._views}
        return ClipStart(clip.key, clip.task, clip.instruction, clip.state[0].copy(), jpegs)


def _of_clips(index: Index) -> Index:
    """The same with one sample a clip."""
    ones = tuple(
        replace(shard, lengths=(1,) * len(shard.keys), samples=len(shard.keys), kept=None) for shard in index.shards
    )
    return replace(index, frame_stride=1, shards=ones)
