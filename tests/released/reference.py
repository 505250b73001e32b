"""The released LA4VLA written out once more, from FACTS 4.1 and 4.2 alone and in the released key names: plain
functions on a state dict, no code of ours and none of transformers. Pixels, tokens and state in, a chunk out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
VISION, LANGUAGE, HEAD = "embedder.model.vision_model", "embedder.model.language_model.model", "action_head"


@dataclass(frozen=True)
class Sizes:
    """What shapes do not tell."""

    vision_layers: int
    vision_heads: int
    llm_layers: int
    llm_heads: int
    kv_heads: int
    rope_theta: float
    head_blocks: int
    head_heads: int


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def rms_norm(state: State, name: str, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, L, heads * d] -> [B, heads, L, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """[B, heads, L, d] each -> [B, L, heads * d]"""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def image_tokens(state: State, pixels_NHWC: Tensor, sizes: Sizes) -> Tensor:
    """[N, P, E] from uint8 RGB [N, H, W, 3]."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((pixels_NHWC / 255.0 - mean) / std).permute(0, 3, 1, 2)
    kernel = state[f"{VISION}.embeddings.patch_embedding.weight"]
    patches = F.conv2d(images, kernel, state[f"{VISION}.embeddings.patch_embedding.bias"], stride=kernel.shape[-1])
    side = patches.shape[-1]
    x = patches.flatten(2).transpose(1, 2)
    cls = state[f"{VISION}.embeddings.class_embedding"].expand(len(x), -1, -1)
    x = torch.cat([cls, x], dim=1) + state[f"{VISION}.embeddings.position_embedding"]
    for number in range(sizes.vision_layers):
        at = f"{VISION}.encoder.layers.{number}"
        q, k, v = linear(state, f"{at}.attn.qkv", layer_norm(state, f"{at}.norm1", x, 1e-6)).chunk(3, dim=-1)
        mixed = attend(*(heads_of(part, sizes.vision_heads) for part in (q, k, v)), seen=None)
        x = x + state[f"{at}.ls1"] * linear(state, f"{at}.attn.proj", mixed)
        hidden = F.gelu(linear(state, f"{at}.mlp.fc1", layer_norm(state, f"{at}.norm2", x, 1e-6)))
        x = x + state[f"{at}.ls2"] * linear(state, f"{at}.mlp.fc2", hidden)
    grid = x[:, 1:].unflatten(1, (side, side))  # the class token is dropped
    # Pixel shuffle x 0.5, version 2: four neighbours become one token, row by row.
    quarters = [grid[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    tokens = torch.cat(quarters, dim=-1).flatten(1, 2)
    tokens = layer_norm(state, "embedder.model.mlp1.0", tokens, 1e-5)
    return linear(state, "embedder.model.mlp1.3", F.gelu(linear(state, "embedder.model.mlp1.1", tokens)))


def rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0, 1, 2, ... of [B, heads, L, d]."""
    width = x.shape[-1]
    rates = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(x.shape[-2], dtype=torch.float32)[:, None] * rates
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def context(state: State, embeds: Tensor, real: Tensor, sizes: Sizes, flash: bool) -> Tensor:
    """Normed hidden states [B, L, E]. real: bool [B, L], positions that may be looked at. flash: FlashAttention, which
    takes the others out of the sequence and gives zeros there."""
    length, x = embeds.shape[1], embeds
    seen = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, None, :]
    for number in range(sizes.llm_layers):
        at = f"{LANGUAGE}.layers.{number}"
        normed = rms_norm(state, f"{at}.input_layernorm", x)
        q = rotated(heads_of(linear(state, f"{at}.self_attn.q_proj", normed), sizes.llm_heads), sizes.rope_theta)
        k = rotated(heads_of(linear(state, f"{at}.self_attn.k_proj", normed), sizes.kv_heads), sizes.rope_theta)
        v = heads_of(linear(state, f"{at}.self_attn.v_proj", normed), sizes.kv_heads)
        shared = sizes.llm_heads // sizes.kv_heads
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        mixed = packed(q, k, v, real) if flash else attend(q, k, v, seen)
        x = x + linear(state, f"{at}.self_attn.o_proj", mixed)
        normed = rms_norm(state, f"{at}.post_attention_layernorm", x)
        gate = F.silu(linear(state, f"{at}.mlp.gate_proj", normed))
        x = x + linear(state, f"{at}.mlp.down_proj", gate * linear(state, f"{at}.mlp.up_proj", normed))
    return rms_norm(state, f"{LANGUAGE}.norm", x)


def packed(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """What FlashAttention does with a padding mask: row by row, the real positions alone, causally; then back."""
    mixed = torch.zeros(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])
    for row, kept in enumerate(real):
        one = [part[row : row + 1, :, kept] for part in (q, k, v)]
        length = int(kept.sum())
        mixed[row, kept] = attend(*one, seen=torch.ones(length, length, dtype=torch.bool).tril())[0]
    return mixed


def velocity(state: State, x: Tensor, time: float, source: Tensor, sizes: Sizes, time_scale: int) -> Tensor:
    """[B, T, A] of a noisy chunk x. source: context and state token [B, L + 1, E]."""
    encoder = f"{HEAD}.action_encoder"
    chunk = F.relu(linear(state, f"{encoder}.W1.linear", x)) + state[f"{encoder}.pos_encoding.pe"][0, : x.shape[1]]
    chunk = linear(state, f"{encoder}.W3.linear", F.relu(linear(state, f"{encoder}.W2.linear", chunk)))
    index = (torch.tensor(time) * time_scale).long()
    at_time = state[f"{HEAD}.time_pos_enc.pe"][0, index]
    for number in range(sizes.head_blocks):
        at = f"{HEAD}.transformer_blocks.{number}"
        attention = torch.nn.MultiheadAttention(x_width(state), sizes.head_heads, batch_first=True).eval()
        attention.load_state_dict(
            {
                name: state[f"{at}.attn.{name}"]
                for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            }
        )
        query = layer_norm(state, f"{at}.norm1", chunk, 1e-5)
        chunk = chunk + attention(query, source, source, need_weights=False)[0]
        hidden = linear(state, f"{at}.ff.0", layer_norm(state, f"{at}.norm2", chunk, 1e-5) + at_time)
        chunk = chunk + linear(state, f"{at}.ff.2", F.gelu(hidden))
    flat = layer_norm(state, f"{HEAD}.norm_out", chunk, 1e-5).flatten(1)
    pooled = linear(state, f"{HEAD}.seq_pool_proj", flat)
    hidden = F.relu(linear(state, f"{HEAD}.mlp_head.fc1.linear", pooled))
    return linear(state, f"{HEAD}.mlp_head.fc2.linear", hidden).view(x.shape)


def x_width(state: State) -> int:
    return state[f"{HEAD}.norm_out.weight"].shape[0]


def state_token(state: State, robot: Tensor) -> Tensor:
    """[B, E] of the padded state [B, S]."""
    encoder = f"{HEAD}.state_encoder"
    return linear(state, f"{encoder}.fc2.linear", F.relu(linear(state, f"{encoder}.fc1.linear", robot)))


def sample(
    state: State, seen: Tensor, robot: Tensor, noise: Tensor, mask: Tensor, steps: int, sizes: Sizes, time_scale: int
) -> Tensor:
    """The chunk [B, T, A]. seen: [B, L, E], all of which the head attends to. robot: the padded state [B, S]. mask:
    [B, 1, A], 1 at the dims of the robot's actions."""
    source = torch.cat([seen, state_token(state, robot)[:, None]], dim=1)
    action = noise * mask
    for number in range(steps):
        action = action + velocity(state, action * mask, number / steps, source, sizes, time_scale) / steps
    return action * mask


def embedded(state: State, ids: Tensor, images: list[Tensor], tokens: int, image_token: int, sizes: Sizes) -> Tensor:
    """Token embeddings [B, L, E] of rows with their pictures in them, three in each. images: uint8 RGB [H, W, 3], row
    by row, black where a view does not exist."""
    embeds = state[f"{LANGUAGE}.embed_tokens.weight"][ids].clone()
    pictures = image_tokens(state, torch.stack(images), sizes)
    rows, columns = torch.nonzero(ids == image_token, as_tuple=True)
    assert len(rows) == len(images) * tokens
    embeds[rows, columns] = pictures.flatten(0, 1)
    return embeds
