"""Floating point operations of a training step of a model that writes, counted from its parameters.

A token costs two operations a weight of the language model's matrices, an image token that its tower makes likewise of
the tower's, and an answer token of the language head's; attention's own products are left out (a tenth at 1,000
tokens). The rule for what a backward pass costs is la4vla/model/flops.py's.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from la4vla.model.flops import Forward, training
from la4vla.types import TextBatch
from la4vla.vlm.model import VlmModel


def text_step(vlm: VlmModel, batch: TextBatch, trained: Collection[str]) -> float:
    """Forward and backward of one micro-batch. trained: groups that train or hold adapters that do."""
    groups = vlm.groups()
    tokens = batch.input_ids_BL.numel()
    pixels = batch.images.get("pixel_values")
    patches = 0 if pixels is None else _patches(vlm, tuple(pixels.shape))
    language_head = vlm.network.get_output_embeddings()
    assert language_head is not None
    return training(
        Forward(
            vision=2.0 * patches * _matrices(groups["vision"]),
            projector=2.0 * patches * _matrices(groups["projector"]),
            llm=2.0 * tokens * _matrices(groups["llm"]),
            head=2.0 * batch.counted * language_head.weight.numel(),
        ),
        trained,
    )


def _matrices(parts: Collection[nn.Module]) -> int:
    return sum(p.numel() for part in parts for p in part.parameters() if p.ndim > 1)


def _patches(vlm: VlmModel, shape: tuple[int, ...]) -> int:
    """Patches of the images: Qwen's pixels are patches already, the others' are [N, 3, H, W]."""
    if len(shape) == 2:
        return shape[0]
    size = vlm.network.config.vision_config.patch_size  # pyright: ignore[reportAttributeAccessIssue]
    side = size if isinstance(size, int) else size[0]
    return shape[0] * (shape[2] // side) * (shape[3] // side)
