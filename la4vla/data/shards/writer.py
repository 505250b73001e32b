"""The shard format of clips, and their only writer (tars.py writes folders, texts.py conversations).

A folder holds `shard-000000.tar ...`, `index.json` and `stats.json`. A clip is a run of adjacent tar members:
`{key}.json` (what it is), `{key}.npz` (`state` float32 [T, S], `action` float32 [T, A]), and for vision
`{key}.{view}.{t:05d}.jpg`, upright RGB, at every sample start. Starts are the frames 0, stride, 2 * stride ... < T.
The writer refuses keys a tar or WebDataset would mangle (dots, > 99 characters, twice), values that are not finite,
shapes that are not the embodiment's, and starts without an image. Bytes depend on the clips and their order only.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import simplejpeg

from la4vla.data.delta import action_forms
from la4vla.data.normalize import STATS, FolderStats
from la4vla.data.shards.idle import Idle
from la4vla.data.shards.index import Index, Shard, View, read_index, read_stats
from la4vla.data.shards.tars import Files, FolderWriter, check_view
from la4vla.data.tally import Tally
from la4vla.types import Embodiment, UserError

__all__ = ["WHOLE", "Clip", "Index", "ShardWriter", "View", "read_index", "read_stats"]

WHOLE = "task"
"""Clip.primitive of a whole demonstration, whose instruction is its task's sentence."""


@dataclass(frozen=True)
class Clip:
    """A labelled span of an episode.

    key      unique in its folder, no dots
    task     the episode's sentence, the high level; `instruction` is the clip's own, the low level
    span     [start, end) frames of `episode`
    fps      control steps a second
    quality  mean annotator score 0..3 (FACTS 1.3.5), or a labeller's own constant
    state    float32 [T, S], raw units of the embodiment
    action   float32 [T, A], raw units; action t is what was commanded at state t
    frames   view -> {t: JPEG bytes}; empty for clips without images
    """

    key: str
    instruction: str
    primitive: str
    object_status: str
    task: str
    episode: str
    span: tuple[int, int]
    fps: float
    quality: float
    state: np.ndarray
    action: np.ndarray
    frames: Mapping[str, Mapping[int, bytes | memoryview]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.state)


class ShardWriter(FolderWriter):
    """Writes clips into exactly `shards` tars, balanced by samples. Clips are not kept in memory; their
    numbers are where idle samples are left out, else statistics of them in bounded memory (tally.py)."""

    def __init__(
        self,
        folder: str | Path,
        embodiment: Embodiment,
        views: Mapping[str, View],
        frame_stride: int,
        shards: int,
        overwrite: bool = False,
        idle: Idle | None = None,
    ) -> None:
        """idle: which samples the index leaves out; the clips are written whole either way."""
        for name in views:
            check_view(name)
        if idle is not None:
            idle.check(embodiment)
        super().__init__(folder, shards, frame_stride, overwrite)
        self._idle, self._numbers = idle, dict[str, int]()
        self._embodiment, self._views = embodiment, dict(views)
        self._values: list[tuple[np.ndarray, np.ndarray]] = []
        self._states, self._actions = Tally(embodiment.state.names), dict[str, Tally]()

    def add(self, clip: Clip) -> None:
        """Checks a clip and writes it to the emptiest tar. Raises UserError naming the key and what is wrong."""
        self._check(clip)
        self.put(clip.key, len(clip), self._files(clip))
        self._states.add(clip.state)
        for form, values_TA in action_forms(self._embodiment, clip.state, clip.action).items():
            self._actions.setdefault(form, Tally(self._embodiment.action.names)).add(values_TA)
        if self._idle is not None:
            self._numbers[clip.key] = len(self._values)
            self._values.append((clip.state.copy(), clip.action.copy()))

    def _describe(self, shards: tuple[Shard, ...]) -> Index:
        kept = shards if self._idle is None else tuple(self._without_idle(shard, self._idle) for shard in shards)
        if not sum(shard.samples for shard in kept):
            raise UserError(f"{self.folder}: every sample is idle; lower the threshold of what counts as motion.")
        return Index(str(self.folder), "clips", self._embodiment, self._views, self._stride, kept)

    def _without_idle(self, shard: Shard, idle: Idle) -> Shard:
        stats = self._folder_stats.action("recorded")
        values = (self._values[self._numbers[key]] for key in shard.keys)
        kept = tuple(idle.starts(state, action, self._stride, self._embodiment, stats) for state, action in values)
        return replace(shard, samples=sum(map(len, kept)), kept=kept)

    def _companions(self) -> Mapping[str, str]:
        return {STATS: self._folder_stats.to_json()}

    def _check(self, clip: Clip) -> None:
        sizes = (len(self._embodiment.state.names), len(self._embodiment.action.names))
        self.check_key(clip.key, list(self._views))
        if clip.state.shape != (len(clip), sizes[0]) or clip.action.shape != (len(clip), sizes[1]) or not len(clip):
            raise UserError(
                f"clip {clip.key}: state {clip.state.shape} and action {clip.action.shape} do not fit "
                f"{self._embodiment.name}, which wants (T, {sizes[0]}) and (T, {sizes[1]}) with T of at least 1."
            )
        if clip.state.dtype != np.float32 or clip.action.dtype != np.float32:
            raise UserError(f"clip {clip.key}: state and action must be float32; convert them.")
        if not (np.isfinite(clip.state).all() and np.isfinite(clip.action).all()):
            raise UserError(f"clip {clip.key}: a state or action is not finite; drop the clip.")
        self._check_frames(clip)

    def _check_frames(self, clip: Clip) -> None:
        if set(clip.frames) != set(self._views):
            raise UserError(
                f"clip {clip.key}: views {sorted(clip.frames)} are not the folder's {sorted(self._views)}; "
                "give all of them."
            )
        due = list(range(0, len(clip), self._stride))
        for name, images in clip.frames.items():
            if sorted(images) != due:
                raise UserError(
                    f"clip {clip.key}: view {name} has images at {len(images)} frames, not at the {len(due)} frames "
                    f"0, {self._stride} ... below {len(clip)}; render exactly those."
                )
            view = self._views[name]
            for t, image in images.items():
                try:
                    height, width, _, _ = simplejpeg.decode_jpeg_header(image)
                except ValueError as error:
                    raise UserError(
                        f"clip {clip.key}: view {name}, frame {t} is not a JPEG ({error}); encode it again."
                    ) from error
                if (height, width) != (view.height, view.width):
                    raise UserError(
                        f"clip {clip.key}: view {name}, frame {t} is {height} x {width}, the folder says "
                        f"{view.height} x {view.width}; resize it."
                    )

    def _files(self, clip: Clip) -> Files:
        about = {
            "instruction": clip.instruction,
            "primitive": clip.primitive,
            "object_status": clip.object_status,
            "task": clip.task,
            "episode": clip.episode,
            "span": list(clip.span),
            "fps": clip.fps,
            "quality": clip.quality,
            "length": len(clip),
            "views": list(clip.frames),
        }
        arrays = io.BytesIO()
        np.savez(arrays, state=clip.state, action=clip.action)
        images = [
            (f"{clip.key}.{name}.{t:05d}.jpg", clip.frames[name][t])
            for name in self._views
            for t in sorted(clip.frames[name])
        ]
        return [(f"{clip.key}.json", json.dumps(about).encode()), (f"{clip.key}.npz", arrays.getvalue()), *images]

    @cached_property
    def _folder_stats(self) -> FolderStats:
        """Of all clips; asked for when they are written."""
        return FolderStats(self._states.stats(), {form: tally.stats() for form, tally in self._actions.items()})
