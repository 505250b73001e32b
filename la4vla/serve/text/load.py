"""A checkpoint of a model that writes, as a text policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from la4vla import manifest
from la4vla.action_text.action_text import ActionText
from la4vla.config import TextPolicyConfig
from la4vla.serve.text.policy import TextPolicy
from la4vla.serve.text.writer import VlmWriter
from la4vla.types import Embodiment, UserError

NOT_WRITTEN = ("cache",)
"""Settings that change nothing of what is written."""


def load_text_policy(
    folder: str | Path,
    config: TextPolicyConfig,
    device: str | torch.device = "cpu",
    base: str = "",
    weights: str = "raw",
) -> TextPolicy:
    """The model of a checkpoint folder, or of a run's newest checkpoint, acting as `config` says.

    base: where the weights lie that its adapters belong to, if not where they lay when it was trained. weights: one of
    manifest.WHICH_WEIGHTS. Raises UserError for a checkpoint of a policy with actions, one whose texts held no actions,
    and damaged or other weights.
    """
    folder = manifest.resolve(folder)
    description = manifest.read(folder)
    writer = VlmWriter.load(folder, description, device, base, weights)
    codec = description.text.get("codec")
    if not codec or not description.robots:
        raise UserError(
            f"{folder}: it was trained on no action texts, so how it writes motion is not known; train it on the texts "
            "of `la4vla construct texts`, `actions` among their questions."
        )
    played = {**codec, "play": {**codec["play"], **config.play}}
    action = ActionText.from_dict(played, Embodiment.from_dict(description.robot().embodiment))
    return TextPolicy.of(
        config,
        writer,
        action,
        text_identity(description.identity(weights), asdict(config), action.to_dict()),
        description.step,
        {"torch": torch.__version__, "transformers": transformers.__version__},
    )


def text_identity(weights: str, config: Mapping[str, Any], action_text: Mapping[str, Any]) -> str:
    """What result rows call the policy: other settings are another policy. weights: their identity (Manifest)."""
    known = {name: value for name, value in config.items() if name not in NOT_WRITTEN}
    settings = hashlib.sha256(json.dumps([known, action_text], sort_keys=True).encode()).hexdigest()
    return f"{weights[:40]}-{settings[:12]}"
