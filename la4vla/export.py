"""`la4vla export DIR OUT`: a checkpoint as one folder that stands by itself, its adapters merged in fp32.

    a model that writes        OUT is a folder for transformers: `from_pretrained` gives the same logits
    a policy                   OUT is a checkpoint in our layout with every weight in it: it is served, evaluated, and
                               taken by run.init_from
    a policy that also writes  that, and OUT/vlm, its backbone and language head for transformers

`--weights ema` takes the moving average of what trained (optim.ema_decay) in its place. No optimizer state goes along:
a run goes on from its own checkpoints.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from la4vla import manifest
from la4vla.files import sha256
from la4vla.manifest import Manifest
from la4vla.model import lora
from la4vla.model.backbone import internvl_config
from la4vla.model.base import Base, load_average, load_stored
from la4vla.model.policy import Policy, rebuild
from la4vla.types import UserError
from la4vla.vlm.load import save_vlm
from la4vla.vlm.stored import load_checkpoint

VLM = "vlm"  # of an exported policy that writes, the folder for transformers


def export(checkpoint: str | Path, out: str | Path, base: str = "", weights: str = "raw") -> str:
    """Writes `out` and says in one sentence what it is.

    checkpoint: a checkpoint, or a run (then its newest one). base: where the weights lie that its adapters belong to.
    weights: one of manifest.WHICH_WEIGHTS. Raises UserError for a folder that exists, damaged weights, and a base that
    is not there or another one.
    """
    folder, target = manifest.resolve(checkpoint), Path(out)
    if target.exists():
        raise UserError(f"{target}: exists already; remove it or choose another folder.")
    description = manifest.read(folder)
    if sha256(folder / manifest.WEIGHTS) != description.weights_sha256:
        raise UserError(f"{folder}: its weights are not those of its manifest; copy the checkpoint again.")
    write = _vlm if description.learner == "vlm" else _policy
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    what = write(folder, description, base, weights, temporary)
    temporary.rename(target)
    return f"{target}: {what}{', of the average of its weights' if weights == 'ema' else ''}"


def _vlm(folder: Path, description: Manifest, base: str, weights: str, target: Path) -> str:
    vlm, encoder = load_checkpoint(folder, description, base, weights)
    lora.merge(vlm)
    save_vlm(vlm, encoder, target)
    return f"{type(vlm.network).__name__} for transformers (from_pretrained), adapters merged"


def _policy(folder: Path, description: Manifest, base: str, weights: str, target: Path) -> str:
    below = Base.from_dict(description.base).find(base, "--base") if description.base else None
    policy = rebuild(description.model, below)
    load_stored(policy, load_file(folder / manifest.WEIGHTS), folder, policy.from_base)
    if weights == "ema":
        load_average(policy, folder, description)
    lora.merge(policy)
    save_file({name: tensor.contiguous() for name, tensor in policy.state_dict().items()}, target / manifest.WEIGHTS)
    shutil.copytree(folder / manifest.TOKENIZER, target / manifest.TOKENIZER)
    replace(
        description,
        model={**description.model, "lora": {}},
        base={},
        weights_sha256=sha256(target / manifest.WEIGHTS),
        training_sha256="",
        ema_sha256="",
    ).write(target)
    (target / manifest.COMPLETE).touch()
    whole = "a policy in our layout with every weight in it, to serve, to evaluate and for run.init_from"
    if not policy.writes:
        return f"{whole}; it has no language head, so there is nothing in it for transformers"
    _save_backbone(policy, folder / manifest.TOKENIZER, target / VLM)
    return f"{whole}; its backbone and language head for transformers are in {VLM}/"


def _save_backbone(policy: Policy, tokenizer: Path, target: Path) -> None:
    """InternVLForConditionalGeneration with as many language layers as the policy has, and the tokenizer."""
    config: Any = internvl_config(policy.size, "sdpa")
    config.text_config.pad_token_id = policy.size.pad_token_id
    with torch.device("meta"):
        network = InternVLForConditionalGeneration(config)
    inner = {f"model.{name}": tensor for name, tensor in policy.backbone.internvl.state_dict().items()}
    state = {**inner, "lm_head.weight": policy.language_head.weight.detach()}
    assert state.keys() == network.state_dict().keys()
    network.save_pretrained(str(target), state_dict=state)
    for file in tokenizer.iterdir():
        shutil.copy(file, target)
