"""A list of probe cases: which frame of which clip, what it is told, and what it is confused with. Stored as JSONL.

A case refers to pictures and states of a shard folder by clip key and frame; nothing is copied. The first line of a
file says which folder (with its fingerprint) and how the list was drawn, every other line is one case. Refuses a folder
whose shards are not those the list was drawn from: all checkpoints face the same cases or none.
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


@dataclass(frozen=True)
class FrameOf:
    """A frame of a clip (counted from the clip's start). nearness: what it shares with the case, `episode`, `task` or
    nothing (`any`)."""

    clip: str
    frame: int
    nearness: str


@dataclass(frozen=True)
class Case:
    """One question with a known direction.

    clip, frame: where it comes from; its state, its pictures and the demonstrated actions are those from there on.
    direction: word of the robot's own view (`up`). toward: unit vector of it in the embodiment's base frame.
    axis: both words of the tested axis (`up/down`), names the direction pair. instruction: the clip's own; opposite:
    the same with its direction words swapped; paraphrase: the same meaning in other words.
    unaligned: a frame outside the clip, of a clip that names neither end of the axis. conflict: first frame of a clip
    that moves the opposite way. None where the folder has no such frame.
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


@dataclass(frozen=True)
class CaseList:
    """folder: of the shards, as given when the list was drawn. axes: forward, left and up as unit vectors of the base
    frame. settings: how it was drawn."""

    folder: str
    fingerprint: str
    embodiment: str
    axes: Mapping[str, Sequence[float]]
    settings: Mapping[str, Any]
    cases: tuple[Case, ...]

    def nearness(self) -> dict[str, dict[str, int]]:
        """Of the unaligned and the conflicting frames: how many share with their case its episode, its task, nothing
        (`any`), and how many there are not (`none`)."""
        frames = {
            "unaligned": [case.unaligned for case in self.cases],
            "conflict": [case.conflict for case in self.cases],
        }
        return {name: dict(Counter(one.nearness if one else "none" for one in of)) for name, of in frames.items()}

    def write(self, path: Path) -> None:
        """Raises UserError where it cannot be written."""
        about = {key: value for key, value in asdict(self).items() if key != "cases"}
        lines = [{"schema": SCHEMA_VERSION, **about}, *(asdict(case) for case in self.cases)]
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


def _case(row: Mapping[str, Any]) -> Case:
    frames = {name: None if row[name] is None else FrameOf(**row[name]) for name in ("unaligned", "conflict")}
    return Case(**{**row, **frames})


@dataclass(frozen=True)
class Footage:
    """The clips that a list of cases refers to, by key. index: of their folder."""

    index: Index
    clips: Mapping[str, Clip]

    def pictures(self, clip: str, frame: int, views: Sequence[str]) -> dict[str, np.ndarray]:
        """uint8 RGB [H, W, 3] of each view. Raises UserError for a picture that does not decode."""
        pictures = {}
        for view in views:
            try:
                pictures[view] = simplejpeg.decode_jpeg(self.clips[clip].frames[view][frame], colorspace="RGB")
            except ValueError as error:
                raise UserError(
                    f"{self.index.location}: {clip}, view {view}, frame {frame} does not decode ({error}); "
                    "write the shards again."
                ) from error
        return pictures


def open_footage(listed: CaseList, views: Sequence[str], folder: str = "") -> Footage:
    """The clips of a list with the JPEGs of `views`. folder: where the shards lie now; empty: where they lay.

    Raises UserError for a folder that has changed or lacks a view.
    """
    index = read_index(folder or listed.folder)
    if fingerprint(index) != listed.fingerprint:
        raise UserError(
            f"{index.location}: its shards are not those that the cases were drawn from; bring those back, or draw new "
            "cases with `la4vla probe cases` and probe every checkpoint with them."
        )
    for view in views:
        if view not in index.views:
            raise UserError(
                f"{index.location} has no view `{view}` ({', '.join(index.views) or 'none at all'}); draw cases from "
                "shards with the policy's views."
            )
    return Footage(index, _clips(index, _referred(listed.cases), views))


def _referred(cases: Iterable[Case]) -> dict[str, set[int]]:
    """Clip key -> frames that are shown."""
    frames: dict[str, set[int]] = {}
    for case in cases:
        for clip, frame in (
            (case.clip, case.frame),
            *((f.clip, f.frame) for f in (case.unaligned, case.conflict) if f),
        ):
            frames.setdefault(clip, set()).add(frame)
    return frames


def _clips(index: Index, referred: Mapping[str, set[int]], views: Sequence[str]) -> dict[str, Clip]:
    """The clips with copies of the JPEGs that are shown: a view of one would keep its whole shard in memory."""
    clips = {}
    for number, shard in enumerate(index.shards):
        for clip in read_shard(index, number, views) if referred.keys() & set(shard.keys) else ():
            if shown := referred.get(clip.key):
                kept = {name: {t: bytes(of[t]) for t in shown} for name, of in clip.frames.items()}
                clips[clip.key] = replace(clip, frames=kept)
    return clips
