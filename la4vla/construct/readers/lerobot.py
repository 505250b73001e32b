"""LeRobot datasets (v2.0, v2.1, v3.0) from their files, without the lerobot package: LA-33K, LIBERO, MetaWorld, DROID.

States, actions and the task come from the tables. Images come from videos or image columns, on demand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import BadEpisode, Caption, Episode, Frames
from la4vla.construct.ledger import digest
from la4vla.construct.notes import Note
from la4vla.construct.readers.captions import checked, from_changes, joined
from la4vla.construct.readers.checks import (
    MAX_KEY,
    as_jpeg,
    cameras,
    chosen_views,
    episode_key,
    is_grey_16,
    jpeg_size,
    part_of,
    robot_of,
    sentence,
    slug,
    stat_of,
    vectors,
)
from la4vla.construct.readers.lerobot_meta import EpisodeInfo, Meta, read_meta
from la4vla.construct.readers.lerobot_subtasks import TASK, frame_sentences, sentences_of
from la4vla.construct.readers.tables import (
    STANDARD,
    column_values,
    first_cell,
    may_hold,
    read_cells,
    read_table,
    row_group,
)
from la4vla.construct.readers.video import locate, read_frames, video_size
from la4vla.types import UserError

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
        there, self._notes = cameras(_views(self._meta), read)
        self._views = chosen_views(read, there)
        self._stride, self._quality = read.frame_stride, config.jpeg_quality
        episodes = part_of(self._meta.episodes, read)
        self._episodes = {episode_key("episode", item.index): item for item in episodes}
        self._keys = tuple(self._episodes)
        self._subtasks, self._sentences = read.subtasks, sentences_of(self._meta, read.subtasks)
        extra = {self._subtasks} - {"", *STANDARD}
        self._table = lru_cache(TABLES)(
            partial(read_table, columns=(*STANDARD, *extra, *self._columns["state"], *self._columns["action"]))
        )
        self._images = lru_cache(max(TABLES, len(self._views)))(read_cells)
        meta = self._meta
        files = [stat_of(path) for path in meta.files]
        named = [[str(number), text] for number, text in self._sentences.items()]
        self._about = digest(self._robot_file.text, files, dict(meta.tasks), meta.fps, dict(meta.features), named)

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def notes(self) -> Sequence[Note]:
        return self._notes

    def stamp(self, key: str) -> str:
        info = self._episodes[key]
        videos = {view: asdict(info.videos[name]) for view, name in self._views.items() if name in info.videos}
        data = [info.data] if self._meta.version != "v3.0" or may_hold(info.data, info.index) else self._data_files
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
        column = {name: column_values(table[name], name) for name in (*STANDARD, *names)}
        _check_time(column, self._meta.fps)
        captions = self._captions(table, column["timestamp"]) if self._subtasks else ()
        first = self._meta.tasks.get(int(column[TASK][0]), "")
        instruction = sentence(joined(captions) if self._subtasks == TASK else first)
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
            captions=captions,
        )

    def _captions(self, table: pa.Table, stamps_T: np.ndarray) -> tuple[Caption, ...]:
        time_T = stamps_T.astype(np.float64) - float(stamps_T[0])
        every = frame_sentences(table[self._subtasks], self._subtasks, self._sentences, time_T, self._meta.fps)
        return checked(from_changes(every), len(table), self._subtasks)

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
        info, sizes = self._episodes[episode.key], {}
        for view, name in self._views.items():
            if name in info.videos:
                sizes[view] = video_size(info.videos[name].path)
            else:
                path, _, row = self._rows(info)
                sizes[view] = jpeg_size(self._jpeg(first_cell(path, name, row), path, name, row))
        return sizes

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
                held[path] = np.unique(column_values(column, "episode_index"))
        return held

    @cached_property
    def _data_files(self) -> list[Path]:
        return sorted((self._meta.root / "data").glob("**/*.parquet"))

    def _image(self, path: Path, name: str, row: int) -> bytes:
        """An image of an image column. Raises BadEpisode."""
        first, cells = self._images(path, name, row_group(path, row))
        return self._jpeg(cells[row - first].as_py(), path, name, row)

    def _jpeg(self, cell: Any, path: Path, name: str, row: int) -> bytes:
        """The JPEG in a cell of an image column, {bytes, path}: the image is in one of the two. Raises BadEpisode."""
        if not isinstance(cell, Mapping):
            raise BadEpisode(f"{path}: column {name} has no image in row {row}; get it anew or drop the episode.")
        data = cell.get("bytes")
        if data is None:
            file = self._meta.root / str(cell.get("path"))
            if not file.is_file():
                raise BadEpisode(f"{path}: the image {file} of {name} is missing; get it or drop the episode.")
            data = file.read_bytes()
        return as_jpeg(data, self._quality)


def _views(meta: Meta) -> dict[str, str]:
    """View -> why it is no camera, empty if it is one. Of an image column, the first image tells."""
    views = meta.views
    for name, why in views.items():
        path = meta.episodes[0].data if meta.episodes else None
        if meta.features[name]["dtype"] == "image" and not why and path is not None:
            with suppress(BadEpisode):  # `read` says what is wrong with the file
                cell = first_cell(path, name, 0)
                data = cell.get("bytes") if isinstance(cell, Mapping) else None
                views[name] = "one channel of 16 bits" if is_grey_16(data or b"") else ""
    return views


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
