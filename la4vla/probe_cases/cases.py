"""A list of probe cases: which frame of which clip, what it is told, and what it is confused with. Stored as JSONL.

A case refers to images and states of a shard folder by clip key and frame; nothing is copied. The first line of a
file says which folder (with its fingerprint) and how the list was sampled, every other line is one case. Refuses a
folder whose shards are not those the list was sampled from, so that all checkpoints face the same cases.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from la4vla.data.setup import fingerprint
from la4vla.data.shards.index import Index, read_index
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import Clip
from la4vla.page import page
from la4vla.types import UserError

SCHEMA_VERSION = 1

MISLEADING = ("unaligned", "conflict")
"""Fields of a case that name a frame of another clip, which a condition shows instead of the case's own."""


@dataclass(frozen=True)
class FrameOf:
    """A frame of another clip than the case's.

    clip       key of the clip
    frame      counted from the clip's start
    nearness   what the clip shares with the case: `episode`, `task` or nothing (`any`)
    """

    clip: str
    frame: int
    nearness: str


@dataclass(frozen=True)
class Case:
    """One question with a known direction.

    clip          key of the clip it comes from
    frame         of the clip, from its start: the case's state, images and demonstrated actions begin there
    task          of the clip
    direction     word of the robot's own view (`up`)
    axis          both words of the tested axis (`up/down`)
    toward        unit vector of the direction in the embodiment's base frame
    instruction   the clip's own
    opposite      the same with its direction words swapped
    paraphrase    the same meaning in other words
    unaligned     a frame outside the clip, of a clip that names neither end of the axis; None: the folder has none
    conflict      first frame of a clip that moves the opposite way; None: the folder has none
    arm           that moves, of a robot with two: left, right or both
    """

    clip: str
    frame: int
    task: str
    direction: str
    axis: str
    toward: Sequence[float]
    instruction: str
    opposite: str
    paraphrase: str
    unaligned: FrameOf | None
    conflict: FrameOf | None
    arm: str = ""

    @property
    def misleading(self) -> dict[str, FrameOf | None]:
        """The frames of other clips, by the names in MISLEADING."""
        return {name: self.__dict__[name] for name in MISLEADING}


@dataclass(frozen=True)
class CaseList:
    """All cases of a shard folder, which every checkpoint is probed with.

    folder        of the shards, as it was given when the cases were sampled
    fingerprint   of the folder's index
    embodiment    its name
    axes          forward, left and up as unit vectors of the base frame
    settings      how the cases were sampled
    cases         in order
    """

    folder: str
    fingerprint: str
    embodiment: str
    axes: Mapping[str, Sequence[float]]
    settings: Mapping[str, Any]
    cases: tuple[Case, ...]

    def nearness(self) -> dict[str, dict[str, int]]:
        """Name in MISLEADING -> how many frames share with their case its episode, its task, nothing (`any`), and how
        many cases have no such frame (`none`)."""
        return {
            name: dict(Counter(frame.nearness if (frame := case.misleading[name]) else "none" for case in self.cases))
            for name in MISLEADING
        }

    def write(self, path: Path) -> None:
        """Raises UserError where it cannot be written."""
        about = {key: value for key, value in asdict(self).items() if key != "cases"}
        lines = [{"schema": SCHEMA_VERSION, **about}, *(_row(case) for case in self.cases)]
        page.write(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_cases(path: str | Path) -> CaseList:
    """Raises UserError for a file that is missing, damaged or of a newer la4vla."""
    try:
        about, *rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        schema = about.pop("schema")
        if schema > SCHEMA_VERSION:
            raise UserError(f"{path}: written by a newer la4vla (schema {schema}); upgrade.")
        if not rows:
            raise UserError(f"{path}: holds no case; make it again with `la4vla probe cases`.")
        return CaseList(**about, cases=tuple(_case(row) for row in rows))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with `la4vla probe cases`.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: no list of cases ({error!r}); make one with `la4vla probe cases SHARDS --out {path}`."
        ) from error


def _row(case: Case) -> dict[str, Any]:
    return {name: value for name, value in asdict(case).items() if value or name != "arm"}


def _case(row: Mapping[str, Any]) -> Case:
    frames = {name: None if row[name] is None else FrameOf(**row[name]) for name in MISLEADING}
    return Case(**{**row, **frames})


@dataclass(frozen=True)
class CaseClips:
    """The clips that a list of cases refers to.

    index   of their folder
    clips   key -> clip, with the JPEGs that are shown
    robot   robot file that the list was sampled with; empty: the embodiment's own
    """

    index: Index
    clips: Mapping[str, Clip]
    robot: str = ""

    def images(self, clip: str, frame: int, views: Sequence[str]) -> dict[str, np.ndarray]:
        """uint8 RGB [H, W, 3] of each view. Raises UserError for an image that does not decode."""
        images = {}
        for view in views:
            try:
                images[view] = simplejpeg.decode_jpeg(self.clips[clip].frames[view][frame], colorspace="RGB")
            except ValueError as error:
                raise UserError(
                    f"{self.index.location}: {clip}, view {view}, frame {frame} does not decode ({error}); "
                    "write the shards again."
                ) from error
        return images


def open_case_clips(listed: CaseList, views: Sequence[str], folder: str = "") -> CaseClips:
    """The clips of a list with the JPEGs of `views`. folder: where the shards are now; empty: where they were.

    Raises UserError for a folder that has changed or lacks a view.
    """
    index = read_index(folder or listed.folder)
    if fingerprint(index) != listed.fingerprint:
        raise UserError(
            f"{index.location}: its shards are not those that the cases were sampled from; bring those back, or sample "
            "new cases with `la4vla probe cases` and probe every checkpoint with them."
        )
    for view in views:
        if view not in index.views:
            raise UserError(
                f"{index.location} has no view `{view}` ({', '.join(index.views) or 'none at all'}); sample cases from "
                "shards with the policy's views."
            )
    return CaseClips(index, _clips(index, _referred(listed.cases), views), listed.settings.get("robot", ""))


def _referred(cases: Iterable[Case]) -> dict[str, set[int]]:
    """Clip key -> frames that are shown."""
    frames: dict[str, set[int]] = {}
    for case in cases:
        for clip, frame in (
            (case.clip, case.frame),
            *((other.clip, other.frame) for other in case.misleading.values() if other),
        ):
            frames.setdefault(clip, set()).add(frame)
    return frames


def _clips(index: Index, referred: Mapping[str, set[int]], views: Sequence[str]) -> dict[str, Clip]:
    """The clips with copies of the JPEGs that are shown; a view into a shard would keep all of it in memory."""
    clips = {}
    for number, shard in enumerate(index.shards):
        for clip in read_shard(index, number, views) if referred.keys() & set(shard.keys) else ():
            if numbers := referred.get(clip.key):
                shown = {view: {at: bytes(jpegs[at]) for at in numbers} for view, jpegs in clip.frames.items()}
                clips[clip.key] = replace(clip, frames=shown)
    return clips
