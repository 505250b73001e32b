"""Adapters in a run, whatever its learner: the weights they belong to, what checkpoints hold, what is held in bf16."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from la4vla import manifest
from la4vla.config import TrainConfig
from la4vla.manifest import Checkpoint
from la4vla.model.base import Base
from la4vla.model.freeze import group_parameters
from la4vla.train.dist import World, on_main
from la4vla.train.resume import Resume
from la4vla.types import UserError

SETTING = "model.base"
SHAPING = ("rank", "alpha", "targets")  # settings of adapters without which their weights mean something else


@dataclass(frozen=True)
class Adapted:
    """The base of a run's adapters.

    base       what identifies it
    folder     where it lies, its sums compared
    inherited  names of the weights that the checkpoint holds which the run goes on from; empty for fresh adapters
    """

    base: Base
    folder: Path
    inherited: frozenset[str]


def find_base(config: TrainConfig, resume: Resume, world: World) -> Adapted | None:
    """None for a run without adapters. Collective: rank 0 reads the files. Raises UserError (on all ranks) for a base
    that is not there or not the one that a checkpoint's adapters belong to."""
    source = resume.checkpoint
    if not config.model.lora.rank:
        if source is not None and source.manifest.base:
            raise UserError(
                f"{source.folder} holds adapters and model.lora.rank is 0; set model.lora as it was trained, or start "
                f"from merged weights: la4vla export {source.folder} OUT."
            )
        return None
    return on_main(world, lambda: _find(config, source))


def held(module: Any, config: TrainConfig, adapted: Adapted | None) -> tuple[str, ...]:
    """Names in the module's state dict that its checkpoints hold: all of them, or with adapters what some stage trains
    and what the base does not give."""
    names = tuple(module.state_dict())
    if adapted is None:
        return names
    groups = {group for stage in config.stages.values() for group in stage.train}
    trained = {name for group, named in group_parameters(module).items() if group in groups for name in named}
    return tuple(name for name in names if name not in module.from_base or name in trained | adapted.inherited)


def hold_frozen_in_bf16(module: torch.nn.Module, held: Collection[str]) -> None:
    """What neither trains nor is stored, in place."""
    kept = set(held)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad and name not in kept:
            parameter.data = parameter.data.to(torch.bfloat16)


def _find(config: TrainConfig, source: Checkpoint | None) -> Adapted:
    if source is None:
        base = Base.identify(config.model.weights)
        return Adapted(base, base.find("", SETTING), frozenset())
    written = source.manifest
    if not written.base:
        base = Base(str(source.folder), {manifest.WEIGHTS: written.weights_sha256})
        return Adapted(base, source.folder, frozenset())
    now = asdict(config.model.lora)
    for key in SHAPING:
        if now[key] != written.model["lora"][key]:
            raise UserError(
                f"{source.folder} holds adapters with model.lora.{key}={written.model['lora'][key]}, not {now[key]}; "
                "set it so, or start from merged weights (la4vla export)."
            )
    base = Base.from_dict(written.base)
    with safe_open(source.folder / manifest.WEIGHTS, framework="pt") as file:
        names = frozenset(file.keys())
    return Adapted(base, base.find(config.model.base, SETTING), names)
