"""The policy: backbone and flow head behind two calls, and how one is made, described and rebuilt.

    policy(batch)                      -> (sum of squared errors, number of counted values), fp32; divide globally
    policy.sample(batch, flow_steps)   -> the chunk [B, T, A], fp32, from batch.noise_BTA; no randomness inside

Devices, autocast and the dtype of the weights are the caller's business. Noise, time, path and loss are fp32 whatever
it does.
Refuses: sampling in training mode (dropout would be on).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from la4vla.config import ModelConfig
from la4vla.model import flow, init, weights
from la4vla.model.backbone import Backbone
from la4vla.model.head import ContextCache, FlowHead
from la4vla.model.presets import ModelSize, preset
from la4vla.types import Batch, InputSpec


class Policy(nn.Module):
    def __init__(self, size: ModelSize, readout: str, attention: str, dropout: float) -> None:
        super().__init__()
        self.size = size
        self.description: dict[str, Any] = {
            "size": size.to_dict(),
            "readout": readout,
            "attention": attention,
            "dropout": dropout,
        }
        """What `rebuild` takes; the `model` entry of a checkpoint's manifest."""
        self.backbone = Backbone(size, attention)
        self.head = FlowHead(size, readout, dropout)
        self.frozen_groups: frozenset[str] = frozenset()

    @property
    def spec(self) -> InputSpec:
        return self.size.spec

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x_t, target = flow.path(batch.noise_BTA, batch.actions_BTA, batch.action_mask_BTA, batch.time_B)
        velocity = self.head.velocity(x_t, batch.time_B.float(), self.encode_context(batch))
        return flow.squared_error(velocity, target, batch.action_mask_BTA)

    @torch.no_grad()
    def sample(self, batch: Batch, flow_steps: int) -> Tensor:
        """[B, T, A] fp32, 0 on absent dims. Every step of the chunk is sampled, also where action_mask_BTA says
        padding.
        """
        assert not self.training, "call policy.eval() before sampling"
        cache = self.encode_context(batch)
        dims_B1A = flow.present_dims(batch.action_mask_BTA)
        return flow.euler(lambda x, time: self.head.velocity(x, time, cache), batch.noise_BTA, dims_B1A, flow_steps)

    def encode_context(self, batch: Batch) -> ContextCache:
        """All that a chunk depends on but noise and time."""
        context_BLE, key_mask_BL = self.backbone(batch)
        return self.head.encode_context(context_BLE, key_mask_BL, batch.state_BS, batch.state_mask_BS)

    def context(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, L + 1, E] that the head attends to, the state token last, and which of it is real (bool)."""
        context_BLE, key_mask_BL = self.backbone(batch)
        return self.head.context(context_BLE, key_mask_BL, batch.state_BS, batch.state_mask_BS)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the vision and language blocks in the backward pass: less memory, one forward pass more."""
        self.backbone.enable_gradient_checkpointing()

    def groups(self) -> dict[str, tuple[nn.Module, ...]]:
        """config.MODULE_GROUPS -> modules; together they hold every parameter once."""
        internvl = self.backbone.internvl
        return {
            "vision": (internvl.vision_tower,),
            "projector": (internvl.multi_modal_projector,),
            "embeddings": (internvl.language_model.embed_tokens,),
            "llm": (internvl.language_model.layers, internvl.language_model.norm),
            "head": (self.head,),
        }

    def train(self, mode: bool = True) -> Policy:
        """Sets training or eval mode. Frozen groups stay in eval mode.

        FACTS 5.1 B7: the release's frozen tower kept its stochastic depth.
        """
        super().train(mode)
        groups = self.groups()
        for name in self.frozen_groups:
            for module in groups[name]:
                module.eval()
        return self


def build_policy(config: ModelConfig, seed: int) -> Policy:
    """A policy on the CPU in fp32: backbone from `config.weights` where given, everything else random, the same for a
    seed.

    Raises UserError for an unknown preset, an absent attention backend or weights that do not fit the preset.
    """
    policy = _empty(preset(config.preset), config.readout, config.attention, config.dropout)
    if config.weights:
        init.init_weights(policy.head, "head", seed)
        weights.load_internvl(policy.backbone.internvl, policy.size, config.weights)
    else:
        init.init_weights(policy, "", seed)
    return policy


def rebuild(model: Mapping[str, Any]) -> Policy:
    """The policy a manifest's `model` entry describes, on the CPU, every weight NaN until a state dict is loaded into
    it.
    """
    policy = _empty(ModelSize.from_dict(model["size"]), model["readout"], model["attention"], model["dropout"])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(torch.nan)
    return policy


def _empty(size: ModelSize, readout: str, attention: str, dropout: float) -> Policy:
    """Allocated and unset: made on the meta device, so that no default initialisation runs or draws random numbers."""
    with torch.device("meta"):
        policy = Policy(size, readout, attention, dropout)
    policy.to_empty(device="cpu")
    policy.backbone.restore_buffers()
    return policy
