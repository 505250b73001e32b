"""What `schema: train` holds, with its defaults, and the checks that need more than one field."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from omegaconf import MISSING

from la4vla.config.checks import choice, within
from la4vla.config.compat import CompatConfig, validate_compat
from la4vla.config.finetuning import SCHEDULES, SIZES, InitPartsConfig, validate_beginning, validate_rates
from la4vla.config.grounding import GROUNDING_GROUPS, GroundingConfig, validate_contrast, validate_grounding
from la4vla.levels import LEVELS, levels_of
from la4vla.types import SOURCE_KINDS, UserError

MODULE_GROUPS = ("vision", "projector", "embeddings", "llm", "head")
"""Parts of a model that a stage can train (model/freeze.py maps names to them)."""

PREFERENCE = "preference"
"""Kind of the pairs that `la4vla gpla` makes out of a folder of clips."""

ACTIONS = ("recorded", "delta_to_state", "delta_to_first_state", "delta_to_previous_action")

LORA = "lora"
LORA_TARGETS = ("llm", "vision", "projector", "head")
LANGUAGE_HEAD = "language_head"
TRAIN_GROUPS = (*MODULE_GROUPS, LANGUAGE_HEAD, LORA)
"""What a stage's `train` may name: `language_head` where a policy has `text` sources, `lora` where model.lora has a
rank. Together they hold every parameter."""


@dataclass
class RunConfig:
    dir: str = MISSING  # everything the run writes goes here
    seed: int = 0
    resume: str = "auto"  # auto: continue from the newest complete checkpoint in `dir`; never: an old one is an error
    init_from: str = ""  # checkpoint or run folder whose weights and statistics start this run, at step 0
    init_parts: InitPartsConfig = field(default_factory=InitPartsConfig)  # only some of these weights; empty: all


@dataclass
class LoraConfig:
    rank: int = 0  # of the adapters; 0: none
    alpha: float = 32.0  # an adapter's output counts alpha / rank times
    dropout: float = 0.0  # on an adapter's input
    targets: list[str] = field(default_factory=lambda: ["llm"])  # of LORA_TARGETS: groups whose linear layers get one


@dataclass
class ModelConfig:
    preset: str = "tiny"  # sizes: a name in model/presets.py (tiny, small, la4vla_1b); learner vlm: tiny_vlm
    horizon: int = 0  # steps of a policy's chunk; 0: the preset's own
    llm_layers: int = 0  # of a policy's language model, from the bottom; 0: the preset's own
    state_dim: int = 0  # numbers of a policy's state, at least as many as the robot's; 0: the preset's own
    action_dim: int = 0  # the same of one action
    weights: str = ""  # pretrained InternVL (`-hf` layout), for a vlm also Gemma 3 or Qwen: folder or hub id
    tokenizer: str = ""  # folder or hub id with a tokenizer.json; empty: beside `weights`, or the preset's own
    readout: str = "per_token"  # per_token | flatten (the released head's 896-d bottleneck)
    attention: str = "sdpa"  # sdpa | eager | flash_attention_2; an absent backend is an error
    embodiments: str = "shared"  # shared | separate: state and action projections of its own for every robot
    dropout: float = 0.2  # inside the head's attention (FACTS 1.7)
    max_tokens: int = 1024  # longest row of a model that writes, with model.weights; a preset has its own
    lora: LoraConfig = field(default_factory=LoraConfig)
    compat: CompatConfig = field(default_factory=CompatConfig)  # of released checkpoints (docs/released_checkpoints.md)
    base: str = ""  # where the weights lie that a checkpoint's adapters belong to; empty: where the checkpoint says


@dataclass
class FlowConfig:
    noise: str = "uniform"  # uniform on [-1, 1] (FACTS 4.2) | normal
    time_alpha: float = 2.0  # flow time ~ Beta(alpha, beta) on (0, 1), fp32, continuous
    time_beta: float = 2.0
    steps: int = 10  # Euler steps of the sampler, t = i / steps from 0


@dataclass
class SourceConfig:
    path: str = MISSING  # folder with index.json and tars: local path, http(s) URL or `pipe:cat /data/{}`
    kind: str = MISSING  # la | vla | la_leaky (docs/choices.md) | text (docs/texts.md) | contrast (docs/grounding.md)
    views: list[str] = field(default_factory=list)  # views a vla or la_leaky source shows, in slot order; empty: all
    action: str = ""  # as data.action, for the robot of this source; empty: data.action
    levels: str = "low"  # what its samples are told: low (the clip's instruction) | both (its task, then that)


@dataclass
class DataConfig:
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    streams: int = 32  # logical streams a source is cut into; the number of ranks must divide it
    shuffle_bytes: int = 64 * 2**20  # per stream: shards read together and shuffled sample by sample
    decode_threads: int = 4  # per rank
    read_ahead: int = 4  # steps the loader works ahead
    action: str = (
        "recorded"  # recorded | delta_to_state | delta_to_first_state | delta_to_previous_action (docs/data.md)
    )
    normalization: str = "q01_q99"  # q01_q99 | min_max | mean_std
    stats_source: str = ""  # source whose stats.json normalises; empty: init_from's, else the first one in use
    augment: float = 0.0  # probability that a training sample is augmented, as `augmentation` says
    augmentation: str = "release"  # crop, turn and colours of images (FACTS 1.7) | gpla: its Table 3, actions too
    contrast_group: int = 256  # learner grounding: pairs told apart at once, with no sentence twice; shapes the loss
    max_bad_samples: int = 0  # samples with bad images or numbers masked (and logged) a rank and start, before it stops


@dataclass
class PreferenceConfig:
    """SimPO. The paper gives neither number; these are within SimPO's own advice (FACTS 2.1)."""

    beta: float = 2.0  # of the difference of mean log-probabilities a token
    gamma: float = 1.0  # that beta times this difference is asked to exceed


