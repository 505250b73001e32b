"""The grounding model: how well a sentence fits a motion in a scene (papers: GPLA; FACTS 2.1).

    model(batch)   without gradients on the batch: (motion_BD, sentence_BD), embeddings of length 1, fp32
                   with them: (the batch's share of the loss, pairs that count), fp32 0-d

Sentence: the text tower's pooled output, projected. Motion: the vision tower's pooled output, projected, then changed
by FiLM layers on what the action encoder makes of the actions (Perez et al. 2018). Without vision the FiLM layers
change zeros, so that the actions say everything. A pair's score is the cosine of its two embeddings.
Nothing here waits for the device.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipTextConfig, SiglipVisionConfig

from la4vla.grounding.towers import Towers, empty_towers, set_fresh
from la4vla.model.freeze import keep_frozen_in_eval
from la4vla.types import ContrastBatch

FILM_LAYERS = 4  # FACTS 2.1
ACTION_HEADS = 4  # of the one layer of the action encoder (FACTS 2.1, point 8)
FIRST_TEMPERATURE = 0.1  # FACTS 2.1
OF_ITS_FILE = ("_name_or_path", "transformers_version", "architectures", "dtype")


@dataclass(frozen=True)
class HeadSizes:
    """Of all that stands on the towers.

    dim         of the embeddings, and of the action encoder; a multiple of its heads
    horizon     actions of a motion at most
    action_dim  A
    text        width of the text tower's output
    vision      width of the vision tower's; 0 without vision
    """

    dim: int
    horizon: int
    action_dim: int
    text: int
    vision: int


class MotionEncoder(nn.Module):
    """Two linear layers, learned positions, one transformer layer, the mean over the actions that there are."""

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        width = sizes.dim
        self.rise = nn.Linear(sizes.action_dim, width)
        self.mix = nn.Linear(width, width)
        self.positions = nn.Embedding(sizes.horizon, width)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, actions_BTA: Tensor, valid_BT: Tensor) -> Tensor:
        """[B, D]. A row without any valid action is that of its first one, so that it stays finite."""
        seen_BT = valid_BT | (torch.arange(valid_BT.shape[1], device=valid_BT.device) == 0)
        x_BTD = self.mix(functional.silu(self.rise(actions_BTA))) + self.positions.weight[None]
        x_BTD = x_BTD + self._attended(self.attention_norm(x_BTD), seen_BT)
        x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD))
        weight_BT1 = seen_BT[..., None].to(x_BTD.dtype)
        return (x_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)

    def _attended(self, x_BTD: Tensor, seen_BT: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x_BTD), "b t (three h d) -> three b h t d", three=3, h=ACTION_HEADS)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen_BT[:, None, None, :])
        return self.out(rearrange(mixed, "b h t d -> b t (h d)"))


class FilmLayer(nn.Module):
    """x -> x + MLP((1 + gamma(action)) x + beta(action))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulate = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x_BD: Tensor, action_BD: Tensor) -> Tensor:
        gamma_BD, beta_BD = self.modulate(action_BD).chunk(2, dim=-1)
        return x_BD + self.mlp(self.norm((1 + gamma_BD) * x_BD + beta_BD))


class GroundingHead(nn.Module):
    """All that stands on the towers: projections, action encoder, FiLM layers, temperature."""

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text_projection = nn.Linear(sizes.text, sizes.dim)
        self.vision_projection = nn.Linear(sizes.vision, sizes.dim) if sizes.vision else None
        self.action = MotionEncoder(sizes)
        self.film = nn.ModuleList([FilmLayer(sizes.dim) for _ in range(FILM_LAYERS)])
        # Of one element, not a scalar: DeepSpeed cannot send those.
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / FIRST_TEMPERATURE)]))

    def motion(self, pooled_BV: Tensor | None, actions_BTA: Tensor, valid_BT: Tensor) -> Tensor:
        action_BD = self.action(actions_BTA, valid_BT)
        x_BD = torch.zeros_like(action_BD)
        if self.vision_projection is not None:
            x_BD = self.vision_projection(pooled_BV)
        for layer in self.film:
            x_BD = layer(x_BD, action_BD)
        return functional.normalize(x_BD.float(), dim=-1)

    def sentence(self, pooled_BW: Tensor) -> Tensor:
        return functional.normalize(self.text_projection(pooled_BW).float(), dim=-1)


