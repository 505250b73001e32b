"""`features.json` of a TFDS dataset: the name, type, shape and encoding of everything in a record of it.

Nothing is guessed: a feature that features.json does not name is not read, and values of another number or type than
it says are a fault.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from la4vla.construct.episodes import BadEpisode
from la4vla.construct.readers.example import Values
from la4vla.types import UserError

FILE, STEPS = "features.json", "steps"
ENCODINGS = ("none", "bytes", "zlib")
WHOLE = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = ("string", "bool", "float16", "float32", "float64", *WHOLE)


@dataclass(frozen=True)
class Feature:
    """One leaf of features.json.

    kind      tensor, image, text, or other: one that is not read
    dtype     of the values; `string` for text
    shape     of one value, None where a size varies
    encoding  of a tensor: none (numbers), bytes or zlib; of an image its format, or empty for any
    about     the Python class that wrote it
    """

    kind: Literal["tensor", "image", "text", "other"]
    dtype: str
    shape: tuple[int | None, ...]
    encoding: str
    about: str


@dataclass(frozen=True)
class RecordFeatures:
    """The features of a record, by their names as the record has them, `steps/` left out.

    steps    of every step
    episode  of the episode as a whole
    """

    steps: Mapping[str, Feature]
    episode: Mapping[str, Feature]


def read_features(folder: Path) -> RecordFeatures:
    """Raises UserError unless the folder has a features.json of episodes with steps."""
    path = folder / FILE
    try:
        raw = json.loads(path.read_text("utf-8"))
        whole = raw["featuresDict"]["features"]
        steps = whole[STEPS]["sequence"]["feature"]["featuresDict"]["features"]
        episode = {name: value for name, value in whole.items() if name != STEPS}
        return RecordFeatures(dict(_leaves(steps, "")), dict(_leaves(episode, "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not describe episodes with steps ({error!r}); read.path must name the folder of one version "
            "of an RLDS dataset, such as language_table/0.0.1."
        ) from error


def numbers(name: str, feature: Feature, values: Values, frames: int) -> np.ndarray:
    """A tensor of every step, [frames, *shape] of its own dtype. Raises BadEpisode."""
    if feature.encoding in ("bytes", "zlib"):
        values = _decoded(name, feature, values)
    if isinstance(values, list):
        raise BadEpisode(f"{name} holds byte strings, and {FILE} says {feature.dtype}; get the dataset anew.")
    size = [size or 0 for size in feature.shape]
    if len(values) != frames * prod(size):
        raise BadEpisode(
            f"{name} holds {len(values)} numbers, and {frames} steps of shape {list(feature.shape)} are "
            f"{frames * prod(size)}; get the dataset anew or leave the episode out."
        )
    return values.reshape(frames, *size).astype(np.bool_ if feature.dtype == "bool" else feature.dtype)


def texts(name: str, feature: Feature, values: Values, frames: int) -> list[str]:
    """The text of every step: of a text or a tensor of dtype string, or of a row of UTF-8 bytes padded with zeros, as
    LanguageTable's. Raises BadEpisode."""
    try:
        if isinstance(values, list) and feature.dtype == "string":
            _same_count(name, len(values), frames)
            return [item.decode() for item in values]
        rows = numbers(name, feature, values, frames)
        if rows.ndim != 2 or rows.dtype.kind not in "iu":
            raise BadEpisode(f"{name} is {feature.dtype} {list(feature.shape)}, no text; name another feature.")
        same = [False, *(rows[1:] == rows[:-1]).all(axis=1)]
        sentences: list[str] = []
        for row, repeated in zip(rows, same, strict=True):
            sentences.append(sentences[-1] if repeated else bytes(row.astype(np.uint8)).rstrip(b"\0").decode())
        return sentences
    except UnicodeDecodeError as error:
        raise BadEpisode(f"{name} is not UTF-8 ({error}); leave the episode out.") from error


def images_of(name: str, feature: Feature, values: Values, frames: int) -> list[bytes]:
    """The encoded image of every step. Raises BadEpisode."""
    if not isinstance(values, list):
        raise BadEpisode(f"{name} holds numbers, and {FILE} says images; get the dataset anew.")
    _same_count(name, len(values), frames)
    return values


def count_steps(feature: Feature, values: Values) -> int:
    """The number of steps that a tensor of known shape has."""
    each = 1 if isinstance(values, list) else prod(size or 0 for size in feature.shape)
    return len(values) // max(each, 1)


def _same_count(name: str, values: int, frames: int) -> None:
    if values != frames:
        raise BadEpisode(f"{name} has {values} values for {frames} steps; leave the episode out.")


def _decoded(name: str, feature: Feature, values: Values) -> np.ndarray:
    if not isinstance(values, list):
        raise BadEpisode(f"{name} holds numbers, and {FILE} says {feature.encoding}; get the dataset anew.")
    try:
        plain = [zlib.decompress(item) if feature.encoding == "zlib" else item for item in values]
        return np.concatenate([np.frombuffer(item, feature.dtype) for item in plain] or [np.zeros(0, feature.dtype)])
    except (zlib.error, ValueError) as error:
        raise BadEpisode(f"{name} does not decode as {feature.encoding} ({error}); get the dataset anew.") from error


def _leaves(features: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Feature]]:
    for name, value in features.items():
        if "featuresDict" in value:
            yield from _leaves(value["featuresDict"]["features"], f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", _leaf(value)


def _leaf(value: Mapping[str, Any]) -> Feature:
    about = value["pythonClassName"].rpartition(".")[2]
    if "tensor" in value:
        tensor = value["tensor"]
        shape, encoding = _shape(tensor), tensor.get("encoding", "none")
        known = encoding in ENCODINGS and None not in shape and tensor["dtype"] in DTYPES
        return Feature("tensor" if known else "other", tensor["dtype"], shape, encoding, about)
    if "image" in value:
        image = value["image"]
        return Feature("image", image.get("dtype", "uint8"), _shape(image), image.get("encodingFormat", ""), about)
    if "text" in value:
        return Feature("text", "string", (), "", about)
    if "classLabel" in value:
        return Feature("tensor", "int64", (), "none", about)
    return Feature("other", "", (), "", about)


def _shape(value: Mapping[str, Any]) -> tuple[int | None, ...]:
    sizes = [int(size) for size in value.get("shape", {}).get("dimensions", [])]
    return tuple(size if size >= 0 else None for size in sizes)
