"""Perturbations of what a policy gets, five severities each. Nine change pixels, five change how the scene looks, one
changes where the robot starts and one the wording of the instruction. WORDINGS are sentences in other languages or with
renamed objects; they have a name in place of a severity. All of them happen in the simulator's process, so
a served policy and one in this process get the same bytes. `la4vla.sim.scene` edits the scene, `la4vla.sim.start` the
start.

A perturbation changes its own channel and no other: the prompt does not name the variant, and physics changes only
where the robot starts elsewhere. Draws are named by (suite, task, episode, step), perturbation and view, not by
severity: a higher severity is more of the same fog or the same noise. What belongs to the scene or the lens (fog,
direction of motion, occluder) is drawn once an episode, what belongs to the sensor (noise, dropout) once an image.

No maintained library fits: albumentations is no longer developed (its successor is AGPL), imagecorruptions draws from
numpy's global generator, kornia has neither JPEG nor fog. So these are OpenCV primitives with the published levels of
ImageNet-C (Hendrycks and Dietterich 2019). Its lengths are for images of 224 pixels and scale with the image here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np

from benchmarks.perturb import wordings
from benchmarks.perturb.paraphrase import paraphrase
from la4vla.rng import RngUse, generator
from la4vla.sim.env import ROBOT_POSE, SceneChange
from la4vla.types import Observation, UserError

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_PX = 224
"""Side of the images that ImageNet-C's lengths in pixels are for."""

IMAGENET_C = "ImageNet-C"
FOG_DECAY = 2.0  # an octave of the fog is this much weaker than the one of twice its size (ImageNet-C, levels 1 and 2)

Draw = np.random.Generator


@dataclass(frozen=True)
class Perturbation:
    """One way to change what a policy gets.

    kind        the channel it changes
    levels      its parameter at severity 1, 2, 3, 4 and 5; of WORDINGS, which one each number stands for
    meaning     what the parameter is, with its unit
    source      where the levels are from
    lasts       for how long one draw holds
    function    of pixels: (float32 RGB [H, W, 3] in [0, 1], level, draws) -> the changed image, not clipped; else None
    """

    kind: Literal["pixels", "scene", "robot", "language"]
    levels: tuple[Any, ...]
    meaning: str
    source: str
    lasts: Literal["image", "episode"]
    function: Callable[[np.ndarray, Any, Draw], np.ndarray] | None = None

    def __call__(self, image: np.ndarray, severity: int, draws: Draw) -> np.ndarray:
        """A changed copy of `image`, uint8 RGB [H, W, 3], at a severity of 1 to 5."""
        assert self.function is not None
        assert image.dtype == np.uint8 and image.ndim == 3 and severity in SEVERITIES
        changed = self.function(image.astype(np.float32) / 255, self.levels[severity - 1], draws)
        return np.rint(255 * np.clip(changed, 0, 1)).astype(np.uint8)


def gaussian_noise(image: np.ndarray, sigma: float, draws: Draw) -> np.ndarray:
    """sigma in grey levels of 255, independent in every pixel and channel, before anything resizes the image."""
    return image + draws.standard_normal(image.shape, dtype=np.float32) * (sigma / 255)


def gaussian_blur(image: np.ndarray, sigma: float, draws: Draw) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma * _scale(image), borderType=cv2.BORDER_REPLICATE)


def motion_blur(image: np.ndarray, level: tuple[float, float], draws: Draw) -> np.ndarray:
    """A one-sided Gaussian trail of 2 x radius pixels at up to 45 degrees from the horizontal, as ImageMagick draws
    it."""
    radius, sigma = (value * _scale(image) for value in level)
    reach = max(1, round(2 * radius))
    trail = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    trail[reach, reach:] = np.exp(-(np.arange(reach + 1) ** 2) / (2 * sigma**2))
    turn = cv2.getRotationMatrix2D((reach, reach), draws.uniform(-45, 45), 1.0)
    trail = cv2.warpAffine(trail, turn, trail.shape)
    return cv2.filter2D(image, -1, trail / trail.sum(), borderType=cv2.BORDER_REPLICATE)


def fog(image: np.ndarray, strength: float, draws: Draw) -> np.ndarray:
    """Adds a cloud of values in [0, 1], then scales the image so that its brightest value stays what it was."""
    height, width = image.shape[:2]
    brightest = image.max()
    return (image + strength * _cloud(height, width, draws)[..., None]) * brightest / (brightest + strength)


def jpeg(image: np.ndarray, quality: int, draws: Draw) -> np.ndarray:
    bgr = np.rint(255 * image[..., ::-1]).astype(np.uint8)
    done, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1].astype(np.float32) / 255


def brightness(image: np.ndarray, more: float, draws: Draw) -> np.ndarray:
    """HSV value raised by `more`."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.minimum(hsv[..., 2] + more, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def contrast(image: np.ndarray, left: float, draws: Draw) -> np.ndarray:
    """Keeps the share `left` of every channel's distance from its mean."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + left * (image - mean)


