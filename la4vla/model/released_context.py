"""Rows and attention as the released LA4VLA and Evo-1 have them (FACTS 4.1, 5.1 B2), for checkpoints trained so.

A row has SLOTS image slots. A slot whose view does not exist has pad tokens in the place of the image's (tokenizer.py
puts them there); the backbone writes a black picture over them, as the release does. The row is padded to the model's
max_tokens. No query attends to an absent picture or to a pad. What such a position itself computes reaches the head, so
it matters which kernel computed it:

eager  every query attends to the real keys before it; masked ones too
flash  FlashAttention takes the masked positions out of the sequence and gives zeros there; `flash_like` is sdpa with
       the same zeros, on any device
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from la4vla.model.presets import ModelSize
from la4vla.types import Batch

SLOTS = 3  # views that a released row has room for
FLASH_LIKE = "la4vla_flash_like"


@dataclass(frozen=True)
class ReleasedRows:
    """A batch's rows at their released length L.

    ids_BL        int64
    image_index   int64 [N * P], flattened positions of the images that exist
    absent_index  int64 [M * P], flattened positions of those that do not
    mask_B1LL     bool, True where a query looks
    """

    ids_BL: Tensor
    image_index: Tensor
    absent_index: Tensor
    mask_B1LL: Tensor


def released_rows(batch: Batch, size: ModelSize) -> ReleasedRows:
    """The rows of a batch, padded to `size.max_tokens`. Waits for the device."""
    length = batch.input_ids_BL.shape[1]
    more = size.max_tokens - length
    ids_BL = F.pad(batch.input_ids_BL, (0, more), value=size.pad_token_id)
    real_BL = F.pad(batch.text_mask_BL, (0, more), value=False)
    absent_BL = real_BL & (ids_BL == size.pad_token_id)
    keys_BL = real_BL & ~absent_BL
    if batch.kind == "la_leaky":
        keys_BL = keys_BL & (ids_BL != size.image_token_id)
    causal_LL = torch.ones(size.max_tokens, size.max_tokens, dtype=torch.bool, device=ids_BL.device).tril()
    index = batch.image_index if batch.image_index is not None else ids_BL.new_zeros(0)
    return ReleasedRows(
        ids_BL=ids_BL,
        image_index=index + index // length * more,
        absent_index=absent_BL.flatten().nonzero()[:, 0],
        mask_B1LL=causal_LL & rearrange(keys_BL, "b l -> b 1 1 l"),
    )


def flash_like(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: sdpa, and zeros where a position does not see itself. attention_mask: bool
    [B, 1, L, L]; None: causal, with nothing masked. Returns [B, L, heads, width]."""
    mixed, nothing = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None:
        return mixed, nothing
    real_BL = attention_mask.diagonal(dim1=-2, dim2=-1)[:, 0]
    return mixed * real_BL[:, :, None, None], nothing


AttentionInterface.register(FLASH_LIKE, flash_like)
