"""The state of a run between two steps; what happens to it in between: a stage begins, a checkpoint is written."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from la4vla.config import PREFERENCE, TrainConfig, begins_in_parts
from la4vla.manifest import Checkpoint, Manifest
from la4vla.model.freeze import group_parameters
from la4vla.train import checkpoint, resume
from la4vla.train.checkpoint import Position
from la4vla.train.dist import World, gathered, log0, on_main
from la4vla.train.engines import build
from la4vla.train.engines.engine import Engine
from la4vla.train.health import Health
from la4vla.train.learners.learner import Learner
from la4vla.train.learners.policy_learner import PolicyLearner
from la4vla.train.optim import Rules
from la4vla.train.report import Report
from la4vla.train.resume import Resume
from la4vla.train.run_folder import write_config
from la4vla.train.stopping import HeldOutStop
from la4vla.types import UserError

OpenLearner = Callable[[TrainConfig, Resume, World], Learner]
"""Makes the learner of a run, from where it stands."""

ROUNDING = ("name", "zero_stage", "precision", "gradient_checkpointing")  # settings of the engine that change sums


@dataclass
class Run:
    """A run between two steps.

    learner         reads the steps, builds the module
    position        finished steps
    skipped_before  steps without a finite gradient in the stages before the present one
    module          of the present stage
    engine          of the present stage, around the module
    health          what can end the run early
    held_out        the held-out loss, which can end it, too
    report          what is measured between two log lines
    """

    config: TrainConfig
    world: World
    learner: Learner
    position: Position
    skipped_before: int
    module: nn.Module
    engine: Engine
    health: Health
    held_out: HeldOutStop
    report: Report

    def enter_stage(self, name: str) -> None:
        """A new stage: the weights of the checkpoint that ended the last one, other frozen parts, a new optimizer."""
        self.skipped_before = self.skipped_steps()
        self.engine.close()
        del self.engine, self.module
        gc.collect()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        self.position = Position(name, 0, self.position.step)
        stands = resume.begin_stage(self.config, self.position, self.world)
        self.module, self.engine = build_engine(self.config, self.learner, stands, self.world)

    def save(self) -> None:
        identity = self.learner.identity(self.module)
        checkpoint.save(self.config, self.engine, identity, self.position, self.skipped_steps(), self.world)

    def skipped_steps(self) -> int:
        """Steps without a finite gradient since step 0. Waits for the device."""
        return self.skipped_before + self.position.stage_step - self.engine.updates()


def begin(config: TrainConfig, world: World, opener: OpenLearner) -> Run | None:
    """Everything up to the first step; None if the run is finished already. Raises UserError for what does not fit."""
    stands = resume.begin_run(config, world)
    if resume.is_finished(config, stands.position):
        log0(world, f"{Path(config.run.dir)} is finished at step {stands.position.step}; nothing to do")
        return None
    learner = opener(config, stands, world)
    check_ranks_agree(config, learner)
    on_main(world, lambda: write_config(config))
    module, engine = build_engine(config, learner, stands, world)
    skipped = stands.checkpoint.manifest.skipped_steps if stands.own and stands.checkpoint else 0
    skipped_before = skipped - (stands.position.stage_step - engine.updates())
    log0(world, learner.explain())
    if stands.checkpoint is not None:
        log0(world, _provenance(config, stands, stands.checkpoint, world))
    report = Report(config, world, learner, stands.position)
    return Run(
        config=config,
        world=world,
        learner=learner,
        position=stands.position,
        skipped_before=skipped_before,
        module=module,
        engine=engine,
        health=Health(world, config.engine.max_skipped_steps),
        held_out=HeldOutStop(config, stands.position.step),
        report=report,
    )


def open_learner(config: TrainConfig, stands: Resume, world: World) -> Learner:
    """The learner that a config asks for. Raises UserError where its data does not fit."""
    if any(source.kind == PREFERENCE for source in config.data.sources.values()):
        raise UserError("pairs for preferences are made while a model trains; give their config to `la4vla gpla`.")
    if config.learner == "vlm":
        # Imported only when asked for: it brings the classes of every family.
        from la4vla.train.learners.vlm_learner import VlmLearner

        return VlmLearner(config, stands, world)
    if config.learner == "grounding":
        from la4vla.train.learners.grounding_learner import GroundingLearner

        return GroundingLearner(config, stands, world)
    return PolicyLearner(config, stands, world)


def check_ranks_agree(config: TrainConfig, learner: Learner) -> None:
    """Raises UserError, on every rank, where one has another config, other shards or other statistics than rank 0: each
    reads its own files, and its gradient counts for all. Only paths of shards may differ. Collective."""
    own_config = asdict(config)
    for source in own_config["data"]["sources"].values():
        del source["path"]
    parts = {"config": own_config, **learner.shared_by_ranks()}
    first, *others = gathered({name: json.dumps(part) for name, part in parts.items()})
    for rank, theirs in enumerate(others, start=1):
        for name, of_main in first.items():
            if theirs[name] != of_main:
                raise UserError(
                    f"rank {rank} has another {name} than rank 0; start all ranks with the same command, config and "
                    "data."
                )


def build_engine(config: TrainConfig, learner: Learner, stands: Resume, world: World) -> tuple[nn.Module, Engine]:
    """The one builder: load, freeze, optimizer, wrap, and the optimizer's state where the stage goes on."""
    stage = stands.position.stage
    module = learner.build(stands)
    log0(world, f"stage {stage}, {config.engine.name}, {config.engine.precision}:\n{learner.trainable_table(module)}")
    parameters, asked = group_parameters(module), config.stages[stage]
    rules = Rules(asked.weight_decay, {group: parameters[group] for group in asked.lr_groups})
    engine = build.build(module, config, rules, world)
    if stands.inside_stage:
        assert stands.checkpoint is not None
        checkpoint.load_training(engine, stands.checkpoint.folder)
        if config.optim.ema_decay:
            checkpoint.load_averages(engine, stands.checkpoint.folder)
    return module, engine


def _provenance(config: TrainConfig, stands: Resume, source: Checkpoint, world: World) -> str:
    if stands.own:
        return f"resume: {_likeness(source.manifest, config, world)}, from {source.folder}"
    if begins_in_parts(config.run):
        return f"parts of the weights from {source.folder}; step and optimizer start fresh"
    return f"weights from {source.folder}; step and optimizer start fresh"


def _likeness(written: Manifest, config: TrainConfig, world: World) -> str:
    """How like the run without an end the resumed one will be: what changes the order of sums changes rounding, and
    which values dropout leaves out."""
    if written.world_size != world.size:
        return f"the same samples on {world.size} instead of {written.world_size} ranks"
    now = asdict(config)
    then_and_now = (written.config, now)
    sizes = [{name: stage["micro_batch"] for name, stage in one["stages"].items()} for one in then_and_now]
    engines_used = [{name: one["engine"][name] for name in ROUNDING} for one in then_and_now]
    if engines_used[0] != engines_used[1] or sizes[0] != sizes[1]:
        return "the same samples with another engine or micro-batch"
    here = checkpoint.device_name(world)
    if written.versions.get("device", here) != here:
        return f"the same samples on {here} instead of {written.versions['device']}"
    return "exact" if here == "cpu" else "the same samples, which GPU kernels sum in an order of their own"
