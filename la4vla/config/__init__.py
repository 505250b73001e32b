"""Every knob, once: the schemas with their defaults, how YAML and the command line change them, the cross-field checks.

    python -m la4vla.config configs/tiny/mixpt.yaml stages.pretrain.steps=100     prints the resolved config

An unknown key is an error that names the nearest one. Checks run before anything distributed starts.
"""

from la4vla.config.construct import (
    ConstructConfig,
    FilterConfig,
    JudgeConfig,
    KeyframeConfig,
    ProposeConfig,
    ReadConfig,
    RecordConfig,
    ReviewConfig,
    TextsConfig,
    VlmConfig,
)
from la4vla.config.load import load, overrides, to_yaml
from la4vla.config.text_policy import SamplingConfig, TextPolicyConfig
from la4vla.config.train import (
    MODULE_GROUPS,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    FlowConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    validate,
)

__all__ = [
    "MODULE_GROUPS",
    "CheckpointConfig",
    "ConstructConfig",
    "DataConfig",
    "EngineConfig",
    "FilterConfig",
    "FlowConfig",
    "JudgeConfig",
    "KeyframeConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "ProposeConfig",
    "ReadConfig",
    "RecordConfig",
    "ReviewConfig",
    "RunConfig",
    "SamplingConfig",
    "SourceConfig",
    "StageConfig",
    "TextPolicyConfig",
    "TextsConfig",
    "TrainConfig",
    "VlmConfig",
    "load",
    "overrides",
    "to_yaml",
    "validate",
]