@dataclass
class StageConfig:
    mixture: dict[str, float] = field(default_factory=dict)  # source -> share, any sum; 0 takes out a source of `base:`
    mixture_end: dict[str, float] = field(default_factory=dict)  # at the last step, moved to evenly; empty: as mixture
    steps: int = MISSING
    global_batch: int = 128  # samples an optimizer step, over all ranks; a multiple of data.streams
    micro_batch: int = 16  # samples at once on one rank: memory, not results (but for which values dropout leaves out)
    train: list[str] = field(default_factory=lambda: ["llm", "head"])  # module groups; all others are frozen
    insulate: bool = False  # stop the actions' loss before the language model, which then learns from `text` alone
    lr: float = 1e-5
    lr_groups: dict[str, float] = field(default_factory=dict)  # group of `train` -> its lr, in place of `lr`
    warmup_steps: int = 1000  # linear from 0, then down at `steps` as `schedule` says
    schedule: str = "cosine"  # cosine | linear | constant (as it is) | wsd (as it is, then down on a straight line)
    decay_share: float = 0.1  # wsd: last part of `steps`, in which the rate goes down
    min_lr_ratio: float = 0.0  # where the rate goes down to, a share of the group's lr
    weight_decay: float = 1e-3  # not on biases, norms and other 1-d tensors
    loss_weights: dict[str, float] = field(default_factory=lambda: {kind: 1.0 for kind in SOURCE_KINDS})


@dataclass
class OptimConfig:
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    ema_decay: float = 0.0  # of a moving average of the weights (docs/training_finetuning.md), such as 0.999; 0: none


@dataclass
class EngineConfig:
    name: str = "plain"  # plain: one process or DDP | deepspeed
    zero_stage: int = 2  # deepspeed only, 0-3
    precision: str = "fp32"  # fp32 | bf16 (fp32 master weights, fp32 loss, noise and time)
    compute: str = "autocast"  # autocast: weights are held in fp32 | frozen_bf16: what adapters belong to in bf16
    gradient_checkpointing: bool = False
    max_skipped_steps: int = 5  # consecutive non-finite steps (skipped on all ranks together) before the run stops
    timeout_s: float = 1800.0  # what a rank waits for another; longer than rank 0 takes to write a checkpoint


@dataclass
class CheckpointConfig:
    every_steps: int = 1000
    keep_last: int = 2
    keep_every: int = 0  # additionally keep those whose step is a multiple of this, a multiple of every_steps; 0: none


