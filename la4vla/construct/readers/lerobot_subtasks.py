"""What a LeRobot dataset calls the parts of an episode: a sentence for every frame.

task_index           a sentence of meta/tasks, where a dataset gives each frame a task of its own
subtask_index        a sentence of meta/subtasks.parquet
language_persistent  rows of style `subtask`, each in force from its timestamp on (lerobot-annotate)
any other column     that holds text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from la4vla.construct.episodes import BadEpisode
from la4vla.construct.readers.lerobot_meta import Meta
from la4vla.types import UserError

TASK, SUBTASK, PERSISTENT = "task_index", "subtask_index", "language_persistent"
SUBTASKS = "meta/subtasks.parquet"


def sentences_of(meta: Meta, column: str) -> Mapping[int, str]:
    """Number -> sentence, for a column of numbers; empty for any other. Raises UserError where there is no column, or
    no table of its sentences."""
    if not column:
        return {}
    if column not in meta.features:
        raise UserError(
            f"{meta.root} has no column `{column}`, which read.subtasks names; it has {', '.join(meta.features)}."
        )
    if column == TASK:
        return meta.tasks
    if column != SUBTASK:
        return {}
    path = meta.root / SUBTASKS
    try:
        table = pq.read_table(path)
        text = next(name for name in ("subtask", "__index_level_0__") if name in table.column_names)
        return dict(zip(table[SUBTASK].to_pylist(), table[text].to_pylist(), strict=True))
    except (OSError, KeyError, StopIteration, pa.ArrowException) as error:
        raise UserError(
            f"{path} has no subtask_index with its sentences ({error!r}); download meta/ anew, or leave read.subtasks "
            "empty."
        ) from error


def frame_sentences(
    cells: pa.ChunkedArray, column: str, sentences: Mapping[int, str], time_T: np.ndarray, fps: float
) -> list[str]:
    """The sentence of every frame, empty where there is none. time_T: s since the episode began. Raises BadEpisode."""
    if sentences:
        numbers = [int(value) if value is not None else -1 for value in cells.to_pylist()]
        if unknown := [value for value in numbers if value >= 0 and value not in sentences]:
            raise BadEpisode(f"{column} {unknown[0]} has no sentence in meta/; get the dataset anew.")
        return [" ".join(sentences.get(value, "").split()) for value in numbers]
    if column == PERSISTENT:
        return _in_force(cells[0].as_py() or [], time_T, fps)
    if not (pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)):
        raise BadEpisode(f"column {column} is {cells.type}, no text; name another column in read.subtasks.")
    return [" ".join((value or "").split()) for value in cells.to_pylist()]


def _in_force(rows: list[Mapping[str, Any]], time_T: np.ndarray, fps: float) -> list[str]:
    """The newest row's sentence at each frame. rows: those of the whole episode, as every frame repeats them."""
    said = sorted((float(row["timestamp"]), str(row["content"])) for row in rows if row["style"] == "subtask")
    begins = np.array([moment for moment, _ in said]) - 0.5 / fps  # a timestamp is a frame's, rounded
    newest = np.searchsorted(begins, time_T, "right") - 1
    return [" ".join(said[number][1].split()) if number >= 0 else "" for number in newest]
