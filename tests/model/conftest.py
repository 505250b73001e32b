"""Tiny policies and hand-made batches for the model tests: no data room, no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from la4vla.config import ModelConfig
from la4vla.model.policy import Policy, build_policy
from la4vla.model.tokenizer import build_prompter
from la4vla.types import Batch, InputSpec, Kind

SENTENCES = ("push the puck to a goal", "lift", "move the empty gripper up slowly and then back to the left of the box")


def batch_of(
    spec: InputSpec, kind: Kind, rows: int = 3, views: Sequence[int] = (1, 2, 0), extra_pads: int = 0, seed: int = 0
) -> Batch:
    """Rows of different length; row i shows views[i] images; dims 6 and 7 are absent; row 1 ends after 5 steps."""
    prompter = build_prompter(ModelConfig())
    generator = torch.Generator().manual_seed(seed)
    counts = [views[row % len(views)] if kind != "la" else 0 for row in range(rows)]
    ids = [prompter.encode(SENTENCES[row % 3], range(count)) for row, count in enumerate(counts)]
    length = max(map(len, ids)) + extra_pads
    input_ids = torch.full((rows, length), spec.pad_token_id)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    images = torch.randint(0, 256, (sum(counts), 3, spec.image_size, spec.image_size), generator=generator)
    shape = (rows, spec.horizon, spec.action_dim)
    action_mask = torch.ones(shape, dtype=torch.bool)
    action_mask[:, :, 6:] = False
    action_mask[1:2, 5:] = False
    state_mask = torch.ones(rows, spec.state_dim, dtype=torch.bool)
    state_mask[:, 6:] = False
    return Batch(
        kind=kind,
        input_ids_BL=input_ids,
        text_mask_BL=mask,
        images_NCHW=images.to(torch.uint8) if kind != "la" else None,
        image_index=(input_ids.flatten() == spec.image_token_id).nonzero()[:, 0] if kind != "la" else None,
        state_BS=(torch.rand(rows, spec.state_dim, generator=generator) * 2 - 1) * state_mask,
        state_mask_BS=state_mask,
        actions_BTA=(torch.rand(shape, generator=generator) * 2 - 1) * action_mask,
        action_mask_BTA=action_mask,
        noise_BTA=torch.rand(shape, generator=generator) * 2 - 1,
        time_B=torch.rand(rows, generator=generator),
        embodiment_B=torch.zeros(rows, dtype=torch.int64),
        keys=tuple(f"row{row}" for row in range(rows)),
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return batch_of


@pytest.fixture(params=["per_token", "flatten"])
def policy(request) -> Policy:
    """In training mode, without dropout, so that calls can be compared."""
    return build_policy(ModelConfig(readout=request.param, dropout=0.0), seed=0)
