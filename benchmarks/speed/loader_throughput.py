"""Measures the loader without a model: samples a second from synthetic shards of the preset's image size, on one rank.

Training on one rank cannot be faster. The shards are written to a temporary folder first, so the disk's cache is warm.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import simplejpeg

from la4vla.config import DataConfig, ModelConfig, RunConfig, SourceConfig, StageConfig, TrainConfig
from la4vla.data.loader import Loader
from la4vla.data.setup import prepare
from la4vla.data.shards.writer import Clip, ShardWriter, View
from la4vla.model.presets import preset
from la4vla.model.tokenizer import TINY_TOKENIZER, Prompter
from la4vla.rng import RngUse, generator
from la4vla.types import KINDS, Embodiment, InputSpec, VectorSpec

STREAMS = 8
CLIPS = 64
FRAMES = 46  # mean of an LA clip (FACTS 1.3.6)
FRAME_STRIDE = 2
GLOBAL_BATCH = 64
STEPS = 500  # at most; the clock ends the run earlier, and planning takes time in proportion to the steps
VIEW = "front"
ARM = Embodiment(
    "made_up",
    15.0,
    state=VectorSpec(("x", "y", "z", "gripper"), "absolute"),
    action=VectorSpec(("x", "y", "z", "gripper"), "delta"),
)


def measure(name: str, seconds: float) -> dict[str, float]:
    """kind -> samples a second without the start-up. name: of the preset. seconds: how long each kind is measured."""
    size = preset(name)
    # Token ids do not change speed: the tiny tokenizer serves every preset, with the preset's number of image tokens.
    spec = InputSpec(**{**size.spec.__dict__, "pad_token_id": 0, "image_token_id": 3})
    prompter = Prompter.load(TINY_TOKENIZER, spec)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        _write(shards, size.image_size)
        return {kind: _rate(_config(shards, kind, name), spec, prompter, seconds) for kind in KINDS}


def _rate(config: TrainConfig, spec: InputSpec, prompter: Prompter, seconds: float) -> float:
    samples, begin = 0, 0.0
    setup = prepare(config, spec, prompter.encode)
    with Loader(config, setup, rank=0, world_size=1, start=("only", 0)) as loader:
        for step in loader:
            if (
                step.stage_step == config.data.read_ahead
            ):  # steps that were read ahead before the clock ran do not count
                begin = time.perf_counter()
            elif step.stage_step > config.data.read_ahead:
                samples += GLOBAL_BATCH
                if time.perf_counter() - begin > seconds:
                    break
    return samples / (time.perf_counter() - begin)


def _config(shards: Path, kind: str, name: str) -> TrainConfig:
    return TrainConfig(
        run=RunConfig(dir="unused"),
        model=ModelConfig(preset=name),
        data=DataConfig(sources={"made_up": SourceConfig(path=str(shards), kind=kind)}, streams=STREAMS),
        stages={"only": StageConfig(mixture={"made_up": 1.0}, steps=STEPS, global_batch=GLOBAL_BATCH, micro_batch=32)},
    )


def _write(folder: Path, side: int) -> None:
    """Writes shards of smooth images with some grain, about as hard for a JPEG decoder as rendered ones."""
    draw = generator(0, RngUse.RECORD, "throughput")
    ramp = np.linspace(0, 200, side, dtype=np.float32)
    image = ramp[:, None, None] * 0.5 + ramp[None, :, None] * 0.5 + draw.normal(0, 6, (side, side, 3))
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(image.clip(0, 255).astype(np.uint8)), quality=95)
    with ShardWriter(folder, ARM, {VIEW: View(side, side)}, FRAME_STRIDE, STREAMS) as writer:
        for number in range(CLIPS):
            writer.add(
                Clip(
                    key=f"clip{number:05d}",
                    instruction="move the empty gripper up slowly and to the left",
                    primitive="move",
                    object_status="EMPTY",
                    task="made up",
                    episode=f"episode{number}",
                    span=(0, FRAMES),
                    fps=ARM.control_hz,
                    quality=3.0,
                    state=draw.uniform(-1, 1, (FRAMES, 4)).astype(np.float32),
                    action=draw.uniform(-1, 1, (FRAMES, 4)).astype(np.float32),
                    frames={VIEW: {t: jpeg for t in range(0, FRAMES, FRAME_STRIDE)}},
                )
            )
        writer.close()
