"""Tensors of the released LA4VLA and Evo-1 by their names (FACTS 4.5), and ours: one table, read in both directions.

A weight of ours is a whole released tensor or a part of its rows: the released vision attention packs q, k and v into
one matrix, the released head q and kv. Sinusoidal tables have a leading 1 in the released layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from la4vla.model.base import some
from la4vla.types import UserError

RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.internvl\.", "embedder.model."),
        (r"\.vision_tower\.", ".vision_model."),
        (r"\.embeddings\.cls_token$", ".embeddings.class_embedding"),
        (r"\.embeddings\.position_embeddings$", ".embeddings.position_embedding"),
        (r"\.patch_embeddings\.projection\.", ".patch_embedding."),
        (r"\.encoder\.layer\.", ".encoder.layers."),
        (r"\.lambda_([12])$", r".ls\1"),
        (r"\.attention\.[qkv]_proj\.", ".attn.qkv."),
        (r"\.attention\.projection_layer\.", ".attn.proj."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.multi_modal_projector\.layer_norm\.", ".mlp1.0."),
        (r"\.multi_modal_projector\.linear_1\.", ".mlp1.1."),
        (r"\.multi_modal_projector\.linear_2\.", ".mlp1.3."),
        (r"\.language_model\.", ".language_model.model."),
        (r"^head\.time_table$", "head.time_pos_enc.pe"),
        (r"\.step_table$", ".pos_encoding.pe"),
        (r"\.action_encoder\.w([123])\.", r".action_encoder.W\1.linear."),
        (r"\.state_encoder\.fc([12])\.", r".state_encoder.fc\1.linear."),
        (r"^head\.blocks\.(\d+)\.attn\.(?:q|kv)_proj\.", r"head.transformer_blocks.\1.attn.in_proj_"),
        (r"^head\.blocks\.", "head.transformer_blocks."),
        (r"\.readout\.pool\.", ".seq_pool_proj."),
        (r"\.readout\.fc([12])\.", r".mlp_head.fc\1.linear."),
        (r"^head\.", "action_head."),
    )
)
"""In this order, from our name to the released one."""

THIRDS = tuple(
    (re.compile(pattern), first, last)
    for pattern, first, last in (
        (r"\.attention\.q_proj\.", 0, 1),
        (r"\.attention\.k_proj\.", 1, 2),
        (r"\.attention\.v_proj\.", 2, 3),
        (r"^head\.blocks\.\d+\.attn\.q_proj\.", 0, 1),
        (r"^head\.blocks\.\d+\.attn\.kv_proj\.", 1, 3),
    )
)
"""Our name -> the thirds of the released tensor's rows that it holds."""


@dataclass(frozen=True)
class Place:
    """Where a weight of ours stands in the released layout.

    name   of the released tensor
    first  third of its rows where ours begins
    last   third where ours ends; 3 of 0 to 3 is all
    table  whether the released tensor has a leading 1
    """

    name: str
    first: int
    last: int
    table: bool


def place_of(ours: str) -> Place:
    """The place of a weight of ours."""
    first, last = next(((low, high) for pattern, low, high in THIRDS if pattern.search(ours)), (0, 3))
    name = ours
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return Place(name, first, last, name.endswith(".pe"))


def to_ours(released: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp32 tensors by our names. wanted: a policy's state dict, whose names and shapes decide.

    Raises UserError for what is missing, left over, of another shape or not finite.
    """
    places = {name: place_of(name) for name in wanted}
    needed = {place.name for place in places.values()}
    if needed != released.keys():
        raise UserError(
            f"the checkpoint's tensors are not those of this model: missing {some(needed - released.keys())}, "
            f"unexpected {some(released.keys() - needed)}; choose the --preset of its size."
        )
    found = {}
    for name, place in places.items():
        tensor = released[place.name]
        rows = tensor[0] if place.table else tensor
        third = len(rows) // 3
        part = rows if (place.first, place.last) == (0, 3) else rows[place.first * third : place.last * third]
        if part.shape != wanted[name].shape:
            raise UserError(
                f"{place.name} is {list(tensor.shape)}, which gives {list(part.shape)} where this model has "
                f"{list(wanted[name].shape)}; choose the --preset of its size."
            )
        if not torch.isfinite(part).all():
            raise UserError(f"{place.name} is not finite; download the checkpoint again, or take an earlier one.")
        found[name] = part.float().contiguous()
    return found


def to_released(ours: Mapping[str, Tensor], dtypes: Mapping[str, str]) -> dict[str, Tensor]:
    """The released tensors of a policy's state dict. dtypes: released name -> its dtype (`bfloat16`), in the order that
    the result gets."""
    parts: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in dtypes}
    for name, tensor in ours.items():
        place = place_of(name)
        parts[place.name].append((place.first, tensor[None] if place.table else tensor))
    whole = {name: [tensor for _, tensor in sorted(found, key=lambda part: part[0])] for name, found in parts.items()}
    return {name: torch.cat(found).to(dtype_of(dtypes[name])) for name, found in whole.items()}


def dtype_of(name: str) -> torch.dtype:
    """Of a released tensor. Raises UserError for one that no release has."""
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if name not in known:
        raise UserError(f"its tensors are {name}; only {', '.join(known)} are read.")
    return known[name]
