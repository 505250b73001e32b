"""Samples of one kind -> one `Batch`; and the draws of the flow that belong to a sample.

Refuses samples of two kinds in one batch, and rows longer than the model takes: nothing is truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from la4vla.config import FlowConfig
from la4vla.types import Batch, InputSpec, Sample, UserError

Encode = Callable[[str, tuple[int, ...]], list[int]]
"""(instruction, slots of the views that exist) -> token ids, `image_token_id` repeated P times for each view."""


def draw_flow(
    generator: np.random.Generator, horizon: int, action_dim: int, flow: FlowConfig
) -> tuple[np.ndarray, float]:
    """(noise float32 [T, A], time in [0, 1]): the flow's start and the flow time of a sample's loss (FACTS 4.2)."""
    time = float(generator.beta(flow.time_alpha, flow.time_beta))
    if flow.noise == "uniform":
        noise = generator.random((horizon, action_dim), dtype=np.float32)
        return noise * 2 - 1, time
    return generator.standard_normal((horizon, action_dim), dtype=np.float32), time


def collate(
    samples: Sequence[Sample],
    spec: InputSpec,
    encode: Encode,
    noise: Sequence[np.ndarray],
    time: Sequence[float],
    places: Sequence[int],
) -> Batch:
    """One micro-batch from transformed samples; noise (float32 [T, A]), time and the embodiment's number belong to them
    row by row.

    A query (action None) gets zero actions and a mask of the dims that exist. Raises UserError for a row longer than
    `spec.max_tokens`.
    """
    kinds = {sample.kind for sample in samples}
    assert len(kinds) == 1, f"a batch holds samples of one kind, not {kinds}"
    shown = [sorted(sample.views, key=sample.slots.__getitem__) for sample in samples]
    rows = [
        encode(sample.instruction, tuple(sample.slots[name] for name in names))
        for sample, names in zip(samples, shown, strict=True)
    ]
    input_ids, text_mask = _padded_rows(rows, samples, spec)
    images = [sample.views[name] for sample, names in zip(samples, shown, strict=True) for name in names]
    actions = [_action(sample, spec) for sample in samples]
    mask = [sample.action_valid[:, None] & sample.action_mask[None, :] for sample in samples]
    return Batch(
        kind=samples[0].kind,
        input_ids_BL=input_ids,
        text_mask_BL=text_mask,
        images_NCHW=_stacked_images(images) if images else None,
        image_index=_image_index(input_ids, len(images), spec) if images else None,
        state_BS=torch.from_numpy(np.stack([sample.state for sample in samples])),
        state_mask_BS=torch.from_numpy(np.stack([sample.state_mask for sample in samples])),
        actions_BTA=torch.from_numpy(np.stack(actions)),
        action_mask_BTA=torch.from_numpy(np.stack(mask)),
        noise_BTA=torch.from_numpy(np.stack(noise)),
        time_B=torch.tensor(time, dtype=torch.float32),
        embodiment_B=torch.tensor(places, dtype=torch.int64),
        keys=tuple(sample.key for sample in samples),
    )


def _padded_rows(rows: list[list[int]], samples: Sequence[Sample], spec: InputSpec) -> tuple[Tensor, Tensor]:
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    length = len(rows[longest])
    if length > spec.max_tokens:
        raise UserError(
            f"{samples[longest].key}: its prompt has {length} tokens, the model takes {spec.max_tokens}; "
            "shorten the instruction or show fewer views."
        )
    ids = np.full((len(rows), length), spec.pad_token_id, np.int64)
    mask = np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _stacked_images(images: list[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] each -> uint8 [N, 3, H, W]; stays channels-last in memory, no copy but the stacking."""
    return rearrange(torch.from_numpy(np.stack(images)), "n h w c -> n c h w")


def _image_index(input_ids: Tensor, images: int, spec: InputSpec) -> Tensor:
    index = torch.nonzero(input_ids.flatten() == spec.image_token_id).flatten()
    assert len(index) == images * spec.image_tokens, f"{len(index)} image positions for {images} images"
    return index


def _action(sample: Sample, spec: InputSpec) -> np.ndarray:
    if sample.action is None:
        return np.zeros((spec.horizon, spec.action_dim), np.float32)
    return sample.action
