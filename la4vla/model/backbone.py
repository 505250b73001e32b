"""Instruction and images -> context, on transformers' native InternVLModel; nothing behind `trust_remote_code`.

What differs from calling InternVLModel.forward:
- a batch of kind `la` never reaches the vision tower, and no image token exists in it;
- a batch of kind `la_leaky` is masked as the release masked vision (FACTS 5.1 B1), to measure what that lets through:
  its images go through the tower into the row, no position attends to an image position (an image position attends to
  the text before it), and `key_mask_BL` shows the head all of them, so their residual stream carries the pixels to the
  actions. The release hid real frames that way in LA pretraining (`--vision_masked`) and black pictures in a mixture
  with VLA data (`--vision_masked_policy`); here the frames are those of the shards. The release's head saw the pads as
  well (B2) and three image slots whatever existed; ours sees no pad and the views that exist;
- image tokens are written to `batch.image_index` (index_copy), so no boolean mask is searched and the host never waits;
- no padding mask is built. Rows are padded on the right and attention is causal, so a real token cannot see a pad; what
  the pads compute is garbage that `key_mask_BL` keeps out of the head. transformers would build that mask with
  `mask.all()` (masking_utils: one host sync a call) and lose the fast causal kernel;
- released checkpoints attend over other rows (`context` eager or flash, config/compat.py): three image slots whatever
  exists, black pictures in the absent ones, rows padded to max_tokens, and a head that sees all of it. Keys that are
  absent or padding are masked; what a masked query computes is `released_context.flash_like`'s affair;
- no key/value cache, no language-model head; pixels are normalised in fp32 on the device (the released code did it in
  bf16).
Refuses: other dtypes of pixels than uint8, batches whose kind and images disagree, `la_leaky` with flash_attention_2.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.utils.import_utils import is_flash_attn_2_available

from la4vla.model.presets import ModelSize
from la4vla.model.released_context import FLASH_LIKE, ReleasedRows, released_rows
from la4vla.types import Batch, TextBatch, UserError

IMAGES, IMAGE_INDEX = "images_NCHW", "image_index"
"""Names of what a TextBatch for this backbone has in `images`, if its rows show any: as in Batch."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""RGB in [0, 1]; what InternVL's images were normalised with (FACTS 4.1)."""


def internvl_config(size: ModelSize, attention: str) -> InternVLConfig:
    """transformers' description of the backbone: FACTS 4.1 where the preset does not say otherwise.

    Raises UserError when flash_attention_2 is asked for and not installed; nothing falls back.
    """
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError("model.attention: flash_attention_2 needs the flash-attn package and a GPU; use sdpa instead.")
    vision = InternVLVisionConfig(
        hidden_size=size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        intermediate_size=size.vision_mlp,
        image_size=size.image_size,
        patch_size=size.patch_size,
        layer_scale_init_value=size.layer_scale,
        attention_bias=True,
        use_qk_norm=False,
    )
    text = Qwen2Config(
        vocab_size=size.vocab,
        hidden_size=size.width,
        num_hidden_layers=size.llm_layers,
        num_attention_heads=size.llm_heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.llm_mlp,
        max_position_embeddings=32_768,
        # The released `dynamic` scaling changes nothing below 32,768 positions, and asks for a host sync every call.
        rope_parameters={"rope_type": "default", "rope_theta": size.rope_theta},
        use_cache=False,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=size.image_token_id,
        image_seq_length=size.image_tokens,
        downsample_ratio=1 / size.shuffle,
        tie_word_embeddings=False,
    )
    config._attn_implementation = attention  # the setter hands it to the vision and text configs
    return config