def occlusion(image: np.ndarray, side: float, draws: Draw) -> np.ndarray:
    """A black rectangle of `side` times the image's height and width. The one of a higher severity covers that of a
    lower."""
    height, width = image.shape[:2]
    tall, wide = round(side * height), round(side * width)
    down, right = draws.random(2)
    top, left = round(down * (height - tall)), round(right * (width - wide))
    covered = image.copy()
    covered[top : top + tall, left : left + wide] = 0
    return covered


def view_dropout(image: np.ndarray, share: float, draws: Draw) -> np.ndarray:
    """A black image in this share of the cases: a camera that delivers no frame. The view stays in the observation,
    because a missing view is an error by contract, and black is what a dead camera driver shows."""
    return np.zeros_like(image) if draws.random() < share else image


def _scale(image: np.ndarray) -> float:
    return min(image.shape[:2]) / REFERENCE_PX


def _cloud(height: int, width: int, draws: Draw) -> np.ndarray:
    """float32 [height, width] over exactly [0, 1]: a sum of smooth noises, each finer and weaker than the one
    before."""
    field, cells, weight = np.zeros((height, width), np.float32), 1, 1.0
    while cells < max(height, width):
        octave = draws.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
        field += weight * cv2.resize(octave, (width, height), interpolation=cv2.INTER_LINEAR)
        cells, weight = 2 * cells, weight / FOG_DECAY
    field -= field.min()
    return field / field.max()


PERTURBATIONS = {
    "gaussian_noise": Perturbation(
        "pixels", (10, 20, 30, 40, 50), "sigma, grey levels of 255", "FACTS 1.5", "image", gaussian_noise
    ),
    "gaussian_blur": Perturbation(
        "pixels", (1, 2, 3, 4, 6), "sigma, pixels of 224", IMAGENET_C, "image", gaussian_blur
    ),
    "motion_blur": Perturbation(
        "pixels",
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "radius and sigma, pixels of 224",
        IMAGENET_C,
        "episode",
        motion_blur,
    ),
    "fog": Perturbation(
        "pixels",
        (1.0, 1.5, 2.0, 2.5, 3.0),
        "strength of the cloud",
        f"{IMAGENET_C}'s 1.5 to 3 and one step below; its levels 3 and 4 differ in grain only",
        "episode",
        fog,
    ),
    "jpeg": Perturbation("pixels", (25, 18, 15, 10, 7), "quality", IMAGENET_C, "image", jpeg),
    "brightness": Perturbation(
        "pixels", (0.1, 0.2, 0.3, 0.4, 0.5), "added to HSV value", IMAGENET_C, "image", brightness
    ),
    "contrast": Perturbation("pixels", (0.4, 0.3, 0.2, 0.1, 0.05), "share left", IMAGENET_C, "image", contrast),
    "occlusion": Perturbation(
        "pixels",
        (0.2, 0.3, 0.4, 0.5, 0.6),
        "side of the rectangle, share of the image's",
        "ours: 4 to 36 % of the area",
        "episode",
        occlusion,
    ),
    "view_dropout": Perturbation(
        "pixels", (0.2, 0.4, 0.6, 0.8, 1.0), "share of black images", "ours: 1 is blind", "image", view_dropout
    ),
    "camera": Perturbation(
        "scene",
        ((5, 2, 1.05, 1), (10, 4, 1.1, 2), (18, 7, 1.18, 3), (30, 11, 1.3, 4.5), (45, 15, 1.5, 6)),
        "azimuth, elevation (degrees), distance (factor), gaze (degrees)",
        "ours, within LIBERO-plus's 1 to 75 and 15 degrees, 1.15 to 2, 2 to 10 degrees",
        "episode",
    ),
    "light": Perturbation(
        "scene",
        ((0.12, 0.05, 0.3), (0.25, 0.12, 0.6), (0.4, 0.2, 1.0), (0.55, 0.3, 1.5), (0.7, 0.45, 2.0)),
        "intensity, tint (shares), move (m)",
        "ours",
        "episode",
    ),
    "background": Perturbation("scene", (0.2, 0.4, 0.6, 0.8, 1.0), "share of another texture", "ours", "episode"),
    "object_colour": Perturbation("scene", (0.2, 0.4, 0.6, 0.8, 1.0), "share of another colour", "ours", "episode"),
    "distractors": Perturbation("scene", (2, 4, 6, 8, 10), "objects more on the table", "ours", "episode"),
    ROBOT_POSE: Perturbation(
        "robot",
        (0.02, 0.04, 0.06, 0.08, 0.1),
        "from where the hand would start, m",
        "ours; LIBERO-plus's 0.1 to 0.5 rad end 1 to 8 cm away",
        "episode",
    ),
    "language": Perturbation("language", (1, 2, 3, 4, 5), "rules applied to the instruction", "ours", "episode"),
}

