"""Augmentation of training images: crop, turn and colour jitter, the released recipe (FACTS 1.7) in two passes.

One draw serves all views of a sample: drawn per view, as released, the geometry between the views breaks (FACTS 5.3).
The turn leaves no black corners. Never part of the saved chain, so serving cannot augment.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from la4vla.types import Sample

CROP_AREA = (0.95, 1.0)  # of the image's area, FACTS 1.7
CROP_ASPECT = (3 / 4, 4 / 3)  # at most, and only what fits; torchvision's RandomResizedCrop, which the recipe names
TURN_DEGREES = 5.0
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, 0.4, 0.5, 0.08  # FACTS 1.7; hue is a share of the full circle

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Look:
    """One draw.

    centre  of the crop, in [0, 1] of the room it has
    crop    (width, height) in [0, 1] of the image
    """

    crop: tuple[float, float]
    centre: tuple[float, float]
    degrees: float
    brightness: float
    contrast: float
    saturation: float
    hue_degrees: float


def draw_look(generator: np.random.Generator) -> Look:
    area = generator.uniform(*CROP_AREA)
    # A crop of this area fits where neither side is longer than the image's; torchvision draws again until one does.
    fitting = max(CROP_ASPECT[0], area), min(CROP_ASPECT[1], 1 / area)
    aspect = np.exp(generator.uniform(*np.log(fitting)))
    return Look(
        crop=(float(np.sqrt(area * aspect)), float(np.sqrt(area / aspect))),
        centre=(float(generator.uniform()), float(generator.uniform())),
        degrees=float(generator.uniform(-TURN_DEGREES, TURN_DEGREES)),
        brightness=float(generator.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)),
        contrast=float(generator.uniform(1 - CONTRAST, 1 + CONTRAST)),
        saturation=float(generator.uniform(1 - SATURATION, 1 + SATURATION)),
        hue_degrees=float(generator.uniform(-HUE, HUE) * 360),
    )


def apply_look(look: Look, image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> the same shape and type."""
    height, width = image.shape[:2]
    crop_w, crop_h = look.crop[0] * width, look.crop[1] * height
    centre = (crop_w / 2 + look.centre[0] * (width - crop_w), crop_h / 2 + look.centre[1] * (height - crop_h))
    turn = cv2.getRotationMatrix2D(centre, look.degrees, 1.0)
    scale = np.diag([width / crop_w, height / crop_h, 1.0])
    shift = np.array([[1, 0, crop_w / 2 - centre[0]], [0, 1, crop_h / 2 - centre[1]], [0, 0, 1]])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from the centre of the first pixel
    matrix = (np.linalg.inv(half) @ scale @ shift @ np.vstack([turn, [0, 0, 1]]) @ half)[:2]
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    grey = float(LUMA @ np.asarray(cv2.mean(warped)[:3]))
    return cv2.transform(warped, _colour_matrix(look, grey))


def _colour_matrix(look: Look, grey: float) -> np.ndarray:
    """float64 [3, 4]: saturation and hue, then contrast around the image's mean grey, then brightness.

    Hue turns the chroma plane of YIQ, which leaves brightness alone and is linear, unlike a turn in HSV.
    """
    saturation = look.saturation * np.eye(3) + (1 - look.saturation) * np.outer(np.ones(3), LUMA)
    angle = np.deg2rad(look.hue_degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    hue = np.linalg.inv(TO_YIQ) @ turn @ TO_YIQ
    matrix = look.brightness * look.contrast * (hue @ saturation)
    offset = look.brightness * (1 - look.contrast) * grey * np.ones((3, 1))
    return np.hstack([matrix, offset])


def augment(sample: Sample, generator: np.random.Generator, probability: float) -> Sample:
    """With `probability` all views of the sample take one new look; otherwise the sample itself."""
    if generator.uniform() >= probability:
        return sample
    look = draw_look(generator)
    return sample.but(views={name: apply_look(look, image) for name, image in sample.views.items()})
