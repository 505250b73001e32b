"""A checkpoint as what is served: a policy with actions, a model that writes, or a policy that is told what to do."""

from __future__ import annotations

from pathlib import Path

import torch

from la4vla import manifest
from la4vla.config import HierarchicalConfig, TextPolicyConfig, load
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import Served
from la4vla.types import UserError


def load_served(
    folder: str | Path,
    text: Path | None,
    device: str | torch.device,
    base: str = "",
    high: Path | None = None,
    embodiment: str = "",
    weights: str = "raw",
) -> Served:
    """The policy of a checkpoint folder, or of a run's newest checkpoint.

    text: YAML file of the settings of a model that writes; None for a policy with actions. base: where the weights lie
    that its adapters belong to. high: YAML file of who says a policy's low-level instructions; None: nobody, it is told
    the task. embodiment: name of the robot to drive, where a policy knows several. weights: one of
    manifest.WHICH_WEIGHTS. Raises UserError where they do not fit, and for what cannot be loaded.
    """
    writes = manifest.read(manifest.resolve(folder)).learner == "vlm"
    if writes and text is None:
        raise UserError(
            f"{folder} is a model that writes; say how it acts with --text FILE (docs/text_policy.md), or name it in "
            "the file of --high (docs/hierarchical.md)."
        )
    if text is not None and not writes:
        raise UserError(f"{folder} is a policy with actions; leave out --text, which is for a model that writes.")
    if text is not None and high is not None:
        raise UserError("--text is for a model that writes, --high for a policy that is told what to do; give one.")
    if text is not None:
        from la4vla.serve.text.load import load_text_policy

        return load_text_policy(folder, load(text, schema=TextPolicyConfig), device, base, weights)
    if high is not None:
        from la4vla.serve.hierarchical.load import load_hierarchical

        return load_hierarchical(folder, load(high, schema=HierarchicalConfig), device, base, embodiment, weights)
    return ServedPolicy.load(folder, device, base, embodiment, weights)
