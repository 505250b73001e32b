"""The index of a shard folder: which tars, which clips, how long; and how a folder's files are opened.

Owns `index.json` and the meaning of a folder's location. The index is all that the order of samples depends on: no
tar is opened to know what a run will read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from webdataset.gopen import gopen

from la4vla.data.normalize import STATS, FolderStats
from la4vla.types import Embodiment, UserError

SCHEMA_VERSION = 2
INDEX = "index.json"

Holds = Literal["clips", "texts"]
"""What the records of a folder are: clips of a robot (writer.py), or conversations, each a record of length 1
(texts.py)."""


@dataclass(frozen=True)
class View:
    """A camera.

    height, width  pixels of the stored images; 0 in a folder of texts where they differ from row to row
    camera         what is known of it (mount, pose, field of view)
    """

    height: int
    width: int
    camera: str = ""


@dataclass(frozen=True)
class Shard:
    """One tar.

    keys, lengths  its clips in order
    samples        the sum of their starts
    size           bytes of the tar
    kept           frames of each clip at which a sample starts, where some are left out (idle.py); None: all that there
                   may be
    """

    name: str
    keys: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int
    size: int
    sha256: str
    kept: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Index:
    """What index.json says.

    location  the folder it was read from
    holds     clips or texts
    robot     the embodiment of its clips, or of those its texts were made from; None for texts of no robot
    views     empty when the shards hold no image
    """

    location: str
    holds: Holds
    robot: Embodiment | None
    views: Mapping[str, View]
    frame_stride: int
    shards: tuple[Shard, ...]

    @property
    def embodiment(self) -> Embodiment:
        """Of a folder of clips, which always has one."""
        assert self.robot is not None, f"{self.location} holds {self.holds} of no robot"
        return self.robot

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def left_out(self) -> int:
        """Samples that there would be without those that are left out (idle.py), less those that there are."""
        every = sum(starts(length, self.frame_stride) for shard in self.shards for length in shard.lengths)
        return every - self.samples

    @property
    def clips(self) -> int:
        """Records: clips, or conversations in a folder of texts."""
        return sum(len(shard.keys) for shard in self.shards)

    @property
    def frames(self) -> int:
        return sum(sum(shard.lengths) for shard in self.shards)

    def to_json(self) -> str:
        def entry(shard: Shard) -> dict[str, Any]:
            clips: list[dict[str, Any]] = [
                {"key": key, "length": length, "starts": starts(length, self.frame_stride)}
                for key, length in zip(shard.keys, shard.lengths, strict=True)
            ]
            for clip, frames in zip(clips, shard.kept or (), strict=shard.kept is not None):
                clip |= {"starts": len(frames), "kept": list(frames)}
            about = {"name": shard.name, "samples": shard.samples, "bytes": shard.size, "sha256": shard.sha256}
            return {**about, "clips": clips}

        totals = {"clips": self.clips, "frames": self.frames, "samples": self.samples}
        raw = {
            "schema": SCHEMA_VERSION,
            "holds": self.holds,
            "embodiment": self.robot.to_dict() if self.robot else None,
            "images": bool(self.views),
            "views": {name: asdict(view) for name, view in self.views.items()},
            "frame_stride": self.frame_stride,
            "totals": {**totals, "bytes": sum(shard.size for shard in self.shards)},
            "shards": [entry(shard) for shard in self.shards],
        }
        return json.dumps(raw, separators=(",", ":"))


def starts(length: int, stride: int) -> int:
    """Number of sample starts of a clip: the frames 0, stride, 2 * stride ... below `length`."""
    return -(-length // stride)


def locate(folder: str, name: str) -> str:
    """Where file `name` of a folder is, as WebDataset's opener wants it.

    `folder` is a local path, an http(s) URL, or `pipe:COMMAND` in which `{}` stands for the file's name.
    """
    if not folder.startswith("pipe:"):
        return f"{folder.rstrip('/')}/{name}"
    if "{}" not in folder:
        raise UserError(f"`{folder}` has no {{}} for the file's name; write it as pipe:cat /data/{{}}.")
    return folder.replace("{}", name)


def read_small(folder: str, name: str) -> bytes:
    """A whole file of a shard folder. Raises UserError if it cannot be read."""
    try:
        with gopen(locate(folder, name), "rb") as stream:
            return stream.read()
    except OSError as error:
        raise UserError(f"{folder}: {name} cannot be read ({error}); check the path of the shard folder.") from error


def read_index(folder: str | Path, holds: Holds | None = "clips") -> Index:
    """The index of a shard folder (local path, http(s) URL or pipe: command).

    holds: what it must hold; None: whatever it holds. Raises UserError if it is none, or holds something else.
    """
    location = str(folder)
    with _complaints(location, INDEX):
        index = _parsed(location, json.loads(read_small(location, INDEX)))
    if holds and index.holds != holds:
        raise UserError(f"{location} holds {index.holds}, and {holds} are needed here; name a folder of {holds}.")
    return index


@contextmanager
def _complaints(location: str, name: str) -> Iterator[None]:
    """What is wrong with a JSON file of a folder, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{location}: {name} lacks {error}; write the folder again.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{location}: {name} is damaged ({error}); write the folder again.") from error


def _parsed(location: str, raw: Mapping[str, Any]) -> Index:
    if raw["schema"] > SCHEMA_VERSION:
        raise UserError(
            f"{location}: written by a newer la4vla (schema {raw['schema']}, this one reads {SCHEMA_VERSION}); "
            "upgrade la4vla."
        )
    shards = tuple(
        Shard(
            name=shard["name"],
            keys=tuple(clip["key"] for clip in shard["clips"]),
            lengths=tuple(int(clip["length"]) for clip in shard["clips"]),
            samples=int(shard["samples"]),
            size=int(shard["bytes"]),
            sha256=shard["sha256"],
            kept=tuple(tuple(map(int, clip["kept"])) for clip in shard["clips"])
            if any("kept" in clip for clip in shard["clips"])
            else None,
        )
        for shard in raw["shards"]
    )
    views = {}
    for name, view in raw["views"].items():
        if not view.pop("upright", True):  # said in the first folders only
            raise UserError(f"{location}: the pictures of {name} are upside down; write the folder again, upright.")
        views[name] = View(**view)
    if raw["holds"] not in ("clips", "texts"):
        raise ValueError(f"it holds {raw['holds']}, neither clips nor texts")
    holds: Holds = raw["holds"]
    robot = None if holds == "texts" and raw["embodiment"] is None else Embodiment.from_dict(raw["embodiment"])
    return Index(location, holds, robot, views, int(raw["frame_stride"]), shards)


def read_stats(folder: str | Path) -> FolderStats:
    """The statistics of a shard folder. Raises UserError if they cannot be read or are damaged."""
    location = str(folder)
    with _complaints(location, STATS):
        return FolderStats.from_json(read_small(location, STATS))
