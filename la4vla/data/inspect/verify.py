"""`la4vla data verify DIR`: everything an index claims, compared with what its tars hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from la4vla.data.inspect.conversations import about_problems, row_problems
from la4vla.data.shards.index import Index, Shard, read_index, read_stats, starts
from la4vla.data.shards.read import read_shard, read_texts
from la4vla.data.shards.writer import Clip
from la4vla.data.values import Limits, bad_frames
from la4vla.types import UserError


@dataclass(frozen=True)
class ShardReport:
    """What is wrong with a shard.

    problems  one sentence each; empty when the shard is what the index says
    """

    name: str
    clips: int
    samples: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What is wrong with a folder.

    holds            clips or texts
    folder_problems  those of the index and statistics as a whole
    """

    location: str
    holds: str
    shards: tuple[ShardReport, ...]
    folder_problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.folder_problems and not any(shard.problems for shard in self.shards)

    def text(self) -> str:
        lines = [
            f"{shard.name}  {shard.clips} {self.holds}, {shard.samples} samples: {'; '.join(shard.problems) or 'ok'}"
            for shard in self.shards
        ]
        bad = sum(bool(shard.problems) for shard in self.shards)
        verdict = "all as the index says" if self.ok else f"{bad} of {len(self.shards)} shards differ from the index"
        return "\n".join([*lines, *self.folder_problems, f"{self.location}: {verdict}"])


def verify(path: str | Path) -> Verification:
    """Reads every tar of a folder whole. Raises UserError only if there is no index to compare with."""
    index = read_index(path, None)
    texts = index.holds == "texts"
    limits = None if texts else _limits(index)
    problems = [
        _text_problems(index, number) if texts else _shard_problems(index, number, limits)
        for number in range(len(index.shards))
    ]
    reports = [
        ShardReport(shard.name, len(shard.keys), shard.samples, tuple(found))
        for shard, found in zip(index.shards, problems, strict=True)
    ]
    return Verification(index.location, index.holds, tuple(reports), tuple(_folder_problems(index)))


def _limits(index: Index) -> Limits | None:
    """None where the statistics are no statistics of these shards, which is a problem of the folder."""
    try:
        limits = Limits.of(read_stats(index.location))
    except UserError:
        return None
    fits = (limits.state.names, limits.action.names) == (index.embodiment.state.names, index.embodiment.action.names)
    return limits if fits else None


def _shard_problems(index: Index, number: int, limits: Limits | None) -> list[str]:
    try:
        clips = read_shard(index, number, tuple(index.views))
    except UserError as error:
        return [str(error)]
    of_clips = [problem for clip in clips for problem in _clip_problems(index, clip, limits)]
    return [*_count_problems(index, index.shards[number]), *of_clips]


def _text_problems(index: Index, number: int) -> list[str]:
    try:
        rows = read_texts(index, number)
    except UserError as error:
        return [str(error)]
    return [*_count_problems(index, index.shards[number]), *(p for row in rows for p in row_problems(index, row))]


def _count_problems(index: Index, shard: Shard) -> list[str]:
    samples = sum(starts(length, index.frame_stride) for length in shard.lengths)
    if shard.kept is not None:
        due = (set(range(0, length, index.frame_stride)) for length in shard.lengths)
        if any(set(frames) - allowed for frames, allowed in zip(shard.kept, due, strict=True)):
            return ["starts samples at frames without an image"]
        samples = sum(map(len, shard.kept))
    return [] if samples == shard.samples else [f"holds {samples} samples, the index says {shard.samples}"]


def _clip_problems(index: Index, clip: Clip, limits: Limits | None) -> list[str]:
    problems = []
    for what, values, names in (
        ("state", clip.state, index.embodiment.state.names),
        ("action", clip.action, index.embodiment.action.names),
    ):
        if values.dtype != np.float32 or values.shape != (len(clip), len(names)):
            problems.append(
                f"{clip.key}: {what} is {values.dtype} {values.shape}, not float32 {(len(clip), len(names))}"
            )
        elif not np.isfinite(values).all():
            problems.append(f"{clip.key}: {what} is not finite")
    due = list(range(0, len(clip), index.frame_stride))
    bad = bad_frames(clip, limits) if limits and not problems else None
    if bad is not None:
        problems.append(f"{clip.key}: {next(iter(bad.what.values()))}")
    for name, view in index.views.items():
        if sorted(clip.frames[name]) != due:
            problems.append(f"{clip.key}: view {name} has {len(clip.frames[name])} of {len(due)} frames")
        for t, image in clip.frames[name].items():
            try:
                shape = simplejpeg.decode_jpeg(image).shape
            except ValueError as error:
                problems.append(f"{clip.key}: view {name}, frame {t} cannot be decoded ({error})")
                continue
            if shape != (view.height, view.width, 3):
                problems.append(f"{clip.key}: view {name}, frame {t} is {shape}, not {(view.height, view.width, 3)}")
    return problems


def _folder_problems(index: Index) -> list[str]:
    problems = []
    twice = [key for key, times in Counter(key for shard in index.shards for key in shard.keys).items() if times > 1]
    if twice:
        problems.append(f"{len(twice)} keys occur more than once, {twice[0]} for one; write the folder again")
    if index.holds == "texts":
        return [*problems, *about_problems(index)]
    try:
        stats = read_stats(index.location)
    except UserError as error:
        return [*problems, str(error)]
    vectors = {"state": stats.state, **{f"action ({name})": values for name, values in stats.actions.items()}}
    for what, values in vectors.items():
        names = index.embodiment.state.names if what == "state" else index.embodiment.action.names
        if values.names != names or values.count != index.frames:
            problems.append(
                f"statistics of {what} are for {values.count} frames of {' '.join(values.names)}, "
                f"the index has {index.frames} of {' '.join(names)}; write the folder again"
            )
    return problems
