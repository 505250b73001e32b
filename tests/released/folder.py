"""A folder in the released layout with random weights, at the sizes of the tiny preset: names and shapes are written
out from FACTS 4.5, statistics are made up."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from la4vla.model.presets import TINY
from tests.released.reference import HEAD, LANGUAGE, VISION, Sizes

SIZES = Sizes(
    TINY.vision_layers, TINY.vision_heads, TINY.llm_layers, TINY.llm_heads, TINY.kv_heads, TINY.rope_theta,
    TINY.head_blocks, TINY.head_heads,
)  # fmt: skip
HORIZON, WIDE = 16, 24  # steps of a chunk, numbers of a padded state and of a padded action

STATS = {
    "sawyer": {
        "mt50": {
            "observation.state": {
                "min": [-0.5, 0.3, 0.0, 0.1, -0.3, 0.4, 0.02, 0.5],
                "max": [0.5, 0.9, 0.4, 1.0, 0.3, 0.9, 0.3, 0.5],  # the last never moves: -1 by the released rule
                "mean": [0.0, 0.6, 0.2, 0.5, 0.0, 0.7, 0.1, 0.5],
                "std": [0.2, 0.1, 0.1, 0.3, 0.1, 0.1, 0.05, 0.1],
            },
            "action": {
                "min": [-1.0, -0.8, -1.0, 0.3],
                "max": [1.0, 0.9, 0.7, 0.3],  # the gripper never moves
                "mean": [0.0, 0.1, 0.0, 0.3],
                "std": [0.4, 0.3, 0.4, 0.1],
            },
        }
    }
}


def sinusoids(rows: int, width: int) -> Tensor:
    """The released table, as its class computes it."""
    table, position = torch.zeros(rows, width), torch.arange(rows, dtype=torch.float).unsqueeze(1)
    rates = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    table[:, 0::2], table[:, 1::2] = torch.sin(position * rates), torch.cos(position * rates)
    return table.unsqueeze(0)


def shapes() -> dict[str, tuple[int, ...]]:
    """Released name -> shape, but for the tables."""
    v, w, mlp, e = TINY.vision_width, TINY.width, TINY.llm_mlp, TINY.head_mlp
    patches, deep = TINY.patches, TINY.vision_width * 4
    kv = w // TINY.llm_heads * TINY.kv_heads
    found: dict[str, tuple[int, ...]] = {
        f"{VISION}.embeddings.class_embedding": (1, 1, v),
        f"{VISION}.embeddings.position_embedding": (1, 1 + patches, v),
        f"{VISION}.embeddings.patch_embedding.weight": (v, 3, TINY.patch_size, TINY.patch_size),
        f"{VISION}.embeddings.patch_embedding.bias": (v,),
    }

    def dense(name: str, rows: int, columns: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (rows, columns)
        if bias:
            found[f"{name}.bias"] = (rows,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (width,), (width,)

    for n in range(TINY.vision_layers):
        at = f"{VISION}.encoder.layers.{n}"
        found[f"{at}.ls1"], found[f"{at}.ls2"] = (v,), (v,)
        norm(f"{at}.norm1", v)
        norm(f"{at}.norm2", v)
        dense(f"{at}.attn.qkv", 3 * v, v)
        dense(f"{at}.attn.proj", v, v)
        dense(f"{at}.mlp.fc1", TINY.vision_mlp, v)
        dense(f"{at}.mlp.fc2", v, TINY.vision_mlp)
    norm("embedder.model.mlp1.0", deep)
    dense("embedder.model.mlp1.1", w, deep)
    dense("embedder.model.mlp1.3", w, w)
    found[f"{LANGUAGE}.embed_tokens.weight"] = (TINY.vocab, w)
    for n in range(TINY.llm_layers):
        at = f"{LANGUAGE}.layers.{n}"
        for part, rows in (("q", w), ("k", kv), ("v", kv)):
            dense(f"{at}.self_attn.{part}_proj", rows, w)
        dense(f"{at}.self_attn.o_proj", w, w, bias=False)
        dense(f"{at}.mlp.gate_proj", mlp, w, bias=False)
        dense(f"{at}.mlp.up_proj", mlp, w, bias=False)
        dense(f"{at}.mlp.down_proj", w, mlp, bias=False)
        found[f"{at}.input_layernorm.weight"] = found[f"{at}.post_attention_layernorm.weight"] = (w,)
    found[f"{LANGUAGE}.norm.weight"] = (w,)
    dense(f"{HEAD}.action_encoder.W1.linear", w, WIDE)
    dense(f"{HEAD}.action_encoder.W2.linear", w, w)
    dense(f"{HEAD}.action_encoder.W3.linear", w, w)
    for n in range(TINY.head_blocks):
        at = f"{HEAD}.transformer_blocks.{n}"
        found[f"{at}.attn.in_proj_weight"], found[f"{at}.attn.in_proj_bias"] = (3 * w, w), (3 * w,)
        dense(f"{at}.attn.out_proj", w, w)
        norm(f"{at}.norm1", w)
        norm(f"{at}.norm2", w)
        dense(f"{at}.ff.0", e, w)
        dense(f"{at}.ff.2", w, e)
    norm(f"{HEAD}.norm_out", w)
    dense(f"{HEAD}.seq_pool_proj", w, HORIZON * w)
    dense(f"{HEAD}.mlp_head.fc1.linear", TINY.head_hidden, w)
    dense(f"{HEAD}.mlp_head.fc2.linear", HORIZON * WIDE, TINY.head_hidden)
    dense(f"{HEAD}.state_encoder.fc1.linear", TINY.head_hidden, WIDE)
    dense(f"{HEAD}.state_encoder.fc2.linear", w, TINY.head_hidden)
    return found


def random_state(seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A state dict in the released names. Norms are near 1, everything else keeps activations near their size."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes().items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1 and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif "embed_tokens" not in name:
            values = values * (0.3 if len(shape) == 1 else values[0].numel() ** -0.5)
        state[name] = values
    state[f"{HEAD}.time_pos_enc.pe"] = sinusoids(1000, TINY.width)
    state[f"{HEAD}.action_encoder.pos_encoding.pe"] = sinusoids(HORIZON, TINY.width)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def write_folder(folder: Path, state: dict[str, Tensor], stats: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    client = {"step": 7, "best_loss": 0.5, "config": {"horizon": HORIZON}, "ds_config": {"bf16": {"enabled": True}}}
    torch.save({"module": state, "optimizer": None, **client}, folder / "mp_rank_00_model_states.pt")
    (folder / "config.json").write_text(json.dumps({"horizon": HORIZON, "per_action_dim": WIDE}))
    (folder / "norm_stats.json").write_text(json.dumps(stats or STATS))
    return folder
