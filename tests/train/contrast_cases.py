"""What the processes of test_grounding_learner.py run: the gradient of two groups by way of GradCache, against one
process that holds both whole.

    RANK=... WORLD_SIZE=... python contrast_cases.py OUT
Rank 0 writes the differences to OUT.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from la4vla.config import OptimConfig, RunConfig, StageConfig, TrainConfig
from la4vla.grounding.loss import group_loss
from la4vla.grounding.model import GroundingModel, build_grounding
from la4vla.grounding.towers import build_towers
from la4vla.train import dist
from la4vla.train.dist import World
from la4vla.train.engines.plain import PlainEngine
from la4vla.train.learners.grad_cache import with_gradients
from la4vla.train.optim import Rules
from la4vla.types import ContrastBatch

GROUP, GROUPS, DIVERSITY = 8, 2, 0.5
MICRO_BATCHES = (1, 3, 8)


def model() -> GroundingModel:
    towers = build_towers("tiny", True, 0)
    made = build_grounding(towers, 16, 4, 3, 0)
    made.text.requires_grad_(False)
    return made.train()


def group(number: int) -> ContrastBatch:
    """One pair of the second group does not count."""
    draw = torch.Generator().manual_seed(number)
    valid = torch.ones(GROUP, 4, dtype=torch.bool)
    valid[:, 3] = torch.arange(GROUP) % 2 == 0
    valid[5] = number == 0
    images = torch.randint(0, 256, (GROUP, 3, 112, 112), generator=draw, dtype=torch.uint8)
    ids = torch.randint(10, 500, (GROUP, 48), generator=draw)
    actions = torch.randn(GROUP, 4, 3, generator=draw)
    return ContrastBatch("contrast", number, "a", ids, images, actions, valid, tuple("abcdefgh"))


def rows(batch: ContrastBatch, at: torch.Tensor) -> ContrastBatch:
    names = ("input_ids_BL", "images_BCHW", "actions_BTA", "action_valid_BT")
    return replace(batch, **{name: batch.__dict__[name][at] for name in names}, keys=tuple("x" * len(at)))


def whole() -> dict[str, torch.Tensor]:
    """Two groups of 8 and 7 pairs, mean loss of a pair."""
    made, total = model(), 2 * GROUP - 1
    loss = torch.zeros(())
    for number in range(GROUPS):
        batch = group(number)
        motion, sentence = made(batch)
        part = group_loss(motion, sentence, made.head.log_scale, batch.kept_B, DIVERSITY)
        loss = loss + part * batch.counted / total
    loss.backward()
    return {"loss": loss.detach(), **{name: one.grad for name, one in made.named_parameters() if one.requires_grad}}


def in_parts(micro_batch: int, world: World) -> dict[str, torch.Tensor]:
    config = TrainConfig(run=RunConfig(dir=""), stages={"a": StageConfig(steps=1)}, optim=OptimConfig())
    made = model()
    engine = PlainEngine(made, config, Rules(0.0, {}), world)
    own = torch.arange(world.rank, GROUP, world.size)
    parts = [rows(group(number), at) for number in range(GROUPS) for at in own.split(micro_batch)]
    loss = torch.zeros(())
    ready = with_gradients(parts, made, engine, DIVERSITY, world)
    for number, batch in enumerate(ready):
        share, _ = engine.forward(batch)
        engine.backward(share / (2 * GROUP - 1), last=number == len(ready) - 1)
        loss += share.detach() / (2 * GROUP - 1)
    found = {"loss": dist.sum_over_ranks(loss)}
    found |= {name: one.grad.clone() for name, one in made.named_parameters() if one.requires_grad}
    engine.close()
    return found


def differences(world: World) -> dict[str, float]:
    """`MICRO_BATCH NAME` -> difference relative to what is right: of the loss, the temperature's gradient, and the
    gradient of all weights by its length."""
    wanted, report = whole(), {}
    for size in MICRO_BATCHES:
        found = in_parts(size, world)
        assert found.keys() == wanted.keys()
        for name in ("loss", "head.log_scale"):
            report[f"{size} {name}"] = float((found[name] - wanted[name]).abs() / wanted[name].abs())
        apart = sum(float((found[name] - one).double().square().sum()) for name, one in wanted.items())
        length = sum(float(one.double().square().sum()) for one in wanted.values())
        report[f"{size} all"] = (apart / length) ** 0.5
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = dist.start(300.0)
    result = differences(here)
    if here.is_main:
        Path(sys.argv[1]).write_text(json.dumps(result))
    dist.stop()
