"""Low-rank adapters (LoRA, by peft) on the linear layers of named groups: put in, found, merged.

A layer `x.q_proj` becomes `x.q_proj.base_layer` with `x.q_proj.lora_A.default` and `x.q_proj.lora_B.default` beside it;
the module keeps its class. Adapters are fp32 whatever they adapt, and begin as nothing: A is drawn by its name, B is 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from la4vla.config import LoraConfig
from la4vla.rng import RngUse, torch_generator
from la4vla.types import UserError

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

MARK = ".lora_"  # in the name of every parameter of an adapter, and in no other
LLM = re.compile(r"(.*\.)?(q_proj|k_proj|v_proj|o_proj|up_proj|gate_proj|down_proj)")
"""Of the language model; its other linear layers, if a family has some, are left alone."""


def inject(module: Any, lora: LoraConfig, seed: int) -> None:
    """Puts adapters into a module with `groups()` in place. Raises UserError for a target without a linear layer."""
    places = {id(part): name for name, part in module.named_modules()}
    groups: Mapping[str, tuple[nn.Module, ...]] = module.groups()
    names: list[str] = []
    for target in lora.targets:
        layers = [part for root in groups[target] for part in root.modules() if isinstance(part, nn.Linear)]
        found = [places[id(part)] for part in layers]
        if target == "llm":
            found = [name for name in found if LLM.fullmatch(name)]
        if not found:
            raise UserError(f"model.lora.targets: {target} has no linear layer in this model; take it out.")
        names += found
    import peft  # only here: it takes half a second, and most runs have no adapters

    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] (a float serves as well)
        lora_dropout=lora.dropout,
        target_modules="|".join(map(re.escape, names)),
    )
    trains = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    peft.inject_adapter_in_model(settings, module)  # sets requires_grad everywhere
    for name, parameter in module.named_parameters():
        if not is_adapter(name):
            parameter.requires_grad_(trains[name.replace(".base_layer.", ".")])
    _draw(module, seed)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return MARK in name


def adapted(module: nn.Module) -> dict[str, LoraLayer]:
    """Layers with adapters by their place in the module."""
    if not any(is_adapter(name) for name, _ in module.named_parameters()):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)}


def merge(module: nn.Module) -> None:
    """Adds every adapter to the weight that it adapts, in fp32, and takes it out: names are as before `inject`."""
    for name, layer in adapted(module).items():
        base = layer.get_base_layer().float()
        layer.merge()  # pyright: ignore[reportCallIssue] (each kind of layer has its own)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, base)


def description(lora: LoraConfig) -> dict[str, Any]:
    """What rebuilds the adapters, as JSON; empty where there are none."""
    return asdict(lora) if lora.rank else {}


def from_description(raw: Mapping[str, Any]) -> LoraConfig:
    return LoraConfig(**raw) if raw else LoraConfig()


@torch.no_grad()
def _draw(module: nn.Module, seed: int) -> None:
    """peft's own first values (uniform by He's rule for A, 0 for B), drawn from RngUse.INIT by name."""
    for name, parameter in module.named_parameters():
        if is_adapter(name):
            parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(parameter, math.sqrt(5), generator=torch_generator(seed, RngUse.INIT, name))
