"""Models that write out of folders: a base with fresh adapters on it, and what a checkpoint of ours holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from la4vla import manifest
from la4vla.manifest import Manifest
from la4vla.model import lora
from la4vla.model.base import Base, is_checkpoint, load_average, load_stored
from la4vla.types import UserError
from la4vla.vlm.load import load_vlm
from la4vla.vlm.model import VlmModel, rebuild
from la4vla.vlm.rows import ChatEncoder


def rebuild_adapted(model: Mapping[str, Any], base: Path, seed: int) -> VlmModel:
    """A base's weights with adapters as fresh ones with `seed` are, on the CPU in fp32.

    model  a manifest's `model` entry; of a public base `network` need not be in it. base: a checkpoint of ours without
    adapters, or a public folder. Raises UserError for one that does not fit.
    """
    if is_checkpoint(base):
        made = manifest.read(base)
        if made.base:
            raise UserError(
                f"{base} holds adapters, and their weights lie elsewhere; `la4vla export {base} OUT` makes one of both."
            )
        vlm = rebuild({**made.model, "attention": model["attention"]})
        load_stored(vlm, load_file(base / manifest.WEIGHTS), base)
    else:
        vlm, _ = load_vlm(str(base), model["max_tokens"], model["attention"])
    lora.inject(vlm, lora.from_description(model["lora"]), seed)
    vlm.from_base = frozenset(name for name in vlm.state_dict() if not lora.is_adapter(name))
    return vlm


def load_checkpoint(
    folder: Path, description: Manifest, base: str = "", weights: str = "raw"
) -> tuple[VlmModel, ChatEncoder]:
    """The model of a complete checkpoint and its encoder, on the CPU in fp32, in eval mode.

    base: where the weights lie that its adapters belong to, if not where they lay when it was trained. weights: one of
    manifest.WHICH_WEIGHTS. Raises UserError for a checkpoint of a policy, a base that is not there or another, and
    weights that do not fit.
    """
    if description.learner != "vlm":
        raise UserError(f"{folder} is a policy with actions, not a model that writes; give another checkpoint.")
    below = Base.from_dict(description.base).find(base, "--base") if description.base else None
    vlm = rebuild_adapted(description.model, below, 0) if below else rebuild(description.model)
    load_stored(vlm, load_file(folder / manifest.WEIGHTS), folder, vlm.from_base)
    if weights == "ema":
        load_average(vlm, folder, description)
    return vlm.eval(), ChatEncoder.load(folder / manifest.TOKENIZER, description.text["max_tokens"])