@dataclass
class ValidateConfig:
    cases: str = ""  # held-out cases, made by `la4vla probe cases`; empty: off
    shards: str = ""  # where the cases' shard folder lies; empty: where they were drawn
    texts: str = ""  # held-out conversations, a folder of kind text; empty: off
    text_rows: int = 128  # of them, the first ones
    pairs: str = ""  # held-out clips of learner grounding, a folder of clips; empty: off
    pair_groups: int = 8  # groups of them, as large as data.contrast_group or as their sentences allow
    patience: int = 0  # measurements in a row without a lower loss of `pairs` after which the run ends; 0: never
    every_steps: int = 500  # a multiple of log.every_steps


@dataclass
class LogConfig:
    every_steps: int = 10
    tensorboard: bool = False
    wandb_project: str = ""  # empty: off


@dataclass
class TrainConfig:
    learner: str = "policy"  # policy | vlm (a model that writes: text sources) | grounding (contrast sources)
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)  # run in the order of the file
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)


def smallest_micro_batch(config: TrainConfig) -> int:
    """Rows that fit at once in every stage; what is measured besides training takes so many."""
    return min(stage.micro_batch for stage in config.stages.values())


def mixing_unit(config: TrainConfig) -> int:
    """Samples of one source that a step takes together."""
    return config.data.contrast_group if config.learner == "grounding" else config.data.streams


INTERVALS = {
    **dict.fromkeys(("dropout", "beta1", "beta2", "ema_decay"), "[0, 1)"),
    **dict.fromkeys(("shuffle_bytes", "max_bad_samples", "keep_every", "seed", "rank"), "[0, inf)"),
    **dict.fromkeys(SIZES, "[0, inf)"),
    **dict.fromkeys(("lr", "warmup_steps", "weight_decay", "gamma"), "[0, inf)"),
    **dict.fromkeys(("time_alpha", "time_beta", "eps", "alpha", "beta"), "(0, inf)"),
    **dict.fromkeys(("streams", "decode_threads", "read_ahead", "every_steps", "keep_last"), "[1, inf)"),
    **dict.fromkeys(("steps", "global_batch", "micro_batch", "max_skipped_steps"), "[1, inf)"),
    **dict.fromkeys(("text_rows", "max_tokens", "dim", "pair_groups"), "[1, inf)"),
    **dict.fromkeys(("diversity", "patience"), "[0, inf)"),
    "contrast_group": "[2, inf)",
    **{
        "augment": "[0, 1]",
        "min_lr_ratio": "[0, 1]",
        "decay_share": "(0, 1]",
        "clip_norm": "(0, inf]",
        "timeout_s": "[1, inf)",
    },
}
"""Where the numbers of a run must lie, by the field's name; a square end belongs to the interval."""


