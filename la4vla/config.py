"""Every knob, once: the schema, its defaults, how YAML and the command line change it, and the cross-field checks.

    python -m la4vla.config configs/tiny/mixpt.yaml stages.pretrain.steps=100     prints the resolved config

Order of precedence: the defaults below < the file named by the YAML's `base:` < the YAML < `key=value` arguments.
A YAML holds deltas only. Its `schema:` says which dataclass it fills (`train`, the default, or `construct`).
An unknown key is an error that names the nearest one. `validate` runs before anything distributed starts.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from la4vla.types import KINDS, UserError, exit_status

MODULE_GROUPS = ("vision", "projector", "embeddings", "llm", "head")
"""What a stage can train; together they hold every parameter of the policy (model/freeze.py maps names to them)."""


@dataclass
class RunConfig:
    dir: str = MISSING  # everything the run writes goes here
    seed: int = 0
    resume: str = "auto"  # auto: continue from the newest complete checkpoint in `dir`; never: an old one is an error
    init_from: str = ""  # checkpoint or run folder whose weights and statistics start this run, at step 0


@dataclass
class ModelConfig:
    preset: str = "tiny"  # sizes: a name in model/presets.py (tiny, la4vla_1b)
    weights: str = ""  # pretrained InternVL in the native `-hf` layout, local folder or hub id; empty: random
    tokenizer: str = ""  # folder or hub id with a tokenizer.json; empty: beside `weights`, or the preset's own
    readout: str = "per_token"  # per_token | flatten (the released head's 896-d bottleneck)
    attention: str = "sdpa"  # sdpa | eager | flash_attention_2; an absent backend is an error
    dropout: float = 0.2  # inside the head's attention (FACTS 1.7)


@dataclass
class FlowConfig:
    noise: str = "uniform"  # uniform on [-1, 1] (FACTS 4.2) | normal
    time_alpha: float = 2.0  # flow time ~ Beta(alpha, beta) on (0, 1), fp32, continuous
    time_beta: float = 2.0
    steps: int = 10  # Euler steps of the sampler, t = i / steps from 0


@dataclass
class SourceConfig:
    path: str = MISSING  # folder with index.json and tars: local path, http(s) URL or `pipe:cat /data/{}`
    kind: str = MISSING  # la | vla; a folder with images may serve as la, its images are then never read
    views: list[str] = field(default_factory=list)  # views a vla source shows, in slot order; empty: all of the index


@dataclass
class DataConfig:
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    streams: int = 32  # logical streams a source is cut into; the number of ranks must divide it
    shuffle_bytes: int = 64 * 2**20  # per stream: shards read together and shuffled sample by sample
    decode_threads: int = 4  # per rank
    read_ahead: int = 4  # steps the loader works ahead
    action: str = "recorded"  # recorded | delta_to_state (each action minus the state of its own frame, wrap-safe)
    normalization: str = "q01_q99"  # q01_q99 | min_max | mean_std
    stats_source: str = ""  # source whose stats.json normalises; empty: init_from's, else the first one in use
    augment: float = 0.0  # probability that a training image is cropped, turned and jittered (FACTS 1.7)
    max_bad_samples: int = 0  # unreadable images tolerated a rank and start (logged and masked) before the run stops


@dataclass
class StageConfig:
    mixture: dict[str, float] = field(default_factory=dict)  # source -> share, any sum; 0 takes out a source of `base:`
    steps: int = MISSING
    global_batch: int = 128  # samples an optimizer step, over all ranks; a multiple of data.streams
    micro_batch: int = 16  # samples that go through the model at once on one rank; changes memory, not results
    train: list[str] = field(default_factory=lambda: ["llm", "head"])  # module groups; all others are frozen
    lr: float = 1e-5
    warmup_steps: int = 1000  # linear from 0, then cosine to 0 at `steps`
    weight_decay: float = 1e-3  # not on biases, norms and other 1-d tensors
    loss_weights: dict[str, float] = field(default_factory=lambda: {kind: 1.0 for kind in KINDS})


@dataclass
class OptimConfig:
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0


@dataclass
class EngineConfig:
    name: str = "plain"  # plain: one process or DDP | deepspeed
    zero_stage: int = 2  # deepspeed only, 0-3
    precision: str = "fp32"  # fp32 | bf16 (fp32 master weights, fp32 loss, noise and time)
    gradient_checkpointing: bool = False
    max_skipped_steps: int = 5  # consecutive non-finite steps (skipped on all ranks together) before the run stops


@dataclass
class CheckpointConfig:
    every_steps: int = 1000
    keep_last: int = 2
    keep_every: int = 0  # additionally keep every checkpoint whose step is a multiple of this; 0: none


@dataclass
class LogConfig:
    every_steps: int = 10
    tensorboard: bool = False
    wandb_project: str = ""  # empty: off


@dataclass
class TrainConfig:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)  # run in the order of the file
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass
class RecordConfig:
    """Demonstrations from the MetaWorld scripted experts (construct/episodes.py)."""

    tasks: list[str] = field(default_factory=list)  # env names such as reach-v3
    episodes: int = 25  # successful demonstrations kept a task
    first_episode: int = 1000  # initial states `first_episode`, +1, ...: apart from the evaluation's 0..49
    view: str = "corner4"
    image_size: int = 112
    frame_stride: int = 2  # every n-th frame is rendered and stored
    fast: bool = False  # draw without shadows, reflections and anti-aliasing; evaluate with the same setting
    action_noise: float = 0.1  # std of Gaussian noise on the executed translation command, for coverage
    seed: int = 0
    processes: int = 2


@dataclass
class KeyframeConfig:
    """Keyframe detection of FACTS 1.3.1; the paper lost its numbers, so these are our defaults."""

    smooth_window: int = 11  # frames, Savitzky-Golay; shortened to an odd number <= T for short episodes
    smooth_order: int = 3
    rotation_weight: float = 0.5  # weight of a rotation dim in the motion signal, a translation dim has 1
    scale_floor: float = 0.05  # a dim is scaled by at least this share of the largest of its kind (no amplified noise)
    threshold: float = 0.5  # static below this fraction of the episode's mean motion
    static_window: int = 5  # frames
    static_share: float = 0.8  # of the window's frames that must be below the threshold
    gripper_threshold: float = 0.5  # of the min-max normalised gripper channel
    gripper_window: int = 5  # frames on each side
    gripper_min_range: float = 0.15  # of the open-closed span; an episode whose gripper moves less has no events
    min_event_distance: int = 10  # frames


@dataclass
class ProposeConfig:
    """The kinematic labeller (construct/propose.py); no paper has numbers for it, so these are our defaults."""

    min_clip_frames: int = 5  # shorter segments join the neighbour that moves most alike (FACTS 1.3.4)
    bend_tolerance: float = 0.02  # m the path may leave the straight line of one segment
    min_move: float = 0.015  # m; a segment that moves and turns less is a wait and makes no clip
    slight_move: float = 0.04  # m; moves shorter than this are called slight
    second_axis: float = 0.5  # an axis is named if it moves at least this fraction of the dominant one
    min_turn: float = 0.3  # rad; a segment is a rotation if it turns more than this
    turn_arm: float = 0.15  # m; ... and this times the turn in rad exceeds the distance moved


@dataclass
class ConstructConfig:
    """`la4vla construct`: demonstrations -> LA clips, their twin with images, and whole-task clips."""

    episodes_dir: str = MISSING  # recorded episodes
    out_dir: str = MISSING  # gets la/, vla/ and task/ shard folders
    record: RecordConfig = field(default_factory=RecordConfig)
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    propose: ProposeConfig = field(default_factory=ProposeConfig)
    shards: int = 32  # tars a folder: at least data.streams
    jpeg_quality: int = 95


INTERVALS = {
    **dict.fromkeys(("dropout", "beta1", "beta2"), "[0, 1)"),
    **dict.fromkeys(("shuffle_bytes", "max_bad_samples", "max_skipped_steps", "keep_every"), "[0, inf)"),
    **dict.fromkeys(("lr", "warmup_steps", "weight_decay"), "[0, inf)"),
    **dict.fromkeys(("time_alpha", "time_beta", "eps"), "(0, inf)"),
    **dict.fromkeys(("streams", "decode_threads", "read_ahead", "every_steps", "keep_last"), "[1, inf)"),
    **dict.fromkeys(("steps", "global_batch", "micro_batch"), "[1, inf)"),
    **{"augment": "[0, 1]", "clip_norm": "(0, inf]"},
}
"""Where the numbers of a run must lie, by the field's name; a square end belongs to the interval."""
SCHEMAS: dict[str, type] = {"train": TrainConfig, "construct": ConstructConfig}


