"""The policy: backbone and flow head behind two calls, and how one is made, described and rebuilt.

    policy(batch)                      -> (sum of squared errors, number of counted values), fp32; divide globally
    policy(text_batch)                 -> (sum of cross-entropy over the answers' tokens, number of them), likewise
    policy.sample(batch, flow_steps)   -> the chunk [B, T, A], fp32, from batch.noise_BTA; no randomness inside

A policy that is trained on conversations beside actions has a language head on the same backbone. Devices, autocast and
the dtype of the weights are the caller's business. Noise, time, path and loss are fp32 whatever it does.
Refuses: sampling in training mode (dropout would be on).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from la4vla.config import LANGUAGE_HEAD, ModelConfig
from la4vla.model import flow, init, lora, weights
from la4vla.model.backbone import Backbone
from la4vla.model.freeze import keep_frozen_in_eval
from la4vla.model.head import ContextCache, FlowHead
from la4vla.model.presets import ModelSize, size_of
from la4vla.types import Batch, InputSpec, TextBatch


class Policy(nn.Module):
    def __init__(
        self,
        size: ModelSize,
        readout: str,
        attention: str,
        dropout: float,
        writes: bool,
        embodiments: Sequence[str],
    ) -> None:
        """writes: whether it has a language head. embodiments: names of those with projections of their own, in the
        order of their numbers; empty: all share one."""
        super().__init__()
        self.size = size
        self.description: dict[str, Any] = {
            "size": size.to_dict(),
            "readout": readout,
            "attention": attention,
            "dropout": dropout,
            "writes": writes,
            "embodiments": list(embodiments),
            "lora": {},
        }
        """What `rebuild` takes; the `model` entry of a checkpoint's manifest."""
        self.backbone = Backbone(size, attention)
        self.head = FlowHead(size, readout, dropout, len(embodiments))
        if writes:
            self.language_head = nn.Linear(size.width, size.vocab, bias=False)
        self.writes = writes
        self.frozen_groups: frozenset[str] = frozenset()
        self.insulated = False
        """Whether the flow's loss stops before the backbone, which then learns from conversations alone."""
        self.from_base: frozenset[str] = frozenset()
        """Names of the weights that the base of its adapters gives; a checkpoint need not hold them."""

    @property
    def spec(self) -> InputSpec:
        return self.size.spec

    def forward(self, batch: Batch | TextBatch) -> tuple[Tensor, Tensor]:
        if isinstance(batch, TextBatch):
            log_probs = self.log_probs(batch)
            return -log_probs.sum(), torch.full((), float(batch.counted), device=log_probs.device)
        x_t, target = flow.path(batch.noise_BTA, batch.actions_BTA, batch.action_mask_BTA, batch.time_B)
        velocity = self.head.velocity(x_t, batch.time_B.float(), self.encode_context(batch))
        return flow.squared_error(velocity, target, batch.action_mask_BTA)

    def log_probs(self, batch: TextBatch) -> Tensor:
        """[counted] fp32: the log-probability of each answer token, in the order of batch.answer_index."""
        states_BLE, _ = self.backbone(batch)
        # Token l is predicted from the state at l - 1. A row begins with what is given, so l is never 0.
        states_ME = rearrange(states_BLE, "b l e -> (b l) e").index_select(0, batch.answer_index - 1)
        labels_M = batch.labels_BL.flatten().index_select(0, batch.answer_index)
        return -functional.cross_entropy(self.language_head(states_ME).float(), labels_M, reduction="none")

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
        if self.insulated:
            context_BLE = context_BLE.detach()
        return self.head.encode_context(
            context_BLE, key_mask_BL, batch.state_BS, batch.state_mask_BS, batch.embodiment_B
        )

    def context(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, L + 1, E] that the head attends to, the state token last, and which of it is real (bool)."""
        context_BLE, key_mask_BL = self.backbone(batch)
        return self.head.context(context_BLE, key_mask_BL, batch.state_BS, batch.state_mask_BS, batch.embodiment_B)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the vision and language blocks in the backward pass: less memory, one forward pass more."""
        self.backbone.enable_gradient_checkpointing()

    def groups(self) -> dict[str, tuple[nn.Module, ...]]:
        """Its parts by the names of config.MODULE_GROUPS, and LANGUAGE_HEAD where it writes; together they hold every
        parameter once."""
        internvl = self.backbone.internvl
        return {
            "vision": (internvl.vision_tower,),
            "projector": (internvl.multi_modal_projector,),
            "embeddings": (internvl.language_model.embed_tokens,),
            "llm": (internvl.language_model.layers, internvl.language_model.norm),
            "head": (self.head,),
            **({LANGUAGE_HEAD: (self.language_head,)} if self.writes else {}),
        }

    def train(self, mode: bool = True) -> Policy:
        """Sets training or eval mode. Frozen groups stay in eval mode.

        FACTS 5.1 B7: the release's frozen tower kept its stochastic depth.
        """
        super().train(mode)
        keep_frozen_in_eval(self)
        return self


def build_policy(config: ModelConfig, seed: int, writes: bool = False, embodiments: Sequence[str] = ()) -> Policy:
    """A policy on the CPU in fp32, without adapters: backbone from `config.weights` where given, everything else
    random, the same for a seed. writes: with a language head, which `config.weights` give where they have one.
    embodiments: names of those with projections of their own.

    Raises UserError for an unknown preset, an absent attention backend or weights that do not fit the preset.
    """
    policy = _empty(size_of(config), config.readout, config.attention, config.dropout, writes, embodiments)
    if config.weights:
        given = weights.load(policy, config.weights)
        for name in {"head", LANGUAGE_HEAD} & dict(policy.named_children()).keys() - given:
            init.init_weights(policy.get_submodule(name), name, seed)
    else:
        init.init_weights(policy, "", seed)
    return policy


def rebuild(model: Mapping[str, Any], base: Path | None = None, seed: int = 0) -> Policy:
    """The policy a manifest's `model` entry describes, on the CPU.

    Without adapters every weight is NaN until a state dict is loaded into it. With them `base` is the folder of the
    weights that they belong to; what it does not give, adapters among it, is as fresh ones with `seed` are.
    """
    size = ModelSize.from_dict(model["size"])
    policy = _empty(size, model["readout"], model["attention"], model["dropout"], model["writes"], model["embodiments"])
    if not model["lora"]:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.fill_(torch.nan)
        return policy
    assert base is not None
    given = weights.load(policy, str(base))
    for name in {"head", LANGUAGE_HEAD} & dict(policy.named_children()).keys() - given:
        init.init_weights(policy.get_submodule(name), name, seed)
    from_base = {id(p) for name in given for p in policy.get_submodule(name).parameters()}
    lora.inject(policy, lora.from_description(model["lora"]), seed)
    policy.from_base = frozenset(name for name, p in policy.named_parameters() if id(p) in from_base)
    policy.description["lora"] = model["lora"]
    return policy


def _empty(
    size: ModelSize, readout: str, attention: str, dropout: float, writes: bool, embodiments: Sequence[str]
) -> Policy:
    """Allocated and unset: made on the meta device, so that no default initialisation runs or draws random numbers."""
    with torch.device("meta"):
        policy = Policy(size, readout, attention, dropout, writes, embodiments)
    policy.to_empty(device="cpu")
    policy.backbone.restore_buffers()
    return policy
