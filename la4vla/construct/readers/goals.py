"""Files beside an RLDS dataset that hold the level of its language that its records lack.

captions.json    parts of whole chains, by the episode's name
caption records  goals of clips that carry their low-level sentence themselves: SequenceExamples with
                 `long_horizon_instruction`, `captions`, `frames`, `start_times` and `end_times`, each in feature
                 lists or in the context; a clip is found by its sentence and its first picture
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from la4vla.construct.episodes import BadEpisode, Caption
from la4vla.construct.readers.example import SequenceRecord, Values, parse_sequence
from la4vla.construct.readers.tfrecord import records
from la4vla.types import UserError

THUMBNAIL = (32, 18)  # pixels, width x height, in which two pictures are compared
SAME_PICTURE = 4.0  # grey levels, mean over a thumbnail; encoding a picture anew changes it by less than 1 (estimate)


@dataclass(frozen=True)
class CaptionedChain:
    """An episode of captions.json.

    goal      its high-level sentence
    steps     as many as the episode has
    captions  in the order of time
    """

    goal: str
    steps: int
    captions: tuple[Caption, ...]


def read_chains(path: Path) -> dict[str, CaptionedChain]:
    """Name of an episode -> its captions in captions.json. Raises UserError."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        return {
            str(item["episode_id"]): CaptionedChain(
                str(item["long_horizon_instruction"]),
                int(item["steps"]),
                tuple(Caption(int(c["start"]), int(c["end"]), str(c["instruction"])) for c in item["captions"]),
            )
            for item in raw["episodes"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no captions.json ({error!r}); it holds `episodes`, each with episode_id, "
            "long_horizon_instruction, steps and captions of start, end and instruction (docs/rlds.md)."
        ) from error


@dataclass(frozen=True)
class _Scene:
    """The beginning of a captioned part. thumbnail: float32 [H, W]."""

    goal: str
    thumbnail: np.ndarray


class Goals:
    """The goals in caption records, by sentence and first picture."""

    def __init__(self, path: Path) -> None:
        """path: a TFRecord file, or a folder of them. Raises UserError where a record is none of captions."""
        files = sorted(item for item in path.rglob("*.tfrecord*")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"read.captions: {path} holds no *.tfrecord file of captions; name another folder.")
        self._path = path
        self._scenes: dict[str, list[_Scene]] = {}
        for file in files:
            for number, data in enumerate(records(file)):
                try:
                    self._add(parse_sequence(data))
                except (KeyError, ValueError, IndexError) as error:
                    what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                    raise UserError(
                        f"{file}: record {number} is none of captions ({what}); correct read.captions."
                    ) from error

    def of(self, sentence: str, jpeg: bytes) -> str:
        """The goal that a clip serves. Raises BadEpisode where no record has its sentence and its first picture, or
        records of two goals have them alike."""
        picture = _thumbnail(jpeg)
        apart = [
            (float(np.abs(scene.thumbnail - picture).mean()), scene.goal)
            for scene in self._scenes.get(_plain(sentence), ())
        ]
        best = min(apart, default=(np.inf, ""))
        if best[0] > SAME_PICTURE:
            raise BadEpisode(
                f"{self._path} has no goal for `{sentence}` with the clip's first picture; leave the clip out "
                "(read.max_bad_episodes), or get the captions of these clips."
            )
        if rivals := {goal for distance, goal in apart if distance <= best[0] and goal != best[1]}:
            raise BadEpisode(
                f"{self._path} has two goals for `{sentence}` with the clip's first picture, `{best[1]}` and "
                f"`{min(rivals)}`; leave the clip out."
            )
        return best[1]

    def _add(self, record: SequenceRecord) -> None:
        goal = _strings(_flat(record, "long_horizon_instruction"))[0].decode()
        frames, captions = (_strings(_flat(record, name)) for name in ("frames", "captions"))
        starts = [int(value) for value in _flat(record, "start_times")]
        if len(starts) != len(captions):
            raise ValueError(f"{len(captions)} captions have {len(starts)} start_times")
        for caption, start in zip(captions, starts, strict=True):
            scene = _Scene(" ".join(goal.split()), _thumbnail(frames[start]))
            self._scenes.setdefault(_plain(caption.decode()), []).append(scene)


def _flat(record: SequenceRecord, name: str) -> list[bytes] | np.ndarray:
    """A feature's values, whether it stands in the context or as a list of features. Raises KeyError."""
    if name in record.context:
        return record.context[name]
    parts: list[Values] = record.lists[name]
    if any(isinstance(part, list) for part in parts):
        return [value for part in parts for value in part]
    return np.concatenate([np.asarray(part) for part in parts] or [np.zeros(0, np.int64)])


def _strings(values: list[bytes] | np.ndarray) -> list[bytes]:
    if not isinstance(values, list):
        raise ValueError("a text or a picture is a list of numbers")
    return values


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().split()).rstrip(".")


def _thumbnail(jpeg: bytes) -> np.ndarray:
    """float32 [H, W], grey. Raises BadEpisode."""
    try:
        grey = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")[..., 0]
    except ValueError as error:
        raise BadEpisode(f"a picture of a captioned clip is a damaged JPEG ({error}); leave it out.") from error
    return cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)


def chain_of(chains: Mapping[str, CaptionedChain], name: str, steps: int, path: Path) -> CaptionedChain:
    """Raises BadEpisode for an episode that is in no captions, or has another length there."""
    if name not in chains:
        raise BadEpisode(f"{path} has no captions of `{name}`; add them or leave the episode out.")
    chain = chains[name]
    if chain.steps != steps:
        raise BadEpisode(f"{path} says that `{name}` has {chain.steps} steps, and it has {steps}; correct one of them.")
    return chain
