"""Tables: the parquet files of a LeRobot dataset, read a few columns, a row group or a cell at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from la4vla.construct.episodes import BadEpisode
from la4vla.construct.readers.checks import stat_of

STANDARD = ("timestamp", "frame_index", "episode_index", "task_index")


def read_table(path: Path, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray, frozenset[str]]:
    """(the named columns of a parquet file, the episode of each row, the names of all columns). Raises BadEpisode."""
    try:
        with pq.ParquetFile(path) as file:
            there = frozenset(file.schema_arrow.names)
            if missing := [name for name in columns if name not in there]:
                raise BadEpisode(f"{path} has no column {missing[0]}; get it anew or drop the episode.")
            table = file.read(columns=list(columns)).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise BadEpisode(f"{path} cannot be read ({error}); get it anew or drop the episode.") from error
    return table, column_values(table["episode_index"], "episode_index"), there


def read_cells(path: Path, name: str, group: int) -> tuple[int, pa.ChunkedArray]:
    """(row of the first cell, cells of a column) of one row group. Raises BadEpisode."""
    try:
        with pq.ParquetFile(path) as file:
            first = sum(file.metadata.row_group(item).num_rows for item in range(group))
            return first, file.read_row_group(group, columns=[name])[name]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise BadEpisode(f"{path}: {name} cannot be read ({error}); get it anew or drop the episode.") from error


def first_cell(path: Path, name: str, row: int) -> Any:
    """A cell of a column of large cells, found without reading its whole row group. Raises BadEpisode."""
    group = row_group(path, row)
    inside = row - int(_group_ends(path, tuple(stat_of(path)))[group - 1] if group else 0)
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=inside + 1, row_groups=[group], columns=[name]):
                return batch.column(0)[inside].as_py()
    except (OSError, KeyError, IndexError, pa.ArrowException) as error:
        raise BadEpisode(f"{path}: {name} cannot be read ({error}); get it anew or drop the episode.") from error
    raise BadEpisode(f"{path}: {name} has no row {row}; get it anew or drop the episode.")


def row_group(path: Path, row: int) -> int:
    """The row group of a parquet file that holds a row."""
    ends = _group_ends(path, tuple(stat_of(path)))
    return int(np.searchsorted(ends, row, "right"))


@lru_cache(maxsize=64)
def _group_ends(path: Path, stat: tuple[int, ...]) -> np.ndarray:
    about = pq.read_metadata(path)
    return np.cumsum([about.row_group(item).num_rows for item in range(about.num_row_groups)])


def may_hold(path: Path, episode: int) -> bool:
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
        if limits is not None and limits.has_min_max:
            ranges.append((limits.min, limits.max))
        else:
            ranges.append((-np.inf, np.inf))
    return ranges


def column_values(column: pa.ChunkedArray, name: str) -> np.ndarray:
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
