"""Clips on which a grounding model can learn, and the config of a small run of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg

from la4vla.data.shards.writer import Clip, View
from tests.fixtures import ARM, make_clip, write_shards

WAYS = {"left": (1, 1), "right": (1, -1), "forward": (0, 1), "backward": (0, -1), "up": (2, 1), "down": (2, -1)}
"""Word -> axis and sign of the action that it stands for, of a robot that faces +x."""
COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220), "yellow": (220, 220, 40)}
SIZE = 32
VIEWS = {"front": View(SIZE, SIZE)}


def pair_clip(number: int, frames: int = 6) -> Clip:
    """Clip `number`: its sentence names a direction, which the actions show, and a colour, which the picture shows."""
    way, colour = list(WAYS)[number % len(WAYS)], list(COLOURS)[number // len(WAYS) % len(COLOURS)]
    axis, sign = WAYS[way]
    draw = np.random.Generator(np.random.Philox(1000 + number))
    action = 0.1 * draw.standard_normal((frames, 4)).astype(np.float32)
    action[:, axis] += sign
    picture = np.full((SIZE, SIZE, 3), COLOURS[colour], np.uint8)
    jpeg = simplejpeg.encode_jpeg(picture, quality=90)
    return replace(
        make_clip(number, frames, ARM, VIEWS, instruction=f"Push the {colour} cube {way}."),
        action=action,
        primitive="push",
        episode=f"episode-{number // 4}",
        frames={"front": {frame: jpeg for frame in range(frames)}},
    )


def write_pairs(folder: Path, first: int, clips: int) -> None:
    write_shards(folder, [pair_clip(number) for number in range(first, first + clips)], 4, VIEWS)


CONFIG = """
learner: grounding
run: {{dir: {run}, seed: 3}}
model: {{preset: tiny}}
grounding: {{horizon: 4, dim: 32}}
data:
  streams: 4
  decode_threads: 1
  contrast_group: 8
  sources:
    clips: {{path: {clips}, kind: contrast}}
stages:
  only:
    mixture: {{clips: 1.0}}
    steps: {steps}
    global_batch: 16
    micro_batch: 2
    train: [vision, text, head]
    lr: 1.0e-3
    warmup_steps: 2
    schedule: constant
checkpoint: {{every_steps: 2, keep_last: 9}}
log: {{every_steps: 1}}
"""


def write_config(place: Path, name: str, steps: int = 4) -> Path:
    path = place / f"{name}.yaml"
    path.write_text(CONFIG.format(run=place / name, clips=place / "clips", steps=steps))
    return path
