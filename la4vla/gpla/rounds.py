"""The rounds as a run: what their config means for the trainer, and who acts and judges meanwhile."""

from __future__ import annotations

from functools import partial

import torch

from la4vla import manifest
from la4vla.config import (
    PREFERENCE,
    DataConfig,
    GplaConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    load,
    validate,
)
from la4vla.config.gpla import TrainingStep
from la4vla.gpla.learner import Partners, RoundsLearner
from la4vla.gpla.prompts import SOURCE
from la4vla.levels import levels_of
from la4vla.serve.policy import ServedPolicy
from la4vla.train import __main__ as trainer
from la4vla.train.dist import World
from la4vla.train.resume import Resume
from la4vla.types import Scorer, UserError

STAGE = "rounds"


def train_config(step: TrainingStep) -> TrainConfig:
    """The recipe of a step with its changes. Raises UserError as `load`."""
    config = load(step.config, step.changes)
    if not isinstance(config, TrainConfig):
        raise UserError(f"{step.config} is not a config for training; give one without `schema:`.")
    return config


def training(config: GplaConfig) -> TrainConfig:
    """The run of all rounds, one stage. Raises UserError for settings that the trainer refuses."""
    prefer = config.prefer
    # A step's loss is weighted by each kind's share of its rows, which is a half where there are two.
    weights = {PREFERENCE: 1.0} if prefer.objective == PREFERENCE else {"text": 2.0, PREFERENCE: 2.0 * prefer.weight}
    made = TrainConfig(
        learner="vlm",
        run=RunConfig(dir=config.dir, seed=config.seed, init_from=train_config(config.high).run.dir),
        model=ModelConfig(lora=prefer.lora),
        data=DataConfig(
            sources={SOURCE: SourceConfig(path=config.candidates.clips, kind=PREFERENCE)}, streams=prefer.global_batch
        ),
        stages={
            STAGE: StageConfig(
                mixture={SOURCE: 1.0},
                steps=prefer.rounds * prefer.steps,
                global_batch=prefer.global_batch,
                micro_batch=prefer.micro_batch,
                train=prefer.train,
                lr=prefer.lr,
                warmup_steps=0,
                schedule="constant",
                weight_decay=prefer.weight_decay,
                loss_weights=weights,
            )
        },
        optim=config.optim,
        engine=config.engine,
        checkpoint=config.checkpoint,
        log=config.log,
        validate=config.validate,
        preference=prefer.simpo,
    )
    validate(made)
    return made


def run(config: GplaConfig, scorer: Scorer | None = None) -> int:
    """All rounds from where they stand, as one rank or as the only one. Returns an exit status, as `la4vla.train`.

    scorer: who judges, where it is not the one that the config names. Raises UserError.
    """
    return trainer.run(training(config), partial(_open, config, scorer))


def _open(config: GplaConfig, scorer: Scorer | None, made: TrainConfig, resume: Resume, world: World) -> RoundsLearner:
    return RoundsLearner(config, _partners(config, scorer, world.device), made, resume, world)


def _partners(config: GplaConfig, scorer: Scorer | None, device: torch.device) -> Partners:
    low = manifest.resolve(train_config(config.low).run.dir)
    levels = levels_of(manifest.read(low).config)
    judge, identity = (scorer, scorer.name) if scorer else _scorer(config, device)
    return Partners(ServedPolicy.load(low, device), levels, judge, identity)


def _scorer(config: GplaConfig, device: torch.device) -> tuple[Scorer, str]:
    """The scorer that a config names, and what tells it from others: of a checkpoint, the sha256 of its weights."""
    # Imported only when asked for: it brings the classes of image and text towers.
    from la4vla.grounding.load import load_scorer
    from la4vla.grounding.scorer import GroundingScorer

    spec = config.scorer or train_config(config.ground).run.dir
    scorer = load_scorer(spec, str(device))
    return scorer, scorer.identity if isinstance(scorer, GroundingScorer) else spec
