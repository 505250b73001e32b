"""Held-out cases during training: loss and DAR with all inputs, without vision, without text, and with neither.

What a policy loses without an input is what it had from it (octo reports its validation the same way). Every rank
computes all of it: under ZeRO-3 a forward pass needs all ranks, and elsewhere the cases are few. Nothing of the run is
touched: no global randomness is drawn, dropout is off, no gradient is made, and noise and time are the cases' own.
A policy without views has `no_vision` and `neither` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from la4vla.config import TrainConfig, smallest_micro_batch
from la4vla.data.processor import Processor
from la4vla.data.reader import window
from la4vla.data.robots import RobotSetup
from la4vla.data.setup import Setup
from la4vla.data.shards.index import Index, read_stats
from la4vla.data.values import Limits, bad_frames
from la4vla.levels import levels_of
from la4vla.model.policy import Policy
from la4vla.probe_cases.cases import Case, CaseClips, open_case_clips, read_cases
from la4vla.probe_cases.motion import alignment, check_translation, travel
from la4vla.rng import RngUse, generator
from la4vla.train.dist import World, log0
from la4vla.train.engines.engine import Engine
from la4vla.train.metrics import Record
from la4vla.types import KINDS, Batch, Kind, Sample, UserError


@dataclass(frozen=True)
class Mode:
    """kind: of its rows. told: whether the instruction is there."""

    name: str
    kind: Kind
    told: bool


@dataclass(frozen=True)
class ValidationBatch:
    """A micro-batch of cases in one mode.

    states   of each case, in the robot's units
    counted  of each case, the actions within the clip
    """

    cases: tuple[Case, ...]
    batch: Batch
    states: tuple[np.ndarray, ...]
    counted: tuple[int, ...]


class Validation:
    """Raises UserError where the cases do not fit the run's data."""

    def __init__(self, config: TrainConfig, setup: Setup, world: World) -> None:
        self._config, self._setup, self._world = config, setup, world
        listed = read_cases(config.validate.cases)
        self._robot = setup.robots.get(listed.embodiment, next(iter(setup.robots.values())))
        case_clips = open_case_clips(listed, self._robot.chain.views, config.validate.shards)
        if differs := case_clips.index.embodiment.difference(self._robot.embodiment):
            raise UserError(
                f"validate.cases: the cases are of `{case_clips.index.embodiment.name}`, whose {differs.field} is "
                f"{differs.mine}, the run's data has {differs.other}; sample cases from shards like the run's."
            )
        check_translation(self._robot.embodiment)
        asked = {(clip, len(case_clips.clips[clip])) for clip in {case.clip for case in listed.cases}}
        for name, source in setup.sources.items():
            if shared := asked & contents(source.index):
                log0(
                    world,
                    f"warning: {len(shared)} of the {len(asked)} clips of validate.cases are also in source {name} (by "
                    "key and length), so they are not held out",
                )
        _check_values(listed.cases, case_clips, self._robot.processor)
        size = smallest_micro_batch(config)
        parts = [listed.cases[first : first + size] for first in range(0, len(listed.cases), size)]
        self._questions = {
            mode.name: [self._question(mode, part, first * size, case_clips) for first, part in enumerate(parts)]
            for mode in modes(setup, self._robot)
        }

    def measure(self, policy: Policy, engine: Engine) -> Record:
        """`val/loss/MODE` and `val/dar/MODE`. Collective; the numbers are the same on all ranks."""
        training = policy.training
        policy.eval()
        record: Record = {}
        with torch.no_grad():
            for name, questions in self._questions.items():
                record[f"val/loss/{name}"] = self._loss(questions, engine)
                record[f"val/dar/{name}"] = self._dar(questions, policy)
        policy.train(training)
        return record

    def _loss(self, questions: Sequence[ValidationBatch], engine: Engine) -> float:
        """Mean squared error over all valid values, as in training."""
        sums = [engine.forward(question.batch.to(self._world.device)) for question in questions]
        return float(sum(error for error, _ in sums) / sum(count for _, count in sums))

    def _dar(self, questions: Sequence[ValidationBatch], policy: Policy) -> float:
        """Chunks are sampled in fp32, as a checkpoint is served, but for frozen weights that are held in bf16; NaN for
        a policy that diverged."""
        mixed = self._config.engine.compute == "frozen_bf16"
        hits: list[np.ndarray] = []
        for question in questions:
            with torch.autocast(self._world.device.type, torch.bfloat16, enabled=mixed):
                chunk = policy.sample(question.batch.to(self._world.device), self._config.flow.steps)
            chunks_BTA, robot = chunk.cpu().numpy(), self._robot
            ends = [
                travel(robot.chain.inverse(chunk_TA, state)[:counted], state, robot.embodiment, case.arm)[-1]
                for chunk_TA, state, counted, case in zip(
                    chunks_BTA, question.states, question.counted, question.cases, strict=True
                )
            ]
            if not np.isfinite(ends).all():
                return float("nan")
            hits.append(alignment(np.array(ends), np.array([case.toward for case in question.cases])))
        return float(np.concatenate(hits).mean())

    def _question(self, mode: Mode, cases: Sequence[Case], first: int, case_clips: CaseClips) -> ValidationBatch:
        processor = self._robot.processor
        raw = [self._sample(mode, case, case_clips) for case in cases]
        prepared = [
            processor.prepare(sample, generator(self._config.run.seed, RngUse.VALIDATE, first + number))
            for number, sample in enumerate(raw)
        ]
        batch = processor.batch(prepared)
        counted = tuple(int(sample.action_valid.sum()) for sample in raw)
        return ValidationBatch(tuple(cases), batch, tuple(sample.state for sample in raw), counted)

    def _sample(self, mode: Mode, case: Case, case_clips: CaseClips) -> Sample:
        horizon = self._robot.processor.spec.horizon
        levels = levels_of(asdict(self._config))
        sample = window(case_clips.clips[case.clip], case.frame, horizon, mode.kind, "validate", levels)
        if mode.kind != "la":
            sample = sample.but(views=case_clips.images(case.clip, case.frame, self._robot.chain.views))
        return sample if mode.told else sample.but(instruction="")


def _check_values(cases: Sequence[Case], case_clips: CaseClips, processor: Processor) -> None:
    """Raises UserError for a case with a state or an action that cannot be."""
    limits = Limits.of(read_stats(case_clips.index.location))
    for case in cases:
        bad = bad_frames(case_clips.clips[case.clip], limits)
        stop = min(case.frame + processor.spec.horizon, len(case_clips.clips[case.clip]))
        if bad and (what := bad.within(case.frame, stop, processor.chain.takes_every_state)):
            raise UserError(
                f"validate.cases: clip {case.clip} of {case_clips.index.location}: {what}; write the folder again "
                "without it and sample cases from it (la4vla probe cases), or leave validate.cases out."
            )


def contents(index: Index) -> set[tuple[str, int]]:
    """Names and lengths of the clips: the same for la/ and vla/ of one dataset, whose shards differ."""
    return {pair for shard in index.shards for pair in zip(shard.keys, shard.lengths, strict=True)}


def modes(setup: Setup, robot: RobotSetup) -> list[Mode]:
    """Those that a run's policy can be asked in, by what it is shown of a robot in training (`vla` where that is among
    it)."""
    kinds = {setup.sources[name].kind for name in robot.sources}
    seeing: list[Kind] = [kind for kind in KINDS if kind in kinds - {"la"}]
    with_vision = [Mode("full", seeing[-1], True), Mode("no_text", seeing[-1], False)] if seeing else []
    return [*with_vision, Mode("no_vision", "la", True), Mode("neither", "la", False)]