def validate(config: TrainConfig) -> None:
    """The checks that need more than one field, but not the data or the world size. Raises UserError."""
    choice("learner", config.learner, ("policy", "vlm", "grounding"))
    choice("run.resume", config.run.resume, ("auto", "never"))
    choice("model.readout", config.model.readout, ("per_token", "flatten"))
    choice("model.embodiments", config.model.embodiments, ("shared", "separate"))
    if config.model.embodiments == "separate" and config.model.readout == "flatten":
        raise UserError("model.embodiments=separate needs model.readout=per_token; the flatten readout is one for all.")
    choice("model.attention", config.model.attention, ("sdpa", "eager", "flash_attention_2"))
    choice("flow.noise", config.flow.noise, ("uniform", "normal"))
    choice("data.action", config.data.action, ACTIONS)
    choice("data.augmentation", config.data.augmentation, ("release", "gpla"))
    if config.data.augmentation == "gpla" and not config.data.augment:
        raise UserError("data.augmentation is gpla and data.augment is 0, so nothing is augmented; set data.augment=1.")
    choice("data.normalization", config.data.normalization, ("q01_q99", "min_max", "mean_std"))
    choice("engine.name", config.engine.name, ("plain", "deepspeed"))
    choice("engine.precision", config.engine.precision, ("fp32", "bf16"))
    choice("engine.zero_stage", config.engine.zero_stage, (0, 1, 2, 3))
    for group in (
        *("run", "model", "grounding", "flow", "data", "optim", "engine", "checkpoint", "log", "validate"),
        "preference",
    ):
        within(f"{group}.", asdict(config)[group], INTERVALS)
    validate_beginning(config)
    validate_compat(config.model.compat, config.model.attention, config.learner)
    _validate_lora(config)
    checked = config.validate.cases or config.validate.texts or config.validate.pairs
    if checked and config.validate.every_steps % config.log.every_steps:
        raise UserError(
            f"validate.every_steps is {config.validate.every_steps}; it must be a multiple of log.every_steps "
            f"({config.log.every_steps}), where its numbers are written."
        )
    validate_grounding(config)
    if config.checkpoint.keep_every % config.checkpoint.every_steps:
        raise UserError(
            f"checkpoint.keep_every is {config.checkpoint.keep_every}; it must be a multiple of checkpoint.every_steps "
            f"({config.checkpoint.every_steps}), or hardly a checkpoint would be one of those to keep."
        )
    if config.model.attention == "flash_attention_2" and config.engine.precision != "bf16":
        raise UserError("model.attention: flash_attention_2 computes in bf16 only; set engine.precision=bf16, or sdpa.")
    if config.validate.cases and config.model.attention == "flash_attention_2":
        raise UserError(
            "validate.cases samples in fp32, which flash_attention_2 cannot; set model.attention=sdpa or leave "
            "validate.cases out."
        )
    if config.data.stats_source:
        choice("data.stats_source", config.data.stats_source, tuple(config.data.sources))
    for name, source in config.data.sources.items():
        choice(f"data.sources.{name}.kind", source.kind, (*SOURCE_KINDS, PREFERENCE))
        choice(f"data.sources.{name}.levels", source.levels, LEVELS)
        choice(f"data.sources.{name}.action", source.action, ("", *ACTIONS))
        if source.kind == "text" and source.levels == "both":
            raise UserError(
                f"data.sources.{name}.levels is both, and a conversation is told as it was written; leave it out."
            )
    if not config.stages:
        raise UserError("`stages` is empty; a run needs at least one stage with a mixture and steps.")
    for name, stage in config.stages.items():
        _validate_stage(name, stage, config)
    levels_of(asdict(config))


def _validate_lora(config: TrainConfig) -> None:
    lora = config.model.lora
    within("model.lora.", asdict(lora), INTERVALS)
    for target in lora.targets:
        choice("model.lora.targets", target, LORA_TARGETS)
    choice("engine.compute", config.engine.compute, ("autocast", "frozen_bf16"))
    training = [name for name, stage in config.stages.items() if LORA in stage.train]
    if training and not lora.rank:
        raise UserError(f"stages.{training[0]} trains lora and model.lora.rank is 0; set a rank, such as 16.")
    if lora.rank and not (training and lora.targets):
        raise UserError(
            "model.lora.rank is set and no adapter trains; add lora to a stage's `train` and a group to "
            "model.lora.targets, or set model.lora.rank=0."
        )
    if lora.rank and "head" in lora.targets and config.model.embodiments == "separate":
        raise UserError(
            "model.lora.targets has head, and with model.embodiments=separate some of its projections are no linear "
            "layers that adapters fit; train head whole (stages.NAME.train), or set model.embodiments=shared."
        )
    if lora.rank and not (config.model.weights or config.run.init_from):
        raise UserError(
            "model.lora adapts weights that a folder holds, and this run begins with random ones; set model.weights or "
            "run.init_from."
        )
    if config.learner == "vlm" and config.engine.name == "deepspeed" and config.engine.zero_stage == 3:
        raise UserError(
            "engine.zero_stage=3 needs every rank to use every part of the model at once, and rows without images do "
            "not use vision; set engine.zero_stage=2 for learner vlm."
        )
    if config.engine.compute == "frozen_bf16" and not (lora.rank and config.engine.precision == "bf16"):
        raise UserError(
            "engine.compute=frozen_bf16 holds the weights that adapters belong to in bf16; set model.lora.rank and "
            "engine.precision=bf16, or engine.compute=autocast."
        )


