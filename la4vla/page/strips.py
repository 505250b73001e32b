"""Example clips for a page: a strip of small images for each view, and a plot of the signals.

Images are resized and joined to one JPEG a view, so that a page of many clips has a few megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from la4vla.page.page import data_uri
from la4vla.types import UserError

IMAGES = 6  # of each view
HEIGHT = 112  # pixels, of an image
QUALITY = 75  # of the JPEG
PLOT = (220, 88)  # width and height of a plot, SVG units
GAP = 4  # SVG units above and below the curves


@dataclass(frozen=True)
class Strip:
    """The images of one view.

    view      its name
    uri       one JPEG of all images, left to right
    frames    their frames in the clip
    """

    view: str
    uri: str
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Curve:
    """A line of a plot.

    name      of the signal
    points    in the form that SVG's polyline takes
    """

    name: str
    points: str


@dataclass(frozen=True)
class Plot:
    """The signals of a clip.

    curves     positions relative to the clip's start, on one scale
    reach      the largest distance from the start in any curve, in `unit`
    unit       of the positions
    zero       height of the start, SVG units
    gripper    opening from closed (bottom) to open (top); None without a gripper
    """

    curves: tuple[Curve, ...]
    reach: float
    unit: str
    zero: float
    gripper: Curve | None


@dataclass(frozen=True)
class Example:
    """A clip to look at.

    key            its name
    title          of the action
    instruction    its sentence
    about          short facts that stand under the instruction
    strips         one a view
    plot           its signals
    """

    key: str
    title: str
    instruction: str
    about: tuple[str, ...]
    strips: tuple[Strip, ...]
    plot: Plot


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` evenly spaced indices of `count` things, the first and the last among them."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})


def strip(view: str, images: Mapping[int, bytes | memoryview]) -> Strip:
    """A strip of evenly spaced images, HEIGHT pixels high. images: frame of the clip -> JPEG.

    Raises UserError for an image that does not decode.
    """
    numbers = sorted(images)
    shown = [numbers[position] for position in evenly(len(numbers), IMAGES)]
    small = [_small(_decoded(view, frame, images[frame])) for frame in shown]
    joined = np.ascontiguousarray(np.concatenate(small, axis=1))
    return Strip(view, data_uri("image/jpeg", simplejpeg.encode_jpeg(joined, quality=QUALITY)), tuple(shown))


def plot(path_TD: np.ndarray, names: Sequence[str], unit: str, opening_T: np.ndarray | None) -> Plot:
    """A plot of positions. path_TD: float [T, D], T >= 1, one curve a column. opening_T: 1 open, 0 closed."""
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


def _decoded(view: str, frame: int, image: bytes | memoryview) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(image)
    except ValueError as error:
        raise UserError(
            f"{view}: the image of the clip's frame {frame} does not decode ({error}); construct again with "
            "read.decode=true, which finds the episode."
        ) from error


def _small(image_HWC: np.ndarray) -> np.ndarray:
    height, width, _ = image_HWC.shape
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    shrinks = height > HEIGHT
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _points(x_T: np.ndarray, y_T: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_T, y_T, strict=True))