class GroundingModel(nn.Module):
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, towers: Towers, dim: int, horizon: int, action_dim: int) -> None:
        """The head's weights are unset: see `set_fresh`."""
        super().__init__()
        self.text, self.vision, self.pixels = towers.text, towers.vision, towers.pixels
        text = towers.text.config.projection_size or towers.text.config.hidden_size
        vision = towers.vision.config.hidden_size if towers.vision is not None else 0
        self.head = GroundingHead(HeadSizes(dim, horizon, action_dim, text, vision))
        self.frozen_groups: frozenset[str] = frozenset()
        for name, values in self.pixels.items():
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @property
    def description(self) -> dict[str, Any]:
        """What `rebuild` takes; the `model` entry of a checkpoint's manifest."""
        return {
            "text": _described(self.text.config),
            "vision": _described(self.vision.config) if self.vision is not None else None,
            "pixels": self.pixels,
            **{name: asdict(self.head.sizes)[name] for name in ("dim", "horizon", "action_dim")},
        }

    def forward(self, batch: ContrastBatch) -> tuple[Tensor, Tensor]:
        motion_BD = self.motion(batch.images_BCHW, batch.actions_BTA, batch.action_valid_BT)
        sentence_BD = self.sentence(batch.input_ids_BL)
        given = batch.gradients
        if given is None:
            return motion_BD, sentence_BD
        counted = batch.kept_B.sum().float()
        # Its gradient is that of the group's loss by way of these embeddings, its value the batch's share of the loss.
        reached = (motion_BD * given.motion_BD).sum() + (sentence_BD * given.sentence_BD).sum()
        reached = reached + (self.head.log_scale * given.scale).sum()
        return counted * given.loss + reached - reached.detach(), counted

    def motion(self, images_BCHW: Tensor | None, actions_BTA: Tensor, valid_BT: Tensor) -> Tensor:
        """[B, D] of length 1. images: uint8 RGB, None without vision. actions: normalised."""
        pooled_BV = None
        if self.vision is not None:
            assert images_BCHW is not None, "a model with vision is shown the scene"
            pixels = (images_BCHW.float() / 255.0 - self.image_mean) / self.image_std
            pooled_BV = self.vision(pixel_values=pixels).pooler_output
        return self.head.motion(pooled_BV, actions_BTA, valid_BT)

    def sentence(self, input_ids_BL: Tensor) -> Tensor:
        """[B, D] of length 1."""
        return self.head.sentence(self.text(input_ids=input_ids_BL).pooler_output)

    def flops(self, trained: Collection[str]) -> float:
        """Useful operations for one pair of a step that trains these groups: two a weight and token in the forward
        pass, twice as many again where the backward pass goes."""
        vision: Any = self.vision.config if self.vision is not None else None
        tokens = {
            "text": self.text.config.max_position_embeddings,
            "vision": (vision.image_size // vision.patch_size) ** 2 if vision is not None else 0,
            "head": self.head.sizes.horizon,
        }
        weights = {
            name: sum(tensor.numel() for part in parts for tensor in part.parameters() if tensor.ndim > 1)
            for name, parts in self.groups().items()
        }
        weights["text"] -= self.text.embeddings.token_embedding.weight.numel()
        return sum(2.0 * weights[name] * tokens[name] * (3 if name in trained else 1) for name in tokens)

    def groups(self) -> dict[str, tuple[nn.Module, ...]]:
        """config.GROUNDING_GROUPS -> modules; together they hold every parameter once."""
        vision = () if self.vision is None else (self.vision,)
        return {"vision": vision, "text": (self.text,), "head": (self.head,)}

    def train(self, mode: bool = True) -> GroundingModel:
        """Sets training or eval mode. Frozen groups stay in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self


def build_grounding(towers: Towers, dim: int, horizon: int, action_dim: int, seed: int) -> GroundingModel:
    """On the CPU in fp32, with a fresh head that is the same for a seed."""
    model = GroundingModel(towers, dim, horizon, action_dim)
    log_scale = model.head.log_scale.detach().clone()
    set_fresh(model.head, "grounding.head", seed)
    with torch.no_grad():
        model.head.log_scale.copy_(log_scale)
    return model


def rebuild(model: Mapping[str, Any], encoder: Any) -> GroundingModel:
    """The model that a manifest's `model` entry describes, on the CPU in fp32, every weight NaN until a state dict is
    loaded into it. encoder: of its sentences."""
    text, vision = SiglipTextConfig(**model["text"]), model["vision"]
    made = empty_towers(text, SiglipVisionConfig(**vision) if vision is not None else None)
    towers = Towers(*made, model["pixels"], encoder)
    grounding = GroundingModel(towers, model["dim"], model["horizon"], model["action_dim"])
    with torch.no_grad():
        for parameter in grounding.parameters():
            parameter.fill_(torch.nan)
    return grounding


def _described(config: SiglipTextConfig | SiglipVisionConfig) -> dict[str, Any]:
    raw = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in raw.items() if name not in (*OF_ITS_FILE, "model_type")}
