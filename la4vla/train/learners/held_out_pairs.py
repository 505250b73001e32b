"""Held-out clips of a grounding model: the loss of their groups, and how often a motion finds its own sentence.

The groups are fixed: those that a run with this seed would draw first. Every rank computes all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch

from la4vla import manifest
from la4vla.config import TrainConfig, smallest_micro_batch
from la4vla.data.groups import Groups, Pair, make_groups
from la4vla.data.pairs import collate_pairs
from la4vla.data.reader import window
from la4vla.data.setup import Setup
from la4vla.data.shards.index import Index, read_index
from la4vla.data.shards.read import clip_places, read_clip
from la4vla.grounding.loss import group_loss
from la4vla.grounding.model import GroundingModel
from la4vla.train.dist import World, log0
from la4vla.train.engines.engine import Engine
from la4vla.train.learners.grad_cache import embed
from la4vla.train.metrics import Record
from la4vla.types import ContrastBatch, Sample, UserError

NAME = "validate"


@dataclass(frozen=True)
class HeldOutGroup:
    """batches: its micro-batches, in order."""

    batches: tuple[ContrastBatch, ...]


class HeldOutPairs:
    def __init__(self, config: TrainConfig, setup: Setup, world: World) -> None:
        """Raises UserError for clips of another robot, without the run's view, or with one sentence alone."""
        self._config, self._setup, self._world = config, setup, world
        asked = config.validate
        index = read_index(asked.pairs)
        if differs := index.embodiment.difference(setup.only_robot.embodiment):
            raise UserError(
                f"validate.pairs: {asked.pairs} is of `{index.embodiment.name}`, whose {differs.field} is "
                f"{differs.mine}, the run's data has {differs.other}; hold out clips of the run's robot."
            )
        for view in setup.only_robot.chain.views:
            if view not in index.views:
                raise UserError(
                    f"validate.pairs: {asked.pairs} has no view {view}, which the run sees; hold out others."
                )
        _warn_of_shared(setup, index, world)
        places = clip_places(index)
        distinct = len(make_groups(config.run.seed, NAME, 1, places).sentences)
        if distinct < 2:
            raise UserError(f"validate.pairs: {asked.pairs} has one instruction, which nothing can be told from.")
        size = min(config.data.contrast_group, distinct)
        groups = make_groups(config.run.seed, NAME, size, places)
        self.size = size
        self._groups = [self._read(index, groups, number) for number in range(asked.pair_groups)]

    def measure(self, model: GroundingModel, engine: Engine) -> Record:
        """`val/contrast`, the mean loss of a group, and of its pairs how many find their own: `val/r1/sentence`, the
        sentence of a motion, and `val/r1/motion`, the motion of a sentence. By chance 1 / the group's size."""
        training = model.training
        model.eval()
        losses, right = [], []
        with torch.no_grad():
            for group in self._groups:
                embedded = embed(group.batches, engine, self._world)
                motion_GD, sentence_GD = embedded.motion_GD, embedded.sentence_GD
                scale, weight = model.head.log_scale, self._config.grounding.diversity
                losses.append(float(group_loss(motion_GD, sentence_GD, scale, embedded.kept_G, weight)))
                cosines_GG = motion_GD @ sentence_GD.T
                own_G = torch.arange(self.size, device=cosines_GG.device)
                right.append([float((way.argmax(dim=1) == own_G).float().mean()) for way in (cosines_GG, cosines_GG.T)])
        model.train(training)
        sentence, motion = np.mean(right, axis=0)
        return {
            manifest.HELD_OUT_LOSS: float(np.mean(losses)),
            "val/r1/sentence": float(sentence),
            "val/r1/motion": float(motion),
        }

    def _read(self, index: Index, groups: Groups, number: int) -> HeldOutGroup:
        samples = [self._sample(index, pair) for pair in groups.group(number)]
        most, encode = smallest_micro_batch(self._config), self._setup.only_robot.processor.encode
        parts = [samples[first : first + most] for first in range(0, len(samples), most)]
        return HeldOutGroup(tuple(collate_pairs(part, encode, NAME, number) for part in parts))

    def _sample(self, index: Index, pair: Pair) -> Sample:
        views, horizon = self._setup.only_robot.chain.views, self._config.grounding.horizon
        clip = read_clip(index, pair.place, views, pair.frame)
        sample = window(clip, pair.frame, horizon, "vla" if views else "la", NAME)
        shown = {view: simplejpeg.decode_jpeg(clip.frames[view][pair.frame], colorspace="RGB") for view in views}
        return self._setup.only_robot.chain(sample.but(views=shown))


def _warn_of_shared(setup: Setup, index: Index, world: World) -> None:
    keys = _keys(index)
    for name, source in setup.sources.items():
        if shared := keys & _keys(source.index):
            log0(
                world,
                f"warning: {len(shared)} of the {len(keys)} clips of validate.pairs are also in source {name} (by key "
                "and length), so they are not held out",
            )


def _keys(index: Index) -> set[tuple[str, int]]:
    return {pair for shard in index.shards for pair in zip(shard.keys, shard.lengths, strict=True)}
