"""The metadata of a LeRobot dataset: v2.0 and v2.1 (one parquet and one mp4 an episode), v3.0 (many episodes in each).

Owns the two layouts of `meta/` and of the paths (huggingface/lerobot, src/lerobot/datasets/utils.py). Reads no frames.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from la4vla.construct.readers.checks import existing
from la4vla.construct.readers.video import deep_grey
from la4vla.types import UserError

VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's images of a view are.

    path      the video
    from_s    beginning of the episode, in seconds of the file; None if the episode has the file for itself
    to_s      its end
    before    number of frames that the episodes before it have in the file
    """

    path: Path
    from_s: float | None
    to_s: float | None
    before: int = 0


@dataclass(frozen=True)
class EpisodeInfo:
    """Where an episode is.

    index     its number in the dataset
    length    frames
    data      the parquet file with its rows
    videos    the dataset's name of a view -> where its images are
    """

    index: int
    length: int
    data: Path
    videos: Mapping[str, VideoSpan]


@dataclass(frozen=True)
class Meta:
    """The metadata of a dataset.

    root        the folder
    version     of the layout
    fps         frames a second
    features    name of a column or video -> {dtype, shape, ...}
    tasks       task_index -> sentence
    episodes    in the order of their numbers
    files       the files that this was read from
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[int, str]
    episodes: tuple[EpisodeInfo, ...]
    files: tuple[Path, ...]

    @property
    def views(self) -> dict[str, str]:
        """View, stored as videos or as an image column -> why it is no camera, empty if it is one."""
        return {
            name: "a depth map" if _depth(about) else ""
            for name, about in self.features.items()
            if about["dtype"] in ("video", "image")
        }


def read_meta(root: Path) -> Meta:
    """The metadata in a folder. Raises UserError unless it is a LeRobot dataset of a version in VERSIONS."""
    existing(root, "meta/info.json", "meta/info.json", "lerobot")
    info = _json(root / "meta/info.json")
    version = str(info.get("codebase_version"))
    if version not in VERSIONS:
        number = re.fullmatch(r"v(\d+)\.(\d+)", version)
        newer = number is not None and (int(number[1]), int(number[2])) > (3, 0)
        cure = (
            "upgrade la4vla, or write the dataset with a lerobot that writes v3.0"
            if newer
            else "convert it to v3.0 with lerobot's scripts"
        )
        raise UserError(f"{root}: LeRobot version {version} is none of {', '.join(VERSIONS)}; {cure}.")
    try:
        videos = [name for name, about in info["features"].items() if about["dtype"] == "video"]
        if version == "v3.0":
            tasks, files = _tasks_v3(root), sorted((root / "meta/episodes").glob("*/*.parquet"))
            episodes = [item for file in files for item in _episodes_v3(root, info, file, videos)]
        else:
            tasks, files = _tasks_v2(root), [root / "meta/episodes.jsonl"]
            episodes = [_episode_v2(root, info, row, videos) for row in _jsonl(files[0])]
        ordered = sorted(episodes, key=lambda item: item.index)
        if len({item.index for item in ordered}) != max(len(ordered), 1):
            raise UserError(f"{root}/meta lists no episodes, or one of them twice; download meta/ anew.")
        return Meta(root, version, float(info["fps"]), info["features"], tasks, _placed(ordered), tuple(files))
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{root}/meta: {error!r} is missing or malformed for {version}; download meta/ anew."
        ) from error


def _episode_v2(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], videos: list[str]) -> EpisodeInfo:
    index = int(row["episode_index"])
    where = {"episode_index": index, "episode_chunk": index // int(info["chunks_size"])}
    spans = {name: VideoSpan(root / info["video_path"].format(video_key=name, **where), None, None) for name in videos}
    return EpisodeInfo(index, int(row["length"]), root / info["data_path"].format(**where), spans)


def _episodes_v3(root: Path, info: Mapping[str, Any], file: Path, videos: list[str]) -> Iterator[EpisodeInfo]:
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    columns += [f"videos/{name}/{part}" for name in videos for part in parts]
    for row in _parquet(file, columns).to_pylist():
        spans = {}
        for name in videos:
            chunk, number, start, end = (row[f"videos/{name}/{part}"] for part in parts)
            path = info["video_path"].format(video_key=name, chunk_index=chunk, file_index=number)
            spans[name] = VideoSpan(root / path, float(start), float(end))
        data = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        yield EpisodeInfo(int(row["episode_index"]), int(row["length"]), root / data, spans)


def _placed(episodes: Sequence[EpisodeInfo]) -> tuple[EpisodeInfo, ...]:
    """The episodes with `before` of their spans filled in. episodes: in the order of their numbers.

    In a file that several episodes share, lerobot writes them in the order of their numbers and without gaps.
    """
    ends: defaultdict[tuple[str, Path], int] = defaultdict(int)
    placed = []
    for item in episodes:
        spans = {name: replace(span, before=ends[name, span.path]) for name, span in item.videos.items()}
        for name, span in item.videos.items():
            ends[name, span.path] += item.length
        placed.append(replace(item, videos=spans))
    return tuple(placed)


def _tasks_v2(root: Path) -> dict[int, str]:
    return {int(row["task_index"]): str(row["task"]) for row in _jsonl(root / "meta/tasks.jsonl")}


def _tasks_v3(root: Path) -> dict[int, str]:
    """task_index -> sentence. The sentences are the table's pandas index: column `task`, or `__index_level_0__` if the
    index had no name."""
    file = root / "meta/tasks.parquet"
    table = _parquet(file, [])
    text = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if text is None:
        raise UserError(f"{file} has no column task or __index_level_0__; download meta/ anew.")
    return {
        int(index): str(task)
        for index, task in zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)
    }


def _depth(about: Mapping[str, Any]) -> bool:
    """Whether a feature says that it is a depth map, or has pixels of one channel and more than 8 bits."""
    infos = [about.get("info") or {}, about.get("video_info") or {}]
    named = any(info.get(name, False) for info in infos for name in ("is_depth_map", "video.is_depth_map"))
    return named or any(deep_grey(str(info.get("video.pix_fmt", ""))) for info in infos)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it anew.") from error


def _jsonl(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it anew.") from error


def _parquet(path: Path, columns: list[str]) -> pa.Table:
    """The named columns of a file, all if none are named. Raises UserError."""
    try:
        names = set(pq.read_schema(path).names)
        if missing := set(columns) - names:
            raise UserError(f"{path} has no column {min(missing)}; download meta/ anew.")
        return pq.read_table(path, columns=columns or None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it anew.") from error