class Backbone(nn.Module):
    def __init__(self, size: ModelSize, attention: str, context: str) -> None:
        """context: of CompatConfig."""
        super().__init__()
        self.size = size
        self.context = context
        self.internvl = InternVLModel(internvl_config(size, attention))
        self.attention = attention
        if context == "flash":
            self.internvl.language_model.config._attn_implementation = FLASH_LIKE

    def forward(self, batch: Batch | TextBatch) -> tuple[Tensor, Tensor]:
        """(context_BLE, key_mask_BL): hidden states behind the final norm, in the dtype of the weights or of autocast,
        and where they are real tokens (bool).
        """
        if self.context != "own" and isinstance(batch, Batch):
            return self._released(batch, released_rows(batch, self.size))
        images_NCHW, image_index = _shown(batch)
        assert (images_NCHW is None) == (image_index is None)
        assert batch.kind != "la" or images_NCHW is None
        embeds_BLE = self.internvl.language_model.embed_tokens(batch.input_ids_BL)
        if images_NCHW is not None and image_index is not None:
            tokens_NPE = self._image_tokens(images_NCHW).to(embeds_BLE.dtype)
            flat = rearrange(embeds_BLE, "b l e -> (b l) e")
            flat = flat.index_copy(0, image_index, rearrange(tokens_NPE, "n p e -> (n p) e"))
            embeds_BLE = rearrange(flat, "(b l) e -> b l e", b=batch.rows)
        elif batch.kind != "la" and torch.is_grad_enabled():
            # No row shows an image: unreadable ones, or conversations without any. Vision still takes part, with zero
            # gradient: other ranks wait.
            side = self.size.image_size
            blank = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=embeds_BLE.device)
            embeds_BLE = embeds_BLE + 0.0 * self._image_tokens(blank).mean().to(embeds_BLE.dtype)
        mask = self._attention_mask(batch, embeds_BLE, image_index)
        output = self.internvl.language_model(inputs_embeds=embeds_BLE, attention_mask={"full_attention": mask})
        return output.last_hidden_state, batch.text_mask_BL

    def _released(self, batch: Batch, rows: ReleasedRows) -> tuple[Tensor, Tensor]:
        """As `forward`, of a released checkpoint: every position is real to the head."""
        flat = rearrange(self.internvl.language_model.embed_tokens(rows.ids_BL), "b l e -> (b l) e")
        if batch.images_NCHW is not None:
            tokens_NPE = self._image_tokens(batch.images_NCHW).to(flat.dtype)
            flat = flat.index_copy(0, rows.image_index, rearrange(tokens_NPE, "n p e -> (n p) e"))
        if absent := len(rows.absent_index) // self.size.image_tokens:
            side = self.size.image_size
            black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=flat.device)
            with torch.set_grad_enabled(torch.is_grad_enabled() and batch.kind != "la"):  # la rows teach vision nothing
                tokens_PE = self._image_tokens(black)[0].to(flat.dtype)
            flat = flat.index_copy(0, rows.absent_index, tokens_PE.repeat(absent, 1))
        embeds_BLE = rearrange(flat, "(b l) e -> b l e", b=batch.rows)
        output = self.internvl.language_model(
            inputs_embeds=embeds_BLE, attention_mask={"full_attention": rows.mask_B1LL}
        )
        return output.last_hidden_state, torch.ones_like(rows.ids_BL, dtype=torch.bool)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute vision and language blocks in the backward pass; frozen ones (eval mode) stay as they are."""
        # The public name of this call changed between transformers releases; this one is below all of them.
        self.internvl._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_checkpoint)

    def restore_buffers(self, device: torch.device | str = "cpu") -> None:
        """Buffers are not in the state dict; after `to_empty` they have to be computed again."""
        language_model = self.internvl.language_model
        with torch.device(device):
            language_model.rotary_emb = Qwen2RotaryEmbedding(config=language_model.config)

    def _image_tokens(self, images_NCHW: Tensor) -> Tensor:
        """[N, P, E] from uint8 RGB in 0..255."""
        assert images_NCHW.dtype == torch.uint8
        pixels = images_NCHW.float() / 255.0
        # Per channel with Python numbers: a constant tensor made here would travel to the device and make the host
        # wait, and a buffer would be rounded when an engine casts the model to bf16.
        channels = zip(pixels.unbind(1), IMAGENET_MEAN, IMAGENET_STD, strict=True)
        pixels = torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)
        tokens = self.internvl.get_image_features(pixels, return_dict=True).pooler_output  # pyright: ignore
        return tokens

    def _attention_mask(
        self, batch: Batch | TextBatch, embeds_BLE: Tensor, image_index: Tensor | None
    ) -> Tensor | None:
        """None where a kernel is causal by itself and that is all; else [B or 1, 1, L, L]: bool for sdpa (True: seen),
        additive for eager, which is causal by its mask only.

        No query is left without a key: a row begins with text. Raises UserError for `la_leaky` with flash_attention_2.
        """
        hidden = image_index if batch.kind == "la_leaky" else None
        if hidden is None and self.attention != "eager":
            return None
        if self.attention == "flash_attention_2":
            raise UserError("kind la_leaky needs a mask that flash_attention_2 cannot take; set model.attention=sdpa.")
        length = embeds_BLE.shape[1]
        attended = torch.ones(1, 1, length, length, dtype=torch.bool, device=embeds_BLE.device).tril()
        if hidden is not None:
            text = torch.ones_like(batch.text_mask_BL).flatten().index_fill(0, hidden, False)
            attended = attended & rearrange(text, "(b l) -> b 1 1 l", b=batch.rows)
        if self.attention != "eager":
            return attended
        lowest = torch.finfo(embeds_BLE.dtype).min
        return torch.zeros_like(attended, dtype=embeds_BLE.dtype).masked_fill(~attended, lowest)


def _shown(batch: Batch | TextBatch) -> tuple[Tensor | None, Tensor | None]:
    """(images_NCHW, image_index)."""
    if isinstance(batch, TextBatch):
        return batch.images.get(IMAGES), batch.images.get(IMAGE_INDEX)
    return batch.images_NCHW, batch.image_index


def _checkpoint(function, *inputs):  # noqa: ANN001, ANN002, ANN202
    return checkpoint(function, *inputs, use_reentrant=False)
