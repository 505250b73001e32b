"""What `schema: gpla` holds (docs/gpla.md): steps, candidates, preferences, with the paper's numbers where it gives
them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from omegaconf import MISSING

from la4vla.config.checks import choice, within
from la4vla.config.train import (
    CheckpointConfig,
    EngineConfig,
    LogConfig,
    LoraConfig,
    OptimConfig,
    PreferenceConfig,
    ValidateConfig,
)
from la4vla.types import UserError

OBJECTIVES = ("preference", "supervised_and_preference")


@dataclass
class TrainingStep:
    """A model that `la4vla train` makes."""

    config: str = ""  # its recipe
    changes: list[str] = field(default_factory=list)  # key=value changes of it


@dataclass
class CandidatesConfig:
    """What is sampled and judged in a round (FACTS 2.1; N_s and the sampling are not in the paper)."""

    clips: str = MISSING  # shard folder with images: a prompt is the task and the first image of a clip
    question: str = "next_system"  # as the high-level model was trained: next_system (the paper's prompt) | next
    views: list[str] = field(default_factory=list)  # cameras it is shown, in the order of its training; empty: all
    view: str = ""  # camera that the scorer is shown; empty: the first one of `views`
    count: int = 8  # sentences of a prompt (N_s)
    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 50  # of a sentence, its end included
    actions: int = 8  # of a chunk, the first ones, that the scorer judges
    margin: float = 0.0  # a pair whose scores differ by less teaches nothing
    rows_at_once: int = 16  # sentences written, acted and judged together: memory, not results


@dataclass
class PreferConfig:
    """What is learned from them. One step a round is the paper's Algorithm 1, one round of many steps its offline
    form."""

    objective: str = "preference"  # preference | supervised_and_preference (LM loss of the clips' own sentences beside)
    weight: float = 0.1  # of the preference loss beside the other one, whose weight is 1
    simpo: PreferenceConfig = field(default_factory=PreferenceConfig)
    rounds: int = 100
    steps: int = 1  # optimizer steps of a round
    prompts: int = 0  # of a round, passed over until its steps are done; 0: as many as these take
    global_batch: int = 64  # pairs a step
    micro_batch: int = 4  # pairs at once on one rank: memory, not results
    train: list[str] = field(default_factory=lambda: ["projector", "embeddings", "llm", "head"])  # as of a stage
    lora: LoraConfig = field(default_factory=LoraConfig)
    lr: float = 1e-7  # constant
    weight_decay: float = 0.0


@dataclass
class GplaConfig:
    dir: str = MISSING  # the rounds' run, their candidates and the page
    seed: int = 0
    processes: int = 1  # of every training, and of the rounds; one a GPU
    ground: TrainingStep = field(default_factory=TrainingStep)  # the scorer; without a recipe `scorer` names one
    high: TrainingStep = field(default_factory=TrainingStep)  # the model that writes instructions
    low: TrainingStep = field(default_factory=TrainingStep)  # the policy that acts on them
    scorer: str = ""  # rules, a grounding checkpoint, clip:DIR ..., as docs/grounding.md names scorers
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    prefer: PreferConfig = field(default_factory=PreferConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_steps=10))
    log: LogConfig = field(default_factory=lambda: LogConfig(every_steps=1))
    validate: ValidateConfig = field(default_factory=ValidateConfig)


INTERVALS = {
    **dict.fromkeys(("processes", "max_tokens", "actions", "rows_at_once"), "[1, inf)"),
    **dict.fromkeys(("rounds", "steps", "global_batch", "micro_batch"), "[1, inf)"),
    **dict.fromkeys(("seed", "margin", "prompts", "lr", "weight_decay"), "[0, inf)"),
    **{"count": "[2, inf)", "temperature": "(0, inf)", "top_p": "(0, 1]", "weight": "(0, inf)"},
}
"""Where the numbers must lie, by the field's name."""


def validate_gpla(config: GplaConfig) -> None:
    """Raises UserError for values that are out of range or do not fit together. What becomes a config of a training is
    checked as one (gpla/rounds.py)."""
    asked = config.candidates
    if asked.temperature == 0:
        raise UserError(
            "candidates.temperature is 0: every sentence of a prompt would be the same one, chosen and rejected alike; "
            "set it above 0, 1.0 is usual."
        )
    within("", asdict(config), INTERVALS)
    within("candidates.", asdict(asked), INTERVALS)
    within("prefer.", asdict(config.prefer), INTERVALS)
    choice("candidates.question", asked.question, ("next_system", "next"))
    choice("prefer.objective", config.prefer.objective, OBJECTIVES)
    for name in ("high", "low"):
        step: TrainingStep = vars(config)[name]
        if not step.config:
            raise UserError(f"{name}.config is empty; name the recipe that trains the {name}-level model.")
    if bool(config.ground.config) == bool(config.scorer):
        raise UserError(
            "sentences are judged by one scorer: set ground.config, the recipe of a grounding model, or `scorer`, one "
            "that is there."
        )
    if config.prefer.global_batch % config.processes:
        raise UserError(
            f"prefer.global_batch is {config.prefer.global_batch}, which {config.processes} processes cannot share; "
            "make it a multiple of `processes`."
        )
    if 0 < config.prefer.prompts < config.prefer.global_batch:
        raise UserError(
            f"prefer.prompts is {config.prefer.prompts}, less than one step takes ({config.prefer.global_batch}); "
            "raise it, or set 0 for as many as the steps take."
        )
