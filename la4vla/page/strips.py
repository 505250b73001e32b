"""Example clips for a page: each as a strip of small pictures a view, and a plot of its signals.

Pictures are made small and joined to one JPEG a view, so that a page of many clips stays a few megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from la4vla.page.page import data_uri
from la4vla.types import UserError

PICTURES = 6  # a view
HEIGHT = 112  # pixels of a picture
QUALITY = 75  # JPEG
PLOT = (220, 88)  # width and height of a plot, SVG units
GAP = 4  # above and below the curves


@dataclass(frozen=True)
class Strip:
    """uri: one JPEG of all pictures, left to right. frames: which of the clip they are."""

    view: str
    uri: str
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Curve:
    """points: as SVG's polyline wants them."""

    name: str
    points: str


@dataclass(frozen=True)
class Plot:
    """curves: positions relative to the clip's start, on one scale. reach: the largest distance from the start of any
    of them, in `unit`. zero: height of the start. gripper: opening from closed (bottom) to open (top), or None."""

    curves: tuple[Curve, ...]
    reach: float
    unit: str
    zero: float
    gripper: Curve | None


@dataclass(frozen=True)
class Example:
    """A clip to look at. about: short facts to stand under its instruction. good: None where there is no verdict."""

    key: str
    title: str
    instruction: str
    about: tuple[str, ...]
    strips: tuple[Strip, ...]
    plot: Plot


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` indices of `count` things, first and last among them, evenly spaced."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})


def strip(view: str, pictures: Mapping[int, bytes | memoryview]) -> Strip:
    """pictures: frame of the clip -> JPEG; of them the evenly spaced ones are shown, HEIGHT pixels high.

    Raises UserError for one that does not decode.
    """
    numbers = sorted(pictures)
    shown = [numbers[position] for position in evenly(len(numbers), PICTURES)]
    small = [_small(_decoded(view, frame, pictures[frame])) for frame in shown]
    joined = np.ascontiguousarray(np.concatenate(small, axis=1))
    return Strip(view, data_uri("image/jpeg", simplejpeg.encode_jpeg(joined, quality=QUALITY)), tuple(shown))


def plot(path_TD: np.ndarray, names: Sequence[str], unit: str, opening_T: np.ndarray | None) -> Plot:
    """path_TD: float [T, D], T >= 1, one curve a column. opening_T: 1 open, 0 closed."""
    width, height = PLOT
    offset_TD = path_TD - path_TD[0]
    reach = float(np.abs(offset_TD).max(initial=0.0))
    middle, half = height / 2, height / 2 - GAP
    y_TD = middle - offset_TD * (half / reach if reach > 0 else 0.0)
    x_T = np.linspace(0, width, max(len(path_TD), 2))[: len(path_TD)]
    curves = tuple(Curve(name, _points(x_T, y_TD[:, column])) for column, name in enumerate(names))
    gripper = None
    if opening_T is not None:
        gripper = Curve("gripper", _points(x_T, height - GAP - np.clip(opening_T, 0, 1) * 2 * half))
    return Plot(curves, reach, unit, middle, gripper)


def _decoded(view: str, frame: int, picture: bytes | memoryview) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(picture)
    except ValueError as error:
        raise UserError(
            f"{view}: the picture of the clip's frame {frame} does not decode ({error}); construct again with "
            "read.decode=true, which finds the episode."
        ) from error


def _small(picture_HWC: np.ndarray) -> np.ndarray:
    height, width, _ = picture_HWC.shape
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    shrinks = height > HEIGHT
    return cv2.resize(picture_HWC, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _points(x_T: np.ndarray, y_T: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_T, y_T, strict=True))
