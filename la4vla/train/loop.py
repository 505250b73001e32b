"""The run, top to bottom: `train` is the loop, `train_step` one optimizer step; what is periodic stands behind `every`.

A step of ours costs no host sync: valid counts, votes to stop and the health of the gradient stay on the device and are
read one step late, at the same step on every rank. (DeepSpeed's ZeRO 1 and 2 sync once a step on their own, to decide
about a non-finite norm; ZeRO 3 after every micro-batch, to partition gradients.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from la4vla.config import TrainConfig
from la4vla.rng import RngUse, torch_generator
from la4vla.train.dist import World, log0, sum_over_ranks
from la4vla.train.engines.engine import Engine
from la4vla.train.health import StopSignal
from la4vla.train.learners.learner import MicroBatch, Step
from la4vla.train.optim import rates_at
from la4vla.train.report import StepResult
from la4vla.train.run import OpenLearner, Position, Run, begin, open_learner
from la4vla.train.run_folder import only_run


def train(config: TrainConfig, world: World, opener: OpenLearner = open_learner) -> None:
    """Run a config from where its run.dir stands to its end, or to a SIGTERM or SIGINT. Raises UserError.

    opener: makes the learner, where it is not the one that the config alone asks for.
    """
    stop = StopSignal()
    with only_run(config, world):
        run = begin(config, world, opener)
        if run is not None:
            _train(run, config, world, stop)


def _train(run: Run, config: TrainConfig, world: World, stop: StopSignal) -> None:
    learner = run.learner
    with closing(learner), closing(run.report):
        for data in learner.steps():
            if data.step == 0 and world.is_main:
                learner.write_first_batch(data, Path(config.run.dir))
            if data.stage != run.position.stage:
                with run.report.paused():
                    run.enter_stage(data.stage)
            data = learner.ready(data, run.module, run.engine)
            result = train_step(run.engine, data, config, learner.kinds, world, stop.received)
            run.position = Position(data.stage, data.stage_step + 1, data.step + 1)
            traces = tuple((loss[2], batch.keys) for loss, batch in zip(result.losses, data.batches, strict=True))
            stopping = run.health.update(run.position.step, result.norm, result.votes, traces)
            run.report.add(data, result, run.module)
            stage_ends = run.position.stage_step == config.stages[data.stage].steps
            if stage_ends or stopping:
                stopping |= run.health.flush()
            if every(config.validate.every_steps, run.position.step):
                with run.report.paused():
                    measured = learner.validate(run.module, run.engine)
                    run.report.note(measured)
                    stopping |= run.held_out.take(run.position.step, measured)
            if stage_ends or every(config.log.every_steps, run.position.step):
                run.report.write(run.position, run.skipped_steps())
            if stage_ends or stopping or every(config.checkpoint.every_steps, run.position.step):
                with run.report.paused():
                    run.save()
            if run.held_out.over:
                log0(world, f"stopped after step {run.position.step}: {run.held_out.reason}")
                return
            if stopping:
                log0(world, f"stopped by a signal after step {run.position.step}; start again to resume")
                return
    run.engine.close()


def train_step(
    engine: Engine, data: Step, config: TrainConfig, kinds: Sequence[str], world: World, stop: bool
) -> StepResult:
    """One optimizer step: its micro-batches in the order of `kinds`, then the update.

    The loss is the sum over kinds of weight x share of the step's samples x (loss sum / counted values), both over
    all ranks, so that neither ranks nor micro-batches change it. stop: this rank's vote to end the run.
    """
    stage = config.stages[data.stage]
    seed_dropout(config.run.seed, world.rank, data.step)
    totals = sum_over_ranks(step_totals(data, kinds, stop, world).to(world.device, non_blocking=True))
    rows = {kind: sum(batch.rows for batch in data.batches if batch.kind == kind) for kind in kinds}
    losses = []
    for number, batch in enumerate(data.batches):
        loss_sum, _ = engine.forward(on_device(batch, world))
        mean = loss_sum / totals[kinds.index(batch.kind)].clamp(min=1.0)
        weight = stage.loss_weights[batch.kind] * rows[batch.kind] / sum(rows.values())
        engine.backward(weight * mean, last=number == len(data.batches) - 1)
        losses.append((batch.kind, weight, mean.detach()))
    rates = rates_at(data.stage_step, stage)
    return StepResult(tuple(losses), engine.step(rates), totals[-1], rates)


def on_device(batch: MicroBatch, world: World) -> MicroBatch:
    """The batch where the model is. From pinned memory: a copy from any other waits for the GPU's queue to empty."""
    return batch.pin().to(world.device) if world.device.type == "cuda" else batch


def step_totals(data: Step, kinds: Sequence[str], stop: bool, world: World) -> Tensor:
    """float32 on the host, pinned for a GPU: counted values of each kind on this rank, then its vote to stop."""
    valid = dict.fromkeys(kinds, 0)
    for batch in data.batches:
        valid[batch.kind] += batch.counted
    pinned = world.device.type == "cuda"
    return torch.tensor([*valid.values(), int(stop)], dtype=torch.float32, pin_memory=pinned)


def seed_dropout(seed: int, rank: int, step: int) -> None:
    """Dropout draws from torch's default generators, on the device too; they start anew at every step, so that a
    resumed run draws what the straight one drew."""
    torch.manual_seed(torch_generator(seed, RngUse.DROPOUT, rank, step).initial_seed())


def every(steps: int, step: int) -> bool:
    return step % steps == 0
