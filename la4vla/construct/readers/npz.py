"""A folder of `.npz` files, one an episode: the format for datasets that no other reader knows.

docs/construction.md, "Reading", lists the arrays of a file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import BadEpisode, Episode, Frames
from la4vla.construct.ledger import digest
from la4vla.construct.readers.checks import (
    MAX_KEY,
    chosen_views,
    encode,
    existing,
    robot_of,
    sentence,
    slug,
    stat_of,
    vectors,
)
from la4vla.data.npz import npz_headers, read_npz
from la4vla.types import UserError

IMAGES, STRIDE = "images_", "frame_stride"
Headers = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Array -> its shape and dtype."""


class Npz:
    """A Dataset: files in the order of their names. The first file says which views there are."""

    def __init__(self, config: ConstructConfig) -> None:
        read = config.read
        root = existing(Path(read.path), "*.npz file", "*.npz", "npz")
        self._robot_file = robot_of(read)
        self._robot = self._robot_file.robot
        self._quality = config.jpeg_quality
        paths = sorted(root.glob("*.npz"))[: read.max_episodes or None]
        self._paths = {slug(path.stem, MAX_KEY): (number, path) for number, path in enumerate(paths)}
        if len(self._paths) < len(paths):
            raise UserError(f"{root}: two file names differ only in characters that keys cannot have; rename one.")
        self._keys = tuple(self._paths)
        self._first = paths[0]
        self._state, self._action = tuple(read.state) or ("state",), tuple(read.action) or ("action",)
        self._views = chosen_views(read, _views(paths[0]))
        self._images = [IMAGES + name for name in self._views.values()]

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def stamp(self, key: str) -> str:
        return digest(self._robot_file.text, stat_of(self._paths[key][1]))

    def read(self, key: str) -> Episode:
        number, path = self._paths[key]
        wanted = (*self._state, *self._action, "instruction")
        optional = ("task", STRIDE)
        column = _arrays(path, (*wanted, *optional))
        if missing := [name for name in wanted if name not in column]:
            raise BadEpisode(f"{path} has no {missing[0]}; add it or remove the file.")
        instruction = sentence(_text(column["instruction"], "instruction", path))
        stride = _frame_stride(column, path)
        state = vectors(column, self._state, self._robot_file.state, "state")
        action = vectors(column, self._action, self._robot_file.action, "action")
        if len(state) != len(action):
            raise BadEpisode(f"{path}: {len(state)} states but {len(action)} actions; give every state its action.")
        return Episode(
            key=key,
            task=slug(_text(column["task"], "task", path) if "task" in column else instruction, MAX_KEY),
            number=number,
            instruction=instruction,
            robot=self._robot,
            fps=self._robot_file.control_hz,
            state=state,
            action=action,
            views=tuple(self._views),
            frame_stride=stride,
            frames=partial(self._frames, path, stride),
        )

    def video_faults(self, episode: Episode) -> list[str]:
        path = self._paths[episode.key][1]
        due = -(-len(episode) // episode.frame_stride)
        headers = _headers(path, self._images)
        first, stride = self._usual
        faults = []
        for name in self._images:
            shape, dtype = headers.get(name, ((0,), np.dtype(np.uint8)))
            if shape[:1] != (due,):
                faults.append(
                    f"{path}: {name} has {shape[0] if shape else 'no'} images, {due} are due for {len(episode)} "
                    f"frames at frame_stride {episode.frame_stride}; correct frame_stride or the images."
                )
            elif dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
                faults.append(f"{path}: {name} is {dtype} {shape}, not uint8 [N, H, W, 3]; convert it.")
            elif shape[1:] != first[name][0][1:]:
                usual = first[name][0][1:3]
                faults.append(f"{path}: {name} is {shape[1:3]} pixels, in {self._first} {usual}; convert it.")
        if stride != episode.frame_stride:
            faults.append(f"{path}: frame_stride {episode.frame_stride}, in {self._first} {stride}; keep them apart.")
        return faults

    @cached_property
    def _usual(self) -> tuple[Headers, int]:
        """Headers of the images, and frame_stride, of the first file; all others must agree. Raises BadEpisode."""
        stride = _frame_stride(_arrays(self._first, (STRIDE,)), self._first)
        return _headers(self._first, self._images), stride

    def _frames(self, path: Path, stride: int, view: str, numbers: Sequence[int]) -> Frames:
        images = _arrays(path, [IMAGES + self._views[view]])[IMAGES + self._views[view]]
        return {number: encode(images[number // stride], self._quality) for number in numbers}


def _arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of a file, without those that do not exist. Raises BadEpisode."""
    with _readable(path):
        return read_npz(path, names)


def _headers(path: Path, names: Sequence[str]) -> Headers:
    """The headers of the named arrays, without those that do not exist. Raises BadEpisode."""
    with _readable(path):
        return npz_headers(path, names)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into BadEpisode."""
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BadEpisode(f"{path} cannot be read ({error}); write it anew or remove it.") from error


def _text(value: np.ndarray, name: str, path: Path) -> str:
    """The one text of an array. Raises BadEpisode."""
    if value.size != 1 or value.dtype.kind not in "US":
        raise BadEpisode(f"{path}: {name} is {value.dtype} {value.shape}, not one text; correct it.")
    text = value.item()
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise BadEpisode(f"{path}: {name} is not UTF-8 ({error}); correct it.") from error


def _frame_stride(column: Mapping[str, np.ndarray], path: Path) -> int:
    """The file's frame_stride, 1 if it has none. Raises BadEpisode."""
    value = column.get(STRIDE, np.array(1))
    if value.dtype.kind not in "iu" or value.size != 1 or value.item() < 1:
        raise BadEpisode(f"{path}: frame_stride is not one whole number of at least 1; correct it.")
    return int(value.item())


def _views(path: Path) -> list[str]:
    """Names of the views of a file. Raises UserError."""
    try:
        with np.load(path) as archive:
            return sorted(name.removeprefix(IMAGES) for name in archive.files if name.startswith(IMAGES))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}), but this first file must say which views there are; write it anew."
        ) from error
