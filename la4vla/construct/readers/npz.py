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
from la4vla.construct.notes import Note
from la4vla.construct.readers.checks import (
    MAX_KEY,
    cameras,
    chosen_views,
    encode,
    existing,
    part_of,
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
        paths = part_of(sorted(root.glob("*.npz")), read)
        self._paths = {slug(path.stem, MAX_KEY): (number, path) for number, path in enumerate(paths)}
        if len(self._paths) < len(paths):
            raise UserError(f"{root}: two file names differ only in characters that keys cannot have; rename one.")
        self._keys = tuple(self._paths)
        self._first = paths[0]
        self._state, self._action = tuple(read.state) or ("state",), tuple(read.action) or ("action",)
        there, self._notes = cameras(_views(paths[0]), read)
        self._views = chosen_views(read, there)
        self._images = [IMAGES + name for name in self._views.values()]

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def notes(self) -> Sequence[Note]:
        return self._notes

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
        state, notes = vectors(column, self._state, self._robot_file.state, "state")
        action, more = vectors(column, self._action, self._robot_file.action, "action")
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
            notes=(*notes, *more),
        )

    def video_faults(self, episode: Episode) -> list[str]:
        path = self._paths[episode.key][1]
        due = -(-len(episode) // episode.frame_stride)
        headers, stride = _headers(path, self._images), self._usual_stride
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
        if stride != episode.frame_stride:
            faults.append(f"{path}: frame_stride {episode.frame_stride}, in {self._first} {stride}; keep them apart.")
        return faults

    def image_sizes(self, episode: Episode) -> dict[str, tuple[int, int]]:
        headers = _headers(self._paths[episode.key][1], self._images)
        shapes = {view: headers[IMAGES + name][0] for view, name in self._views.items()}
        return {view: (shape[1], shape[2]) for view, shape in shapes.items()}

    @cached_property
    def _usual_stride(self) -> int:
        """frame_stride of the first file; all others must agree. Raises BadEpisode."""
        return _frame_stride(_arrays(self._first, (STRIDE,)), self._first)

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


def _no_camera(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """Why an array holds no camera's images: it has one channel, and numbers of more than 8 bits. Else empty."""
    one = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    return f"one channel of {dtype}" if one and dtype != np.uint8 else ""


def _views(path: Path) -> dict[str, str]:
    """View of a file -> why it is no camera, empty if it is one. Raises UserError."""
    try:
        with np.load(path) as archive:
            names = sorted(name for name in archive.files if name.startswith(IMAGES))
        return {name.removeprefix(IMAGES): _no_camera(*header) for name, header in npz_headers(path, names).items()}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}), but this first file must say which views there are; write it anew."
        ) from error