def load(path: str | Path, overrides: Sequence[str] = (), schema: type | None = None) -> Any:
    """The config a YAML file describes, as an instance of its schema's dataclass, validated.

    schema: the dataclass to fill; None: the one of SCHEMAS that the file names.
    Raises UserError for an unknown key, a value of the wrong type, a missing value or settings that contradict.
    """
    layers = _layers(Path(path))
    name = next((layer.schema for layer in reversed(layers) if "schema" in layer), "train")
    if schema is None and str(name) not in SCHEMAS:
        raise UserError(f"{path}: schema `{name}` does not exist; use one of {', '.join(SCHEMAS)}.")
    merged: Any = OmegaConf.structured(schema or SCHEMAS[name])
    try:
        for layer in layers:
            merged = OmegaConf.merge(merged, {key: layer[key] for key in layer if key not in ("schema", "base")})
        for override in overrides:
            merged = _overridden(merged, override)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{path}: `{missing[0]}` has no value; set it in the file or as key=value.")
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise UserError(f"{path}: {_unknown_key(error)}") from error
    except OmegaConfBaseException as error:
        where = f"`{error.full_key}`: " if error.full_key else ""
        raise UserError(f"{path}: {where}{str(error).splitlines()[0]}") from error
    except TypeError as error:  # OmegaConf's own complaint about a list where a mapping belongs, or the reverse
        raise UserError(f"{path}: a list stands where keys and values belong, or the reverse ({error}).") from error
    if isinstance(config, TrainConfig):
        validate(config)
        for stage in config.stages.values():
            stage.mixture = {source: share for source, share in stage.mixture.items() if share}
    return config


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[DictConfig]:
    """The YAML and the files its `base:` leads to, farthest first. above: the files that led here."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file; look into configs/.")
    if path.resolve() in above:
        raise UserError(f"{path}: its `base:` leads back to itself; name another file there.")
    try:
        layer = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OSError) as error:  # OSError: OmegaConf's word for a lone number
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path}: a config is a mapping of keys to values.")
    return [*(_layers(path.parent / str(layer.base), (*above, path.resolve())) if "base" in layer else []), layer]


def _overridden(config: Any, override: str) -> Any:
    """`config` with a key=value of the command line merged into it; `key=` is the empty string."""
    if "=" not in override:
        raise UserError(f"`{override}` is not of the form key=value.")
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist([override + '""' * override.endswith("=")]))
    except YAMLError as error:
        raise UserError(f"`{override}`: not valid YAML ({' '.join(str(error).split())}); close or quote it.") from error


def _unknown_key(error: ConfigKeyError) -> str:
    known = [item.name for item in fields(error.object_type)] if is_dataclass(error.object_type) else []
    nearest = difflib.get_close_matches(str(error.key), known, n=1, cutoff=0.0)
    hint = f"; the nearest key is `{nearest[0]}`" if nearest else ""
    return f"unknown key `{error.full_key}`{hint}."


def validate(config: TrainConfig) -> None:
    """The checks that need more than one field, but not the data or the world size. Raises UserError."""
    _choice("run.resume", config.run.resume, ("auto", "never"))
    _choice("model.readout", config.model.readout, ("per_token", "flatten"))
    _choice("model.attention", config.model.attention, ("sdpa", "eager", "flash_attention_2"))
    _choice("flow.noise", config.flow.noise, ("uniform", "normal"))
    _choice("data.action", config.data.action, ("recorded", "delta_to_state"))
    _choice("data.normalization", config.data.normalization, ("q01_q99", "min_max", "mean_std"))
    _choice("engine.name", config.engine.name, ("plain", "deepspeed"))
    _choice("engine.precision", config.engine.precision, ("fp32", "bf16"))
    _choice("engine.zero_stage", config.engine.zero_stage, (0, 1, 2, 3))
    for group in ("model", "flow", "data", "optim", "engine", "checkpoint", "log"):
        _within(f"{group}.", asdict(config)[group], INTERVALS)
    if config.data.stats_source:
        _choice("data.stats_source", config.data.stats_source, tuple(config.data.sources))
    for name, source in config.data.sources.items():
        _choice(f"data.sources.{name}.kind", source.kind, KINDS)
    if not config.stages:
        raise UserError("`stages` is empty; a run needs at least one stage with a mixture and steps.")
    for name, stage in config.stages.items():
        _validate_stage(name, stage, config)


def _validate_stage(name: str, stage: StageConfig, config: TrainConfig) -> None:
    for source in stage.mixture:
        _choice(f"stages.{name}.mixture", source, tuple(config.data.sources))
    for group in stage.train:
        _choice(f"stages.{name}.train", group, MODULE_GROUPS)
    for kind in stage.loss_weights:
        _choice(f"stages.{name}.loss_weights", kind, KINDS)
    _within(f"stages.{name}.", asdict(stage), INTERVALS)
    _within(f"stages.{name}.mixture.", stage.mixture, dict.fromkeys(stage.mixture, "[0, inf)"))
    _within(f"stages.{name}.loss_weights.", stage.loss_weights, dict.fromkeys(KINDS, "[0, inf)"))
    used = [source for source, share in stage.mixture.items() if share]
    if not used or not stage.train:
        raise UserError(f"stages.{name} needs a mixture with a share above 0 and module groups to `train`.")
    if stage.global_batch % config.data.streams:
        raise UserError(
            f"stages.{name}.global_batch is {stage.global_batch}; it must be a multiple of data.streams "
            f"({config.data.streams}), the unit of exact mixing."
        )
    kinds = {config.data.sources[source].kind for source in used}
    if "vla" not in kinds and {"vision", "projector"} & set(stage.train):
        raise UserError(f"stages.{name} trains vision without a vla source; take vision and projector out of `train`.")


def _within(prefix: str, values: Mapping[str, Any], intervals: Mapping[str, str]) -> None:
    """Those of `values` that have an interval must lie in it; NaN lies nowhere."""
    for key in (key for key in values if key in intervals):
        value, interval = values[key], intervals[key]
        low, high = map(float, interval[1:-1].split(","))
        if not (low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")):
            raise UserError(f"{prefix}{key} is {value}; it must be in {interval}.")


def _choice(key: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        nearest = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1, cutoff=0.0)
        hint = f"; the nearest is `{nearest[0]}`" if nearest else ""
        raise UserError(f"{key}: `{value}` is not one of {', '.join(map(str, allowed)) or 'none at all'}{hint}.")


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print("usage: python -m la4vla.config CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    print(to_yaml(load(arguments[0], arguments[1:])), end="")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
