"""The shard format of conversations, and their only writer.

A record is one row, a run of adjacent tar members: `{key}.json` and `{key}.{view}.{t:05d}.jpg` for its images. The JSON
    messages     [{role, text, images: [number ...]}, ...] up to the last question
    images       [[view, t] ...], the row's images by number
    answer       what is learned to say then
    question     type of the last question
    task, episode, span, instruction   where it comes from; empty or null for conversations of no robot
    scores       {name: number} or null, of what the answer says
Index and order are those of every folder: a row is a record of length 1. There are no statistics; `about.json` says
what the rows were made with, and how many there are of each type of question.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from la4vla.data.shards.index import Index, Shard, View, read_small
from la4vla.data.shards.tars import Files, FolderWriter, check_view
from la4vla.types import Embodiment, Role, TextRow, Turn, UserError

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
ABOUT, ROWS = "about.json", "rows"
MAX_FRAME = 99999  # what the five digits of an image's name hold


@dataclass(frozen=True)
class StoredImage:
    """An image of a row.

    view  camera, or any other name of where it comes from
    t     frame of its episode, or a number that tells it from others of the view
    jpeg  upright RGB
    """

    view: str
    t: int
    jpeg: bytes | memoryview


@dataclass(frozen=True)
class TextRecord:
    """One conversation as it is stored; types.TextRow is the same with its images decoded.

    key          unique in its folder, no dots
    turns        alternate between user and assistant, behind at most one system turn; the last is the answer
    images       shown in this order, each once
    question     type of the last question
    task         of the demonstration, or empty
    episode      that it was made from, or empty
    span         first frame and the one past the last, or None
    instruction  of the clip, or empty
    scores       of the answer, by the name of what scored it
    """

    key: str
    turns: tuple[Turn, ...]
    images: tuple[StoredImage, ...]
    question: str
    task: str = ""
    episode: str = ""
    span: tuple[int, int] | None = None
    instruction: str = ""
    scores: Mapping[str, float] | None = None

    @property
    def answer(self) -> str:
        return self.turns[-1].text

    def row(self, key: str, images: Sequence[np.ndarray]) -> TextRow:
        """The same with its images decoded. key: the row's name in messages."""
        return TextRow(
            key=key,
            turns=self.turns,
            images=tuple(images),
            question=self.question,
            task=self.task,
            episode=self.episode,
            span=self.span,
            instruction=self.instruction,
        )

    def decoded(self, key: str, folder: str) -> TextRow:
        """The same with its images decoded. Raises UserError, naming the folder, for an image that is damaged."""
        try:
            return self.row(key, [simplejpeg.decode_jpeg(image.jpeg, colorspace="RGB") for image in self.images])
        except ValueError as error:
            raise UserError(
                f"{folder}: an image of {self.key} is damaged ({error}); write the folder again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """What the record's JSON says."""
        *before, answer = self.turns
        return {
            "messages": [{"role": turn.role, "text": turn.text, "images": list(turn.images)} for turn in before],
            "images": [[image.view, image.t] for image in self.images],
            "answer": answer.text,
            "question": self.question,
            "task": self.task,
            "episode": self.episode,
            "span": list(self.span) if self.span else None,
            "instruction": self.instruction,
            "scores": dict(self.scores) if self.scores is not None else None,
        }

    @staticmethod
    def from_dict(key: str, raw: Mapping[str, Any], jpegs: Mapping[tuple[str, int], bytes | memoryview]) -> TextRecord:
        """jpegs: by view and frame. Raises KeyError for what is missing, ValueError for an unknown role."""
        turns = tuple(
            Turn(ROLES[ROLES.index(turn["role"])], turn["text"], tuple(turn["images"])) for turn in raw["messages"]
        )
        return TextRecord(
            key=key,
            turns=(*turns, Turn("assistant", raw["answer"])),
            images=tuple(StoredImage(view, t, jpegs[view, t]) for view, t in raw["images"]),
            question=raw["question"],
            task=raw["task"],
            episode=raw["episode"],
            span=(raw["span"][0], raw["span"][1]) if raw["span"] else None,
            instruction=raw["instruction"],
            scores=raw["scores"],
        )


def fault(record: TextRecord) -> str:
    """What is wrong with a row's turns and images, in words; empty: nothing."""
    spoken = [turn.role for turn in record.turns]
    if spoken[:1] == ["system"]:
        spoken = spoken[1:]
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        return f"its turns are {', '.join(turn.role for turn in record.turns)}; user and assistant must take turns"
    if any(turn.role == "assistant" and not turn.text.strip() for turn in record.turns):
        return "an answer is empty"
    if any(turn.images for turn in record.turns if turn.role != "user"):
        return "images are shown with a turn that is not the user's"
    shown = [number for turn in record.turns for number in turn.images]
    if shown != list(range(len(record.images))):
        return f"it has {len(record.images)} images and shows {shown}; each is shown once, in order"
    return ""


class TextWriter(FolderWriter):
    """Writes conversations into exactly `shards` tars. Rows and images are not kept in memory.

    about: what the rows were made with, JSON-able, for `read_about`.
    """

    def __init__(
        self,
        folder: str | Path,
        shards: int,
        robot: Embodiment | None = None,
        overwrite: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, shards, 1, overwrite)
        self._robot, self._about = robot, dict(about or {})
        self._sizes: dict[str, set[tuple[int, int]]] = {}
        self._rows: Counter[str] = Counter()

    def add(self, record: TextRecord) -> None:
        """Checks a row and writes it to the emptiest tar. Raises UserError naming the key and what is wrong."""
        views = list(dict.fromkeys(image.view for image in record.images))
        for view in views:
            check_view(view)
        self.check_key(record.key, views)
        if wrong := fault(record):
            raise UserError(f"row {record.key}: {wrong}; mend the row or leave it out.")
        sizes = [_size(record.key, image) for image in record.images]
        self.put(record.key, 1, _files(record))
        self._rows[record.question] += 1
        for image, size in zip(record.images, sizes, strict=True):
            self._sizes.setdefault(image.view, set()).add(size)

    def _describe(self, shards: tuple[Shard, ...]) -> Index:
        views = {name: View(*_common(sizes)) for name, sizes in self._sizes.items()}
        return Index(str(self.folder), "texts", self._robot, views, 1, shards)

    def _companions(self) -> Mapping[str, str]:
        return {ABOUT: json.dumps({**self._about, ROWS: dict(sorted(self._rows.items()))}, indent=1)}


def read_about(folder: str | Path) -> dict[str, Any]:
    """What a folder's rows were made with, as its writer was told, and `rows`: type of question -> number of them.
    Raises UserError if that cannot be read."""
    location = str(folder)
    try:
        return json.loads(read_small(location, ABOUT))
    except ValueError as error:
        raise UserError(f"{location}: {ABOUT} is damaged ({error}); write the folder again.") from error


def _files(record: TextRecord) -> Files:
    images = [(f"{record.key}.{image.view}.{image.t:05d}.jpg", image.jpeg) for image in record.images]
    return [(f"{record.key}.json", json.dumps(record.to_dict()).encode()), *images]


def _size(key: str, image: StoredImage) -> tuple[int, int]:
    """(height, width) in pixels. Raises UserError for an image that is none."""
    if not 0 <= image.t <= MAX_FRAME:
        raise UserError(f"row {key}: image {image.t} of {image.view}; number images from 0 to {MAX_FRAME}.")
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(image.jpeg)
    except ValueError as error:
        raise UserError(
            f"row {key}: view {image.view}, image {image.t} is not a JPEG ({error}); encode it again."
        ) from error
    return int(height), int(width)


def _common(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    return next(iter(sizes)) if len(sizes) == 1 else (0, 0)