def _validate_stage(name: str, stage: StageConfig, config: TrainConfig) -> None:
    for source in stage.mixture:
        choice(f"stages.{name}.mixture", source, tuple(config.data.sources))
    for group in stage.train:
        choice(f"stages.{name}.train", group, GROUNDING_GROUPS if config.learner == "grounding" else TRAIN_GROUPS)
    for kind in stage.loss_weights:
        choice(f"stages.{name}.loss_weights", kind, (*SOURCE_KINDS, PREFERENCE))
    choice(f"stages.{name}.schedule", stage.schedule, SCHEDULES)
    validate_rates(name, stage)
    within(f"stages.{name}.", asdict(stage), INTERVALS)
    within(f"stages.{name}.mixture.", stage.mixture, dict.fromkeys(stage.mixture, "[0, inf)"))
    within(f"stages.{name}.mixture_end.", stage.mixture_end, dict.fromkeys(stage.mixture_end, "[0, inf)"))
    within(f"stages.{name}.loss_weights.", stage.loss_weights, dict.fromkeys(stage.loss_weights, "[0, inf)"))
    used = [source for source, share in stage.mixture.items() if share]
    if not used or not stage.train:
        raise UserError(f"stages.{name} needs a mixture with a share above 0 and module groups to `train`.")
    if stage.mixture_end and (set(stage.mixture_end) != set(used) or not any(stage.mixture_end.values())):
        raise UserError(
            f"stages.{name}.mixture_end needs a share for each of {', '.join(used)} and one above 0; a source that "
            "comes in later begins with a small share, such as 0.001."
        )
    if stage.global_batch % config.data.streams:
        raise UserError(
            f"stages.{name}.global_batch is {stage.global_batch}; it must be a multiple of data.streams "
            f"({config.data.streams}), the unit of exact mixing."
        )
    kinds = {config.data.sources[source].kind for source in used}
    if "contrast" in kinds and config.learner != "grounding":
        raise UserError(
            f"stages.{name} mixes contrast sources, which learner grounding alone takes; set learner=grounding, or "
            "another kind."
        )
    if config.learner == "grounding":
        validate_contrast(name, stage, kinds, config)
    elif config.learner == "vlm":
        _validate_texts(name, stage, kinds)
    else:
        _validate_kinds(name, stage, kinds, config)


def _validate_texts(name: str, stage: StageConfig, kinds: set[str]) -> None:
    """Of a model that writes."""
    if kinds not in ({"text"}, {PREFERENCE}):
        raise UserError(
            f"stages.{name} mixes {', '.join(sorted(kinds - {'text'}))} sources, and learner vlm learns conversations "
            "alone; take them out, or set learner=policy."
        )
    if LANGUAGE_HEAD in stage.train or stage.insulate:
        raise UserError(
            f"stages.{name}: language_head and insulate are the policy's; with learner=vlm its language head is `head`."
        )


def _validate_kinds(name: str, stage: StageConfig, kinds: set[str], config: TrainConfig) -> None:
    """Of a policy: what a micro-batch reaches must train, or its loss has no gradient at all."""
    if PREFERENCE in kinds:
        raise UserError(f"stages.{name} mixes preferences, which a model that writes learns; set learner=vlm.")
    adapted = set(config.model.lora.targets) if LORA in stage.train else set()
    trained = {*stage.train, *adapted}
    if kinds == {"la"} and {"vision", "projector"} & trained:
        raise UserError(f"stages.{name} trains vision without a vla source; take vision and projector out of `train`.")
    behind = {"head"} if stage.insulate else {"embeddings", "llm", "head"}
    if "la" in kinds and not behind & trained:
        raise UserError(
            f"stages.{name} trains {' and '.join(stage.train)}, which la rows never reach; take the la source out of "
            "the mixture or add head to `train`."
        )
    if kinds & {"vla", "la_leaky"} and stage.insulate and "head" not in trained:
        raise UserError(f"stages.{name} is insulated and does not train head, so its actions teach nothing; add head.")
    if "text" in kinds and trained == {"head"}:
        raise UserError(
            f"stages.{name} trains head, which conversations never reach; take the text source out of the mixture or "
            "add language_head to `train`."
        )
    if "text" not in kinds and stage.insulate and trained - {"head"}:
        raise UserError(
            f"stages.{name} is insulated and mixes no text source, so nothing teaches {', '.join(sorted(trained))} but "
            "head; add one, or train head alone."
        )
    if "la_leaky" in kinds and config.model.attention == "flash_attention_2":
        raise UserError(
            f"stages.{name} mixes a la_leaky source, whose mask flash_attention_2 cannot take; set "
            "model.attention=sdpa."
        )
