"""LeRobot datasets (v2.0, v2.1, v3.0) from their files, without the lerobot package: LA-33K, LIBERO, MetaWorld, DROID.

States, actions and the task come from the tables. Images come from videos or image columns, on demand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import BadEpisode, Episode, Frames
from la4vla.construct.ledger import digest
from la4vla.construct.notes import Note
from la4vla.construct.readers.checks import (
    MAX_KEY,
    as_jpeg,
    cameras,
    chosen_views,
    episode_key,
    first_sizes,
    robot_of,
    sentence,
    slug,
    stat_of,
    vectors,
)
from la4vla.construct.readers.lerobot_meta import EpisodeInfo, Meta, read_meta
from la4vla.construct.readers.video import locate, read_frames, video_size
from la4vla.types import UserError

STANDARD = ("timestamp", "frame_index", "episode_index", "task_index")
USUAL = {"state": ("observation.state", "state"), "action": ("action", "actions")}
TABLES = 4  # parquet files kept in memory: v3.0 has hundreds of episodes in each


class LeRobot:
    """A Dataset: a folder with meta/, data/ and perhaps videos/."""

    def __init__(self, config: ConstructConfig) -> None:
        read = config.read
        self._meta = read_meta(Path(read.path))
        self._robot_file = robot_of(read)
        self._robot = self._robot_file.robot
        self._columns = {
            "state": _columns(self._meta, "state", read.state),
            "action": _columns(self._meta, "action", read.action),
        }
        there, self._notes = cameras(self._meta.views, read)
        self._views = chosen_views(read, there)
        self._stride, self._quality = read.frame_stride, config.jpeg_quality
        episodes = self._meta.episodes[: read.max_episodes or None]
        self._episodes = {episode_key("episode", item.index): item for item in episodes}
        self._keys = tuple(self._episodes)
        self._table = lru_cache(TABLES)(
            partial(_read_table, columns=(*STANDARD, *self._columns["state"], *self._columns["action"]))
        )
        self._images = lru_cache(max(TABLES, len(self._views)))(_read_images)
        meta = self._meta
        files = [stat_of(path) for path in meta.files]
        self._about = digest(self._robot_file.text, files, dict(meta.tasks), meta.fps, dict(meta.features))

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def notes(self) -> Sequence[Note]:
        return self._notes

    def stamp(self, key: str) -> str:
        info = self._episodes[key]
        videos = {view: asdict(info.videos[name]) for view, name in self._views.items() if name in info.videos}
        data = [info.data] if self._meta.version != "v3.0" or _may_hold(info.data, info.index) else self._data_files
        files = [*map(stat_of, data), *(stat_of(Path(span["path"])) for span in videos.values())]
        return digest(self._about, info.length, str(videos), files)

    def read(self, key: str) -> Episode:
        info = self._episodes[key]
        path, table, _ = self._rows(info)
        if len(table) != info.length:
            raise BadEpisode(
                f"{path} has {len(table)} frames of episode {info.index}, but meta/ says {info.length}; get both "
                "anew or drop the episode."
            )
        names = {name for columns in self._columns.values() for name in columns}
        column = {name: _numbers(table[name], name) for name in (*STANDARD, *names)}
        _check_time(column, self._meta.fps)
        instruction = sentence(self._meta.tasks.get(int(column["task_index"][0]), ""))
        state, notes = vectors(column, self._columns["state"], self._robot_file.state, "state")
        action, more = vectors(column, self._columns["action"], self._robot_file.action, "action")
        if path != info.data:
            more.append(Note("data_file", f"meta/ puts the rows into {info.data}, they are in {path}; correct meta/."))
        return Episode(
            key=key,
            task=slug(instruction, MAX_KEY),
            number=info.index,
            instruction=instruction,
            robot=self._robot,
            fps=self._meta.fps,
            state=state,
            action=action,
            views=tuple(self._views),
            frame_stride=self._stride,
            frames=partial(self._frames, info),
            notes=(*notes, *more),
        )

    def video_faults(self, episode: Episode) -> list[str]:
        info = self._episodes[episode.key]
        faults = []
        for name in self._views.values():
            try:
                if name in info.videos:
                    self._locate(info, name)
                elif name not in self._table(self._file_of(info))[2]:
                    raise BadEpisode(
                        f"{self._file_of(info)} has no image column {name}; get it, or read without images "
                        "(read.images=false)."
                    )
            except BadEpisode as error:
                faults.append(str(error))
        return faults

    def image_sizes(self, episode: Episode) -> dict[str, tuple[int, int]]:
        videos = self._episodes[episode.key].videos
        filmed = {view: video_size(videos[name].path) for view, name in self._views.items() if name in videos}
        stored = tuple(view for view in self._views if view not in filmed)
        return filmed | first_sizes(replace(episode, views=stored))

    def _frames(self, info: EpisodeInfo, view: str, numbers: Sequence[int]) -> Frames:
        name = self._views[view]
        if name in info.videos:
            first = self._locate(info, name)
            return read_frames(info.videos[name].path, first, numbers, self._quality)
        path, _, start = self._rows(info)
        return {number: self._image(path, name, start + number) for number in numbers}

    def _locate(self, info: EpisodeInfo, name: str) -> int:
        span = info.videos[name]
        return locate(span.path, span.from_s, span.to_s, span.before, info.length, self._meta.fps)

    def _rows(self, info: EpisodeInfo) -> tuple[Path, pa.Table, int]:
        """(parquet file that holds the episode, its rows there, number of the first row). Raises BadEpisode."""
        path = self._file_of(info)
        table, episode_N, _ = self._table(path)
        rows = np.flatnonzero(episode_N == info.index)
        if len(rows) == 0 or rows[-1] - rows[0] + 1 != len(rows):
            raise BadEpisode(
                f"{path}: the rows with episode_index {info.index} do not follow each other; get it anew or drop the "
                "episode."
            )
        return path, table.slice(int(rows[0]), len(rows)), int(rows[0])

    def _file_of(self, info: EpisodeInfo) -> Path:
        """The parquet file that holds the episode: the one that meta/ names, else the only other one with its rows.

        Raises BadEpisode with the episodes that each file does hold.
        """
        has = "does not exist"
        if info.data.is_file():
            _, episode_N, _ = self._table(info.data)
            if info.index in episode_N:
                return info.data
            has = f"has {_span(episode_N)}"
        others = [path for path, held in self._held.items() if info.index in held]
        if len(others) == 1:
            return others[0]
        where = f"{len(others)} other files of data/ have them" if others else "no other file of data/ has them"
        raise BadEpisode(
            f"meta/ says that {info.data} has the rows of episode {info.index}, but it {has}, and {where}; get data/ "
            "and meta/ anew, or leave the episode out (read.max_bad_episodes)."
        )

    @cached_property
    def _held(self) -> dict[Path, np.ndarray]:
        """The episodes of each parquet file under data/, read once and only if meta/ names a wrong file."""
        held = {}
        for path in self._data_files:
            # What cannot be read is a fault of the episodes that meta/ puts there.
            with suppress(OSError, KeyError, pa.ArrowException):
                column = pq.read_table(path, columns=["episode_index"])["episode_index"]
                held[path] = np.unique(_numbers(column, "episode_index"))
        return held

    @cached_property
    def _data_files(self) -> list[Path]:
        return sorted((self._meta.root / "data").glob("**/*.parquet"))

    def _image(self, path: Path, name: str, row: int) -> bytes:
        """The JPEG in a cell of an image column, {bytes, path}: the image is in one of the two. Raises BadEpisode."""
        first, cells = self._images(path, name, _row_group(path, row))
        cell: Any = cells[row - first].as_py()
        if not isinstance(cell, Mapping):
            raise BadEpisode(f"{path}: column {name} has no image in row {row}; get it anew or drop the episode.")
        data = cell.get("bytes")
        if data is None:
            file = self._meta.root / str(cell.get("path"))
            if not file.is_file():
                raise BadEpisode(f"{path}: the image {file} of {name} is missing; get it or drop the episode.")
            data = file.read_bytes()
        return as_jpeg(data, self._quality)


def _columns(meta: Meta, what: str, named: Sequence[str]) -> tuple[str, ...]:
    """The columns of the state or action: those named in the config, else the usual one. Raises UserError."""
    usual = [name for name in USUAL[what] if name in meta.features][:1]
    columns = tuple(named or usual)
    missing = [name for name in columns if name not in meta.features]
    if missing or not columns:
        raise UserError(
            f"{meta.root} has no column {missing[0] if missing else ' or '.join(USUAL[what])} for the {what}; name its "
            f"columns in read.{what}, of {', '.join(meta.features)}."
        )
    return columns


def _read_table(path: Path, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray, frozenset[str]]:
    """(the named columns of a parquet file, the episode of each row, the names of all columns). Raises BadEpisode."""
    try:
        with pq.ParquetFile(path) as file:
            there = frozenset(file.schema_arrow.names)
            if missing := [name for name in columns if name not in there]:
                raise BadEpisode(f"{path} has no column {missing[0]}; get it anew or drop the episode.")
            table = file.read(columns=list(columns)).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise BadEpisode(f"{path} cannot be read ({error}); get it anew or drop the episode.") from error
    return table, _numbers(table["episode_index"], "episode_index"), there


def _read_images(path: Path, name: str, group: int) -> tuple[int, pa.ChunkedArray]:
    """(row of the first cell, cells of an image column) of one row group. Raises BadEpisode."""
    try:
        with pq.ParquetFile(path) as file:
            first = sum(file.metadata.row_group(item).num_rows for item in range(group))
            return first, file.read_row_group(group, columns=[name])[name]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise BadEpisode(f"{path}: {name} cannot be read ({error}); get it anew or drop the episode.") from error


def _row_group(path: Path, row: int) -> int:
    """The row group of a parquet file that holds a row."""
    ends = _group_ends(path, tuple(stat_of(path)))
    return int(np.searchsorted(ends, row, "right"))


@lru_cache(maxsize=64)
def _group_ends(path: Path, stat: tuple[int, ...]) -> np.ndarray:
    about = pq.read_metadata(path)
    return np.cumsum([about.row_group(item).num_rows for item in range(about.num_row_groups)])


def _may_hold(path: Path, episode: int) -> bool:
    """Whether a parquet file may hold an episode, by the statistics in its footer. Reads no rows."""
    return path.is_file() and any(low <= episode <= high for low, high in _episode_ranges(path, tuple(stat_of(path))))


@lru_cache(maxsize=1024)
def _episode_ranges(path: Path, stat: tuple[int, ...]) -> list[tuple[float, float]]:
    """(lowest, highest) episode of each row group; without limits where the footer does not say."""
    try:
        about = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return [(-np.inf, np.inf)]  # `read` says what is wrong with the file
    ranges = []
    for group in map(about.row_group, range(about.num_row_groups)):
        columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
        limits = columns["episode_index"].statistics if "episode_index" in columns else None
        known = limits is not None and limits.has_min_max
        ranges.append((limits.min, limits.max) if known else (-np.inf, np.inf))
    return ranges


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column as an array [T] or [T, D]. Raises BadEpisode for rows of different lengths."""
    array: Any = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        lengths = {array.type.list_size}
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = set(array.value_lengths().to_pylist())
    else:
        return array.to_numpy(zero_copy_only=False)
    if len(lengths) != 1 or array.null_count:
        raise BadEpisode(f"column {name} has rows of different lengths {lengths}; repair or drop the episode.")
    values = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return values[:, 0] if name in STANDARD and values.shape[1] == 1 else values


