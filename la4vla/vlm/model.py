"""A model that writes behind one call, and how one is described and rebuilt.

    vlm(batch)              -> (sum of cross-entropy over the answers' tokens, number of them), fp32; divide globally
                               of pairs: (sum of SimPO's losses, number of pairs)
    vlm.log_probs(batch)    -> log-probability of each of those tokens, [counted] fp32

`network` is transformers' own class of one of FAMILIES; nothing behind `trust_remote_code`. Logits are computed only
where an answer is predicted: a row of a thousand tokens and a vocabulary of 262,144 would need a gigabyte otherwise.
Nothing here waits for the device; the library's own handling of images does.
Refuses: other families.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from la4vla.config import PreferenceConfig
from la4vla.model.freeze import keep_frozen_in_eval
from la4vla.types import TextBatch, UserError
from la4vla.vlm.preference import PreferenceBatch, simpo_losses

FAMILIES = {
    "internvl": "InternVL3 in the native `-hf` layout",
    "gemma3": "Gemma 3",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
}
"""model_type of config.json -> what it is."""

PROJECTORS = ("merger", "deepstack_merger_list")
"""Modules of Qwen's vision tower that turn patches into tokens of the language model."""


OF_ITS_FILE = ("_name_or_path", "transformers_version", "architectures", "dtype")
"""What a config says of the folder it was read from; a model is described alike wherever it lay."""


class VlmModel(nn.Module):
    def __init__(self, network: PreTrainedModel, max_tokens: int) -> None:
        """network: an image-text-to-text model of FAMILIES. max_tokens: the longest row, for its encoder.

        Raises UserError for another family.
        """
        super().__init__()
        check_family(network.config)
        self.network = network
        self.max_tokens = max_tokens
        self.frozen_groups: frozenset[str] = frozenset()
        self.from_base: frozenset[str] = frozenset()
        """Names of the weights that the base of its adapters gives; a checkpoint need not hold them."""
        self.preference = PreferenceConfig()
        """How pairs are learned."""

    @property
    def description(self) -> dict[str, Any]:
        """What `rebuild` takes; the `model` entry of a checkpoint's manifest."""
        network = json.loads(self.network.config.to_json_string(use_diff=False))
        return {
            "network": {name: value for name, value in network.items() if name not in OF_ITS_FILE},
            "attention": self.network.config._attn_implementation,
            "max_tokens": self.max_tokens,
        }

    @property
    def tied(self) -> bool:
        """Whether the language head is the embedding table."""
        return self._language_head().weight is self._language_model().embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return self._language_model().embed_tokens.weight.device

    def forward(self, batch: TextBatch | PreferenceBatch) -> tuple[Tensor, Tensor]:
        if isinstance(batch, PreferenceBatch):
            losses_P = simpo_losses(self.log_probs(batch.texts), batch, self.preference)
            return losses_P.sum(), batch.counts_P.sum().float()
        log_probs = self.log_probs(batch)
        return -log_probs.sum(), torch.full((), float(batch.counted), device=log_probs.device)

    def log_probs(self, batch: TextBatch) -> Tensor:
        """[counted] fp32, in the order of batch.answer_index. Padding on either side changes nothing."""
        logits_MV = self.answer_logits(batch)
        labels_M = batch.labels_BL.flatten().index_select(0, batch.answer_index)
        return -functional.cross_entropy(logits_MV, labels_M, reduction="none")

    def answer_logits(self, batch: TextBatch) -> Tensor:
        """[counted, V] fp32: what the model expects where batch.answer_index counts a token."""
        states_ME = answer_states(self.network.model, batch)
        if "pixel_values" not in batch.images and torch.is_grad_enabled():
            states_ME = states_ME + self._idle_vision().to(states_ME.dtype)
        return self._language_head()(states_ME).float()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the vision and language blocks in the backward pass: less memory, one forward pass more."""
        # The public name of this call changed between transformers releases; this one is below all of them.
        self.network._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_checkpoint)

    def groups(self) -> dict[str, tuple[nn.Module, ...]]:
        """config.MODULE_GROUPS -> modules; together they hold every parameter once. A tied language head is in
        `embeddings`, and `head` is empty then."""
        inner, language = self.network.model, self._language_model()
        if "visual" in dict(inner.named_children()):
            parts = dict(inner.visual.named_children())
            vision = tuple(module for name, module in parts.items() if name not in PROJECTORS)
            projector = tuple(module for name, module in parts.items() if name in PROJECTORS)
        else:
            vision, projector = (inner.vision_tower,), (inner.multi_modal_projector,)
        return {
            "vision": vision,
            "projector": projector,
            "embeddings": (language.embed_tokens,),
            "llm": tuple(module for name, module in language.named_children() if name != "embed_tokens"),
            "head": () if self.tied else (self._language_head(),),
        }

    def train(self, mode: bool = True) -> VlmModel:
        """Sets training or eval mode. Frozen groups stay in eval mode."""
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def _idle_vision(self) -> Tensor:
        """0, with a zero gradient for every vision parameter that trains: other ranks, whose rows have images, wait for
        one."""
        groups = self.groups()
        modules = [*groups["vision"], *groups["projector"]]
        trains = [item for module in modules for item in module.parameters() if item.requires_grad]
        return torch.stack([item.flatten()[0] * 0.0 for item in trains]).sum() if trains else torch.zeros(())

    def _language_model(self) -> Any:
        return self.network.model.language_model

    def _language_head(self) -> Any:
        return self.network.lm_head


def answer_states(inner: nn.Module, batch: TextBatch) -> Tensor:
    """[counted, E] hidden states from which the tokens of batch.answer_index are predicted. inner: a model of FAMILIES
    without its language head."""
    states_BLE = inner(
        input_ids=batch.input_ids_BL, attention_mask=batch.text_mask_BL.long(), use_cache=False, **batch.images
    ).last_hidden_state
    # Token l is predicted from the state at l - 1. A row begins with what is given, so l is never 0.
    return rearrange(states_BLE, "b l e -> (b l) e").index_select(0, batch.answer_index - 1)


def rebuild(model: Mapping[str, Any]) -> VlmModel:
    """The model that a manifest's `model` entry describes, on the CPU in fp32, every weight NaN until a state dict is
    loaded into it."""
    raw = dict(model["network"])
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    vlm = VlmModel(empty_network(config, model["attention"]), model["max_tokens"])
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.fill_(torch.nan)
    return vlm


def empty_network(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """Allocated and unset, in fp32: no default initialisation runs or draws random numbers.

    Raises UserError for another family.
    """
    check_family(config)
    with no_init_weights():
        network = AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=torch.float32)
    network.tie_weights()
    return network


def check_family(config: PreTrainedConfig) -> None:
    if config.model_type not in FAMILIES:
        known = ", ".join(f"{name} ({what})" for name, what in FAMILIES.items())
        raise UserError(f"model_type is `{config.model_type}`; models that write are of {known}.")


def _checkpoint(function, *inputs):  # noqa: ANN001, ANN002, ANN202
    return checkpoint(function, *inputs, use_reentrant=False)