WORDINGS = {
    "translation": Perturbation("language", wordings.LANGUAGES, "language", "VLM2VLA's three", "episode"),
    "renamed": Perturbation("language", wordings.RENAMED, "how objects are called", "ours", "episode"),
}
"""Written sentences, for tasks that benchmarks/perturb/wordings.yaml knows. Their numbers are names, not severities."""

KNOWN = PERTURBATIONS | WORDINGS


@dataclass(frozen=True)
class Variant:
    """What changes an evaluation's episodes: CLEAN (severity 0), or a name of KNOWN and its severity, 1 to 5 (1 to 3
    for WORDINGS)."""

    name: str
    severity: int

    @property
    def title(self) -> str:
        """`fog:3`, as --perturb takes it."""
        return f"{self.name}:{self.severity}" if self.severity else self.name

    @property
    def folder(self) -> str:
        return self.title.replace(":", "_")

    @property
    def identity(self) -> str:
        """`fog:3=2.0`: title and parameter. Rows made with other levels of another version have another identity."""
        return f"{self.title}={KNOWN[self.name].levels[self.severity - 1]}" if self.severity else self.name


CLEAN = Variant("clean", 0)


def parse(texts: Sequence[str]) -> list[Variant]:
    """`["gaussian_noise:1,3", "translation:es", "fog"]` -> its variants, each once; a name alone stands for all of its
    severities.

    Raises UserError for a name or a severity that does not exist.
    """
    variants = []
    for text in texts:
        name, _, severities = text.partition(":")
        if name not in KNOWN:
            raise UserError(f"--perturb {text}: no perturbation `{name}`; use one of {', '.join(KNOWN)}.")
        if name in WORDINGS:
            numbers = _worded(text, name, severities)
        elif not re.fullmatch(r"([1-5](,[1-5])*)?", severities) or text.endswith(":"):
            raise UserError(f"--perturb {text}: severities are 1 to 5; write {name}:3, {name}:1,3,5 or {name} for all.")
        else:
            numbers = [int(number) for number in severities.split(",")] if severities else SEVERITIES
        variants += [Variant(name, number) for number in numbers]
    return list(dict.fromkeys(variants))


def _worded(text: str, name: str, asked: str) -> list[int]:
    """Numbers of the wordings that are named, `es,hi` or `1,3`; all where none is."""
    levels = WORDINGS[name].levels
    known = {**{word: number for number, word in enumerate(levels, start=1)}, **{str(n + 1): n + 1 for n in range(3)}}
    words = asked.split(",") if asked else list(levels)
    if text.endswith(":") or (wrong := [word for word in words if word not in known]):
        named = ", ".join(levels)
        raise UserError(f"--perturb {text}: {wrong[0] if asked else 'nothing'} is no {name}; use some of {named}.")
    return [known[word] for word in words]


def check_delivered(variants: Sequence[Variant], sees: bool, reads: bool) -> None:
    """Raises UserError for variants that would change nothing for this policy.

    sees: it is given images. reads: it is given the instruction.
    """
    reached = {"pixels": sees, "scene": sees, "language": reads, "robot": True}
    lost = dict.fromkeys(one.name for one in variants if not reached[KNOWN[one.name].kind])
    if lost:
        others = ", ".join(name for name, change in KNOWN.items() if reached[change.kind])
        raise UserError(
            f"--perturb {', '.join(lost)}: would not reach this policy; leave it out (others do: {others})."
        )


def scene_change(variant: Variant, seed: int) -> SceneChange | None:
    """The change that the env's reset makes for this variant; None where it makes none."""
    if variant == CLEAN or KNOWN[variant.name].kind not in ("scene", "robot"):
        return None
    return SceneChange(variant.name, PERTURBATIONS[variant.name].levels[variant.severity - 1], seed)


def perturb(
    observation: Observation, variant: Variant, seed: int, suite: str, task: str, episode: int, step: int
) -> Observation:
    """The observation as the policy gets it at env step `step` of the episode, with other images or another wording.
    What the env's reset has changed is in the images and the state already.
    """
    if variant == CLEAN or scene_change(variant, seed):
        return observation
    if variant.name in WORDINGS:
        how = WORDINGS[variant.name].levels[variant.severity - 1]
        return replace(observation, instruction=wordings.reworded(observation.instruction, how))
    change = PERTURBATIONS[variant.name]
    if change.kind == "language":
        draws_of_episode = generator(seed, RngUse.PERTURB, suite, task, episode, variant.name)
        return replace(observation, instruction=paraphrase(observation.instruction, variant.severity, draws_of_episode))
    moment = (step,) if change.lasts == "image" else ()

    def draws(view: str) -> Draw:
        return generator(seed, RngUse.PERTURB, suite, task, episode, variant.name, view, *moment)

    views = {view: change(image, variant.severity, draws(view)) for view, image in observation.views.items()}
    return replace(observation, views=views)