def _span(episode_N: np.ndarray) -> str:
    """Which episodes a table holds, in words."""
    held = np.unique(episode_N)
    return f"episodes {held[0]} to {held[-1]}" if len(held) > 1 else f"episode {held[0]}" if len(held) else "no rows"


def _check_time(column: Mapping[str, np.ndarray], fps: float) -> None:
    """Raises BadEpisode unless frames are 0, 1, 2 ... and their time stamps at most half a frame off the rate."""
    for name in STANDARD:
        if column[name].dtype.kind not in ("f" if name == "timestamp" else "iu"):
            raise BadEpisode(f"column {name} has dtype {column[name].dtype} or gaps; repair or drop the episode.")
    frame_T = np.arange(len(column["frame_index"]))
    if not np.array_equal(column["frame_index"], frame_T):
        raise BadEpisode("frame_index is not 0, 1, 2 ...: frames are missing or doubled; repair or drop the episode.")
    stamps_T = column["timestamp"].astype(np.float64)
    drift_T = np.abs(stamps_T - stamps_T[0] - frame_T / fps)
    if not drift_T.max() <= 0.5 / fps:
        frame = int(np.argmax(~(drift_T <= 0.5 / fps)))
        raise BadEpisode(
            f"time stamps drift: frame {frame} is {drift_T[frame]:.3f} s off {fps:g} frames a second; resample or drop "
            "the episode."
        )
