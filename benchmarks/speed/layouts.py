"""The rows that throughput compares: ours, and the released layout, which always feeds three image slots and full rows.

A row's cost depends on its shape alone, so token ids and pixels are random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from la4vla.config import MODULE_GROUPS
from la4vla.model.presets import ModelSize
from la4vla.types import Batch, UserError

RELEASED_SLOTS = 3
LA_GROUPS = ("llm", "head")


@dataclass(frozen=True)
class Layout:
    """What a row looks like.

    name        as in the table
    images      images that go through the vision tower
    positions   length of the row, padding included
    tokens      positions that are not padding
    trained     module groups that train
    """

    name: str
    images: int
    positions: int
    tokens: int
    trained: tuple[str, ...]


def layouts(size: ModelSize, instruction_tokens: int, views: int) -> list[Layout]:
    """The four layouts. Raises UserError where a row is longer than the preset takes."""
    slot = size.image_tokens + 7  # `Image-1: <img>`, `</img>`, newline
    rows = {count: instruction_tokens + count * slot for count in (0, views, RELEASED_SLOTS)}
    if max(rows.values()) > size.max_tokens:
        raise UserError(f"rows of {max(rows.values())} tokens, the preset takes {size.max_tokens}; use fewer of them.")
    released = (RELEASED_SLOTS, size.max_tokens, rows[RELEASED_SLOTS])
    return [
        Layout("la", 0, rows[0], rows[0], LA_GROUPS),
        Layout("released la", *released, LA_GROUPS),
        Layout("vla", views, rows[views], rows[views], MODULE_GROUPS),
        Layout("released vla", *released, MODULE_GROUPS),
    ]


def make_batch(size: ModelSize, layout: Layout, rows: int) -> Batch:
    """A batch of that shape: image slots first, then random words, then padding that text_mask hides."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((rows, layout.positions), size.pad_token_id)
    ids[:, : layout.tokens] = torch.randint(size.vocab // 2, (rows, layout.tokens), generator=generator) + 4
    places = torch.zeros(rows, layout.positions, dtype=torch.bool)
    for slot in range(layout.images):
        begin = slot * (size.image_tokens + 7) + 5
        places[:, begin : begin + size.image_tokens] = True
    chunk = (rows, size.horizon, size.action_dim)
    shape = (rows * layout.images, 3, size.image_size, size.image_size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Batch(
        kind="vla" if layout.images else "la",
        input_ids_BL=ids.masked_fill(places, size.image_token_id),
        text_mask_BL=(torch.arange(layout.positions) < layout.tokens).expand(rows, -1).contiguous(),
        images_NCHW=pixels if layout.images else None,
        image_index=places.flatten().nonzero()[:, 0] if layout.images else None,
        state_BS=torch.zeros(rows, size.state_dim),
        state_mask_BS=torch.ones(rows, size.state_dim, dtype=torch.bool),
        actions_BTA=torch.zeros(chunk),
        action_mask_BTA=torch.ones(chunk, dtype=torch.bool),
        noise_BTA=torch.rand(chunk, generator=generator) * 2 - 1,
        time_B=torch.rand(rows, generator=generator),
        embodiment_B=torch.zeros(rows, dtype=torch.int64),
        keys=("made up",) * rows,
    )
