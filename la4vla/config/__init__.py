"""Every knob, once: the schemas with their defaults, how YAML and the command line change them, the cross-field checks.

    python -m la4vla.config configs/tiny/mixpt.yaml stages.pretrain.steps=100     prints the resolved config

An unknown key is an error that names the nearest one. Checks run before anything distributed starts.
"""

from la4vla.config.compat import CompatConfig
from la4vla.config.construct import (
    ConstructConfig,
    FilterConfig,
    IdleConfig,
    JudgeConfig,
    KeyframeConfig,
    ProposeConfig,
    ReadConfig,
    RecordConfig,
    ReviewConfig,
    SecondJudgeConfig,
    TextsConfig,
    VlmConfig,
)
from la4vla.config.finetuning import SIZES, InitPartsConfig, begins_in_parts
from la4vla.config.gpla import CandidatesConfig, GplaConfig, PreferConfig, TrainingStep
from la4vla.config.grounding import GROUNDING_GROUPS, GroundingConfig
from la4vla.config.hierarchical import HierarchicalConfig
from la4vla.config.load import load, overrides, to_yaml
from la4vla.config.text_policy import SamplingConfig, TextPolicyConfig
from la4vla.config.train import (
    LANGUAGE_HEAD,
    LORA,
    LORA_TARGETS,
    MODULE_GROUPS,
    PREFERENCE,
    TRAIN_GROUPS,
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    FlowConfig,
    LogConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    PreferenceConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    ValidateConfig,
    mixing_unit,
    smallest_micro_batch,
    validate,
)

__all__ = [
    "GROUNDING_GROUPS",
    "LANGUAGE_HEAD",
    "LORA",
    "LORA_TARGETS",
    "MODULE_GROUPS",
    "PREFERENCE",
    "SIZES",
    "TRAIN_GROUPS",
    "CandidatesConfig",
    "CheckpointConfig",
    "CompatConfig",
    "ConstructConfig",
    "DataConfig",
    "EngineConfig",
    "FilterConfig",
    "FlowConfig",
    "GplaConfig",
    "GroundingConfig",
    "HierarchicalConfig",
    "IdleConfig",
    "InitPartsConfig",
    "JudgeConfig",
    "KeyframeConfig",
    "LogConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "PreferConfig",
    "PreferenceConfig",
    "ProposeConfig",
    "ReadConfig",
    "RecordConfig",
    "ReviewConfig",
    "RunConfig",
    "SamplingConfig",
    "SecondJudgeConfig",
    "SourceConfig",
    "StageConfig",
    "TextPolicyConfig",
    "TextsConfig",
    "TrainConfig",
    "TrainingStep",
    "ValidateConfig",
    "VlmConfig",
    "begins_in_parts",
    "load",
    "mixing_unit",
    "overrides",
    "smallest_micro_batch",
    "to_yaml",
    "validate",
]
