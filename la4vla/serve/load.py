"""A checkpoint as what is served: a policy with actions, or a model that writes."""

from __future__ import annotations

from pathlib import Path

import torch

from la4vla import manifest
from la4vla.config import TextPolicyConfig, load
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import Served
from la4vla.types import UserError


def load_served(folder: str | Path, text: Path | None, device: str | torch.device, base: str = "") -> Served:
    """The policy of a checkpoint folder, or of a run's newest checkpoint.

    text: YAML file of the settings of a model that writes; None for a policy with actions. base: where the weights lie
    that its adapters belong to. Raises UserError where the two do not fit, and for what cannot be loaded.
    """
    writes = manifest.read(manifest.resolve(folder)).learner == "vlm"
    if writes and text is None:
        raise UserError(f"{folder} is a model that writes; say how it acts with --text FILE (docs/text_policy.md).")
    if text is None:
        return ServedPolicy.load(folder, device, base)
    if not writes:
        raise UserError(f"{folder} is a policy with actions; leave out --text, which is for a model that writes.")
    from la4vla.serve.text.load import load_text_policy

    return load_text_policy(folder, load(text, schema=TextPolicyConfig), device, base)
