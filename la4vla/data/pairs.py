"""Samples of one group -> one `ContrastBatch`, a micro-batch of pairs of a motion and its sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange

from la4vla.data.collate import Encode
from la4vla.types import ContrastBatch, Sample


def collate_pairs(samples: Sequence[Sample], encode: Encode, source: str, group: int) -> ContrastBatch:
    """samples: after the chain, each with at most one view. encode: gives rows of one length.

    Raises UserError for a sentence longer than the model takes.
    """
    rows = [encode(sample.instruction, ()) for sample in samples]
    images = [image for sample in samples for image in sample.views.values()]
    assert len(images) in (0, len(samples)), "a pair shows one view, or none does"
    actions = []
    for sample in samples:
        assert sample.action is not None, "a pair holds a motion"
        actions.append(sample.action)
    return ContrastBatch(
        kind="contrast",
        group=group,
        source=source,
        input_ids_BL=torch.from_numpy(np.array(rows, np.int64)),
        images_BCHW=rearrange(torch.from_numpy(np.stack(images)), "b h w c -> b c h w") if images else None,
        actions_BTA=torch.from_numpy(np.stack(actions)),
        action_valid_BT=torch.from_numpy(np.stack([sample.action_valid for sample in samples])),
        keys=tuple(sample.key for sample in samples),
    )
