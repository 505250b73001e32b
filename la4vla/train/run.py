"""The state of a run between two steps; what happens to it in between: a stage begins, a checkpoint is written."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from la4vla import manifest
from la4vla.config import TrainConfig
from la4vla.data.loader import Loader
from la4vla.data.setup import Setup, explain, fingerprints
from la4vla.data.transforms import chain_to_dicts
from la4vla.model.freeze import table
from la4vla.model.policy import Policy
from la4vla.model.presets import preset
from la4vla.model.tokenizer import Prompter, build_prompter
from la4vla.train import checkpoint, engines, start
from la4vla.train.checkpoint import Identity, Position
from la4vla.train.dist import World, gathered, log0, on_main
from la4vla.train.engine import Engine
from la4vla.train.health import Watch
from la4vla.train.report import Report
from la4vla.train.start import Start
from la4vla.train.validate import Validation
from la4vla.types import UserError


@dataclass
class Run:
    """position: finished steps. engine, policy: of the present stage. identity: what every checkpoint says."""

    config: TrainConfig
    world: World
    loader: Loader
    identity: Identity
    position: Position
    policy: Policy
    engine: Engine
    watch: Watch
    report: Report
    validation: Validation | None

    def enter_stage(self, name: str) -> None:
        """A new stage: the weights of the checkpoint that ended the last one, other frozen parts, a new optimizer."""
        self.engine.close()
        del self.engine, self.policy
        gc.collect()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        self.position = Position(name, 0, self.position.step)
        found = start.begin_stage(self.config, self.position, self.world)
        self.policy, self.engine = build_engine(self.config, found, self.world)

    def save(self) -> None:
        checkpoint.save(self.config, self.engine, self.identity, self.position, self.world)


def begin(config: TrainConfig, world: World) -> Run | None:
    """Everything up to the first step; None if the run is finished already. Raises UserError for what does not fit."""
    run_dir = Path(config.run.dir)
    found = start.begin_run(config, world)
    if start.is_finished(config, found.position):
        log0(world, f"{run_dir} is finished at step {found.position.step}; nothing to do")
        return None
    spec = preset(config.model.preset).spec
    prompter = _prompter(config, found)
    where = (found.position.stage, found.position.stage_step)
    loader = Loader(config, spec, prompter.encode, world.rank, world.size, where)
    if found.own:
        assert found.weights is not None
        checkpoint.check_data(found.weights, manifest.read(found.weights), fingerprints(loader.setup))
    check_ranks_agree(config, loader.setup)
    validation = Validation(config, loader.setup, spec, prompter.encode, world) if config.validate.cases else None
    on_main(world, lambda: start.write_config(config))
    policy, run_engine = build_engine(config, found, world)
    _announce(config, found, loader.setup, world)
    report = Report(config, world, found.position)
    watch = Watch(world, config.engine.max_skipped_steps)
    identity = _identity(policy, loader.setup, prompter)
    return Run(config, world, loader, identity, found.position, policy, run_engine, watch, report, validation)


def check_ranks_agree(config: TrainConfig, setup: Setup) -> None:
    """Raises UserError, on every rank, where one has another config, other shards or other statistics than rank 0: each
    reads its own files, and its gradient counts for all. Only paths of shards may differ. Collective."""
    said = asdict(config)
    for source in said["data"]["sources"].values():
        del source["path"]
    parts = {
        "config": said,
        "shards": fingerprints(setup),
        "statistics of the data": chain_to_dicts(setup.chain),
    }
    first, *others = gathered({name: json.dumps(part) for name, part in parts.items()})
    for rank, theirs in enumerate(others, start=1):
        for name, of_main in first.items():
            if theirs[name] != of_main:
                raise UserError(
                    f"rank {rank} has another {name} than rank 0; start all ranks with the same command, config and "
                    "data."
                )


def build_engine(config: TrainConfig, begin: Start, world: World) -> tuple[Policy, Engine]:
    """The one builder: load, freeze, optimizer, wrap, and the optimizer's state where the stage goes on."""
    stage = config.stages[begin.position.stage]
    policy = start.make_policy(config, begin)
    log0(world, f"stage {begin.position.stage}, {config.engine.name}, {config.engine.precision}:\n{table(policy)}")
    built = engines.build(policy, config, stage.weight_decay, world)
    if begin.inside_stage:
        assert begin.weights is not None
        checkpoint.load_training(built, begin.weights)
    return policy, built


def _prompter(config: TrainConfig, begin: Start) -> Prompter:
    """The tokenizer, which belongs to the weights: that of the checkpoint a run starts from or goes on from, whatever
    became of its folder since. Raises UserError where the config asks for another."""
    if begin.weights is None:
        return build_prompter(config.model)
    spec = preset(config.model.preset).spec
    if not begin.own and manifest.read(begin.weights).input_spec != asdict(spec):
        raise UserError(
            f"{begin.weights} is of another model than model.preset={config.model.preset}; use the preset it was "
            "trained with."
        )
    prompter = Prompter.load(begin.weights / manifest.TOKENIZER, spec)
    if not begin.own and config.model.tokenizer and build_prompter(config.model).files() != prompter.files():
        raise UserError(
            f"model.tokenizer is {config.model.tokenizer}, and {begin.weights} was trained with another; leave it "
            "empty, the checkpoint has its own."
        )
    return prompter


def _identity(policy: Policy, setup: Setup, prompter: Prompter) -> Identity:
    return Identity(
        model=policy.description,
        input_spec=asdict(policy.spec),
        transforms=chain_to_dicts(setup.chain),
        embodiment=setup.embodiment.to_dict(),
        views=list(setup.chain.views),
        sources=fingerprints(setup),
        tokenizer=prompter.files(),
    )


def _announce(config: TrainConfig, begin: Start, setup: Setup, world: World) -> None:
    body = setup.embodiment
    log0(world, explain(config, setup, world.size))
    log0(world, f"embodiment {body.name}, {body.control_hz:g} Hz")
    for what, spec in (("state", body.state), ("action", body.action)):
        log0(
            world,
            f"  {what}: {' '.join(spec.names)}; {spec.reference}, frame {spec.frame}, rotation {spec.rotation}, "
            + (f"near {' '.join(f'{angle:g}' for angle in spec.rotation_near)}, " if any(spec.rotation_near) else "")
            + f"gripper {spec.gripper_closed:g} closed to {spec.gripper_open:g} open, unit {spec.unit}",
        )
    log0(world, "transforms: " + " -> ".join(type(item).__name__ for item in setup.chain.transforms))
    if begin.own and begin.weights is not None:
        log0(world, f"resume: {_likeness(manifest.read(begin.weights), config, world)}, from {begin.weights}")
    elif begin.weights is not None:
        log0(world, f"weights from {begin.weights}; step and optimizer start fresh")


def _likeness(found: manifest.Manifest, config: TrainConfig, world: World) -> str:
    """How like the run without an end the resumed one will be: what changes the order of sums changes rounding, and
    which values dropout leaves out."""
    if found.world_size != world.size:
        return f"the same samples on {world.size} instead of {found.world_size} ranks"
    now = asdict(config)
    sizes = [{name: stage["micro_batch"] for name, stage in said["stages"].items()} for said in (found.config, now)]
    if found.config["engine"] != now["engine"] or sizes[0] != sizes[1]:
        return "the same samples with another engine or micro-batch"
    here = checkpoint.device_name(world)
    if found.versions.get("device", here) != here:
        return f"the same samples on {here} instead of {found.versions['device']}"
    return "exact" if here == "cpu" else "the same samples, which GPU kernels sum in an order of their own"
