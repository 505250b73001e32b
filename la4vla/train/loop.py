"""The run, top to bottom: `train` is the loop, `train_step` one optimizer step; what is periodic stands behind `every`.

A step of ours costs no host sync: valid counts, votes to stop and the health of the gradient stay on the device and are
read one step late, at the same step on every rank. (DeepSpeed's ZeRO 1 and 2 sync once a step on their own, to decide
about a non-finite norm; ZeRO 3 after every micro-batch, to partition gradients.)
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from la4vla.config import TrainConfig
from la4vla.data.reader import StepData
from la4vla.rng import RngUse, torch_generator
from la4vla.train import start
from la4vla.train.dist import World, log0, sum_over_ranks
from la4vla.train.engine import Engine
from la4vla.train.health import StopSignal
from la4vla.train.optim import lr_at
from la4vla.train.report import StepResult
from la4vla.train.run import Position, Run, begin
from la4vla.types import KINDS, Batch


def train(config: TrainConfig, world: World) -> None:
    """Run a config from where its run.dir stands to its end, or to a SIGTERM. Raises UserError."""
    stop = StopSignal()
    with start.only_run(config, world):
        run = begin(config, world)
        if run is not None:
            _train(run, config, world, stop)


def _train(run: Run, config: TrainConfig, world: World, stop: StopSignal) -> None:
    with closing(run.loader), closing(run.report):
        for data in run.loader:
            if data.step == 0 and world.is_main:
                start.contact_sheet(data.batches, Path(config.run.dir))
            if data.stage != run.position.stage:
                run.enter_stage(data.stage)
            result = train_step(run.engine, data, config, world, stop.received)
            run.position = Position(data.stage, data.stage_step + 1, data.step + 1)
            traces = tuple((loss[2], batch.keys) for loss, batch in zip(result.losses, data.batches, strict=True))
            stopping = run.watch.read(run.position.step, result.norm, result.votes, traces)
            run.report.add(data, result, run.policy)
            stage_ends = run.position.stage_step == config.stages[data.stage].steps
            if stage_ends:
                stopping |= run.watch.settle()
            if run.validation and every(config.validate.every_steps, run.position.step):
                run.report.note(*run.validation.measure(run.policy, run.engine))
            if stage_ends or every(config.log.every_steps, run.position.step):
                run.report.write(run.position, run.engine)
            if stage_ends or stopping or every(config.checkpoint.every_steps, run.position.step):
                run.save()
            if stopping:
                log0(world, f"stopped by a signal after step {run.position.step}; start again to resume")
                return
    run.engine.close()


def train_step(engine: Engine, data: StepData, config: TrainConfig, world: World, stop: bool) -> StepResult:
    """One optimizer step: its micro-batches in the order of KINDS, then the update.

    The loss is the sum over kinds of weight x share of the step's samples x (squared error / valid values), both over
    all ranks, so that neither ranks nor micro-batches change it. stop: this rank's vote to end the run.
    """
    stage = config.stages[data.stage]
    seed_dropout(config.run.seed, world.rank, data.step)
    totals = sum_over_ranks(step_totals(data, stop, world).to(world.device, non_blocking=True))
    rows = {kind: sum(batch.rows for batch in data.batches if batch.kind == kind) for kind in KINDS}
    losses = []
    for number, batch in enumerate(data.batches):
        squared_error, _ = engine.forward(on_device(batch, world))
        mean = squared_error / totals[KINDS.index(batch.kind)].clamp(min=1.0)
        weight = stage.loss_weights[batch.kind] * rows[batch.kind] / sum(rows.values())
        engine.backward(weight * mean, last=number == len(data.batches) - 1)
        losses.append((batch.kind, weight, mean.detach()))
    lr = lr_at(data.stage_step, stage)
    return StepResult(tuple(losses), engine.step(lr), totals[-1], lr)


def on_device(batch: Batch, world: World) -> Batch:
    """The batch where the model is. From pinned memory: a copy from any other waits for the GPU's queue to empty."""
    return batch.pin().to(world.device) if world.device.type == "cuda" else batch


def step_totals(data: StepData, stop: bool, world: World) -> Tensor:
    """float32 on the host, pinned for a GPU: valid action values of each kind on this rank, then its vote to stop."""
    valid = dict.fromkeys(KINDS, 0)
    for batch in data.batches:
        valid[batch.kind] += int(batch.action_mask_BTA.sum())
    pinned = world.device.type == "cuda"
    return torch.tensor([*valid.values(), int(stop)], dtype=torch.float32, pin_memory=pinned)


def seed_dropout(seed: int, rank: int, step: int) -> None:
    """Dropout draws from torch's default generators, on the device too; they start anew at every step, so that a
    resumed run draws what the straight one drew."""
    torch.manual_seed(torch_generator(seed, RngUse.DROPOUT, rank, step).initial_seed())


def every(steps: int, step: int) -> bool:
    return step % steps == 0
