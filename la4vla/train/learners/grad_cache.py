"""The gradient of a whole group in micro-batches and over ranks (GradCache, Gao et al. 2021).

What a pair's wrong answers are depends on its whole group, so the loss does not fall apart into micro-batches. Here all
pairs are embedded without a graph, the embeddings of all ranks are put together, and the loss and its gradient by each
embedding are computed from them alone; then every micro-batch is embedded once more, and takes the gradient from there
to the weights. The sums are those of one process with the whole group at once, up to the order of fp32 sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from la4vla.grounding.loss import group_loss
from la4vla.grounding.model import GroundingModel
from la4vla.train.dist import World, gathered_rows
from la4vla.train.engines.engine import Engine
from la4vla.types import ContrastBatch, PairGradients


@dataclass(frozen=True)
class Embedded:
    """The pairs of a group, in its order, without a graph.

    motion_GD, sentence_GD  fp32, length 1
    kept_G                  bool, those that count
    """

    motion_GD: Tensor
    sentence_GD: Tensor
    kept_G: Tensor


def with_gradients(
    batches: Sequence[ContrastBatch], model: GroundingModel, engine: Engine, diversity: float, world: World
) -> tuple[ContrastBatch, ...]:
    """The micro-batches of a step, each with what the loss of its group says to it. Collective."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for number, batch in enumerate(batches):
        groups[batch.source, batch.group].append(number)
    ready = list(batches)
    for numbers in groups.values():
        parts = [batches[number] for number in numbers]
        own = embed(parts, engine, world)
        gradients = _gradients(own, parts, model, diversity, world)
        for number, one in zip(numbers, gradients, strict=True):
            ready[number] = replace(batches[number], gradients=one)
    return tuple(ready)


def embed(batches: Sequence[ContrastBatch], engine: Engine, world: World) -> Embedded:
    """This rank's pairs, in order."""
    motions, sentences, kept = [], [], []
    with torch.no_grad():
        for batch in batches:
            there = batch.to(world.device)
            motion_BD, sentence_BD = engine.forward(there)
            motions.append(motion_BD)
            sentences.append(sentence_BD)
            kept.append(there.kept_B)
    return Embedded(torch.cat(motions), torch.cat(sentences), torch.cat(kept))


def _gradients(
    own: Embedded, parts: Sequence[ContrastBatch], model: GroundingModel, diversity: float, world: World
) -> list[PairGradients]:
    """One a micro-batch."""
    motion_GD, sentence_GD, kept_G = (_of_all_ranks(one) for one in (own.motion_GD, own.sentence_GD, own.kept_G))
    log_scale = model.head.log_scale.detach().clone()
    leaves = [tensor.requires_grad_() for tensor in (motion_GD, sentence_GD, log_scale)]
    with torch.enable_grad():
        loss = group_loss(motion_GD, sentence_GD, log_scale, kept_G, diversity)
        # The loop divides by the pairs of all groups of the step, so a group weighs as many as it has.
        by_motion_GD, by_sentence_GD, by_scale = torch.autograd.grad(loss * kept_G.sum(), leaves)
    mine = slice(world.rank, None, world.size)
    sizes = [part.rows for part in parts]
    rows = zip(by_motion_GD[mine].split(sizes), by_sentence_GD[mine].split(sizes), strict=True)
    return [
        PairGradients(loss.detach(), motion_BD, sentence_BD, by_scale * len(motion_BD) / len(motion_GD))
        for motion_BD, sentence_BD in rows
    ]


def _of_all_ranks(own: Tensor) -> Tensor:
    """Rows of all ranks in the order of the group, of which rank r has r, r + W, ..."""
    numbers = own.to(torch.uint8) if own.dtype == torch.bool else own
    return rearrange(torch.stack(gathered_rows(numbers)), "w n ... -> (n w) ...").to(own.dtype)
