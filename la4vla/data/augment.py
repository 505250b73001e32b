"""Augmentation of training samples, by one of two recipes.

    release   crop, turn and colour jitter of the images, all at once, in two passes (FACTS 1.7)
    gpla      brightness, contrast, saturation, crop, shifts, scale and noise on the actions, each with its own
              probability (FACTS 2.1; GPLA's Table 3). Its magnitudes are not printed, these are ours. Never a mirror
              image: left would be right.

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

CHANCE = {
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "crop": 0.6,
    "shift_down": 0.4,
    "shift_right": 0.4,
    "scale": 0.3,
    "noise": 0.7,
}
"""Probabilities of GPLA's Table 3, by what they are of."""
COLOURS = 0.3  # ours: brightness, contrast and saturation change by a factor of 1 - 0.3 to 1 + 0.3
SMALLEST_CROP = 0.85  # ours: of the image's sides
FURTHEST_SHIFT = 0.1  # ours: of the image's sides, either way
SCALES = (0.9, 1.1)  # ours
NOISE = 0.02  # ours: standard deviation, of actions normalised to [-1, 1]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Look:
    """One draw.

    crop    (width, height) as shares of the image; above 1 the image gets smaller, and is continued by its reflection
    centre  of the crop, in [0, 1] of the room it has
    shift   (right, down) by which the crop lies elsewhere, as shares of the image
    """

    crop: tuple[float, float]
    centre: tuple[float, float]
    degrees: float
    brightness: float
    contrast: float
    saturation: float
    hue_degrees: float
    shift: tuple[float, float] = (0.0, 0.0)


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
    centre = (
        crop_w / 2 + look.centre[0] * (width - crop_w) + look.shift[0] * width,
        crop_h / 2 + look.centre[1] * (height - crop_h) + look.shift[1] * height,
    )
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


def draw_gpla_look(generator: np.random.Generator) -> Look:
    """Each change of the images happens with its own probability (CHANCE), whatever becomes of the others."""
    chances, amounts = generator.random(len(CHANCE)), generator.random(len(CHANCE) + 1)
    happens = {name: bool(chance < CHANCE[name]) for name, chance in zip(CHANCE, chances, strict=True)}
    brightness, contrast, saturation, side, across, along, right, down, scale = map(float, amounts)

    def colour(name: str, amount: float) -> float:
        return 1 + COLOURS * (2 * amount - 1) if happens[name] else 1.0

    def shift(name: str, amount: float) -> float:
        return FURTHEST_SHIFT * (2 * amount - 1) if happens[name] else 0.0

    kept = SMALLEST_CROP + (1 - SMALLEST_CROP) * side if happens["crop"] else 1.0
    zoom = SCALES[0] + (SCALES[1] - SCALES[0]) * scale if happens["scale"] else 1.0
    return Look(
        crop=(kept / zoom, kept / zoom),
        centre=(across, along) if happens["crop"] else (0.5, 0.5),
        degrees=0.0,
        brightness=colour("brightness", brightness),
        contrast=colour("contrast", contrast),
        saturation=colour("saturation", saturation),
        hue_degrees=0.0,
        shift=(shift("shift_right", right), shift("shift_down", down)),
    )


def augment_as_gpla(sample: Sample, generator: np.random.Generator, probability: float) -> Sample:
    """With `probability` the sample's images take a new look, and its actions noise; otherwise the sample itself.

    sample: behind the chain, its actions in [-1, 1], where they stay; what is no action stays zero.
    """
    if generator.uniform() >= probability:
        return sample
    look = draw_gpla_look(generator)
    noisy = generator.random() < CHANCE["noise"]
    changed = sample.but(views={name: apply_look(look, image) for name, image in sample.views.items()})
    if not noisy or sample.action is None:
        return changed
    noise_TA = NOISE * generator.standard_normal(sample.action.shape)
    noise_TA[~sample.action_valid] = 0.0
    noise_TA[:, ~sample.action_mask] = 0.0
    return changed.but(action=np.clip(sample.action + noise_TA, -1.0, 1.0).astype(np.float32))
