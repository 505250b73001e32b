"""The engine that a config asks for."""

from __future__ import annotations

import torch
from torch import nn

from la4vla.config import TrainConfig
from la4vla.train.dist import World
from la4vla.train.engines.engine import Engine
from la4vla.train.engines.plain import PlainEngine
from la4vla.train.optim import Rules


def build(module: nn.Module, config: TrainConfig, rules: Rules, world: World) -> Engine:
    """The engine a config asks for, around a module that is loaded and frozen. Checks fp32 masters."""
    if config.engine.name == "deepspeed":
        # Imported only when asked for: it costs seconds, and a plain run must not need it.
        from la4vla.train.engines.deepspeed import DeepSpeedEngine

        engine: Engine = DeepSpeedEngine(module, config, rules, world)
    else:
        engine = PlainEngine(module, config, rules, world)
    masters = engine.masters()
    assert masters, "no trainable parameter"
    assert all(tensor.dtype == torch.float32 for tensor in masters), (
        "what trains must be fp32, its masters too; only frozen weights may be held in bf16"
    )
    return engine
