"""What the processes of test_engines.py run: every engine on the same mixed steps, against bare torch in one process.

    RANK=... WORLD_SIZE=... python engine_cases.py FOLDER COMMAND
COMMAND `all`: every engine and precision; `resume`: one rank goes on from what two ranks of each ZeRO stage saved.
Rank 0 writes FOLDER/COMMAND.json, which holds differences only; the test judges them.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from la4vla.config import EngineConfig, RunConfig, StageConfig, TrainConfig
from la4vla.train import checkpoint, dist
from la4vla.train.checkpoint import Identity, Position
from la4vla.train.dist import World
from la4vla.train.engines import build, deepspeed, plain
from la4vla.train.engines.engine import Engine
from la4vla.train.optim import OTHERS, Rules
from la4vla.types import Batch

STEPS, HALF, BAD_STEP, LR, CLIP, DECAY = 10, 5, 7, 0.01, 1.0, 0.1
EMA_DECAY = 0.5  # reached after eight updates
OWN, OWN_LR = "head", 0.02  # a group with a learning rate of its own
WAIT_S = 333.0  # engine.timeout_s, unlike any default
ENGINES = (("plain", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3))
INSULATED = "insulated"  # a `vla` micro-batch whose loss stops before the trunk
PATTERNS = (
    *(("la", "la", "vla"), ("la",), ("la_leaky", "vla"), ("la", "la_leaky")),
    *(("text", INSULATED), ("la", "text", "vla")),
)
"""Micro-batches of a step, in turn: vision last, vision not at all, only vision, both. The second and third put the
engines' reductions to the test: what an earlier micro-batch or step left in a buffer must not come back. So do the last
two: conversations reach the writer and not the head, actions the head and not the writer, insulated ones nothing below
the head."""
SMALL_BUCKET = 256  # elements; the largest parameter has 512, all together 2,006
BUCKETS = (deepspeed.BUCKET_ELEMENTS, plain.BUCKET_ELEMENTS)
UNITS = 4  # parts a micro-batch is cut into over the ranks; sums over them must not depend on who had which


class Toy(nn.Module):
    """A shared trunk, a head and a writer on it, a vision branch that `la` does not reach, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)  # with 0 a weight comes so near a border of bf16 that an order of fp32 sums decides it
        self.vision = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 8))
        self.embed = nn.Linear(5, 8)
        self.trunk = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 8))
        self.head = nn.Linear(8, 3)
        self.writer = nn.Linear(8, 3)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.register_buffer("scale", torch.full((8,), 1.5))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embed(batch.state_BS)
        if batch.kind != "la":
            x = x + self.vision(batch.noise_BTA)
        x = self.trunk(self.frozen(x * self.scale))
        if batch.kind == INSULATED:
            x = x.detach()
        error = (self.writer if batch.kind == "text" else self.head)(x).float() - batch.actions_BTA
        return error.square().sum(), torch.tensor(float(error.numel()))


def batch(kind: Any, seed: int) -> Batch:
    """Two rows; the fields that the toy reads."""
    draw = torch.Generator().manual_seed(seed)
    state, vision, target = (torch.randn(2, width, generator=draw) for width in (5, 6, 3))
    ids, none = torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    return Batch(
        kind,
        ids,
        ids > 0,
        None,
        None,
        state,
        none,
        3 * target,
        none,
        vision,
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int64),
        ("a", "b"),
    )


def step_batches(step: int, rank: int, size: int) -> list[Batch]:
    own = range(rank * UNITS // size, (rank + 1) * UNITS // size)
    kinds = PATTERNS[step % len(PATTERNS)]
    return [batch(kind, 1000 * step + 10 * place + unit) for place, kind in enumerate(kinds) for unit in own]


def loss_of(squared_error: torch.Tensor, step: int, rank: int) -> torch.Tensor:
    """One rank alone meets a NaN in step BAD_STEP."""
    return squared_error / 24 * (float("nan") if step == BAD_STEP and rank == 0 else 1.0)


def reference(bf16: bool) -> tuple[dict, dict, list[float]]:
    """Bare torch, one process, all the data: parameters and their averages, moments and norms."""
    toy = Toy()
    named = {name: p for name, p in toy.named_parameters() if p.requires_grad}
    decayed = {name: name.endswith("weight") and p.ndim > 1 for name, p in named.items()}
    groups = [
        {
            "params": [p for name, p in named.items() if decayed[name] == wanted and name.startswith(OWN) == own],
            "weight_decay": DECAY * wanted,
            "lr": OWN_LR if own else LR,
        }
        for wanted in (True, False)
        for own in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    norms, updates = [], 0
    averages = {name: p.detach().clone() for name, p in named.items()}
    for step in range(STEPS):
        for parameter in named.values():
            parameter.grad = torch.zeros_like(parameter)
        for item in step_batches(step, 0, 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                squared_error, _ = toy(item)
            loss_of(squared_error, step, 0).backward()
        norms.append(float(nn.utils.clip_grad_norm_(named.values(), CLIP)))
        if step != BAD_STEP:
            optimizer.step()
            updates += 1
            kept = min(EMA_DECAY, (1 + updates) / (10 + updates))
            for name, p in named.items():
                averages[name] = kept * averages[name] + (1 - kept) * p.detach()
    moments = {
        name: [optimizer.state[p][key].clone() for key in ("exp_avg", "exp_avg_sq")] for name, p in named.items()
    }
    assert all((averages[name] - p).abs().max() > 1e-3 for name, p in named.items())
    weights = {name: value.clone() for name, value in toy.state_dict().items()}
    return weights | averages_of(averages.items()), moments, norms


def config_of(folder: Path, name: str, stage: int, precision: str) -> TrainConfig:
    config = TrainConfig(
        run=RunConfig(dir=str(folder / f"{name}-{stage}-{precision}")),
        engine=EngineConfig(name=name, zero_stage=stage, precision=precision, timeout_s=WAIT_S),
        stages={"only": StageConfig(steps=STEPS)},
    )
    config.optim.clip_norm, config.optim.ema_decay = CLIP, EMA_DECAY
    return config


def advance(built: Engine, world: World, first: int, last: int) -> list[float]:
    norms = []
    for step in range(first, last):
        items = step_batches(step, world.rank, world.size)
        for number, item in enumerate(items):
            squared_error, _ = built.forward(item)
            built.backward(loss_of(squared_error, step, world.rank), last=number == len(items) - 1)
        norms.append(float(built.step(RATES)))
    return norms


def outcome(built: Engine) -> tuple[dict, dict]:
    weights = {name: value.detach().clone() for name, value in built.weights(NAMES)}
    weights |= averages_of(built.averages())
    return weights, {name: [value.clone() for value in values] for name, *values in built.moments()}


def averages_of(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As entries beside the weights."""
    return {f"average of {name}": value.clone() for name, value in named}


def differences(found: tuple[dict, dict], wanted: tuple[dict, dict]) -> dict[str, float]:
    """weights: largest difference. moments: largest difference relative to the largest moment of that tensor."""
    (weights, moments), (weights_0, moments_0) = found, wanted
    assert weights.keys() == weights_0.keys()
    assert moments.keys() == moments_0.keys()
    return {
        "weights": worst((weights[name] - weights_0[name]).abs().max() for name in weights),
        "moments": worst(
            (a - b).abs().max() / b.abs().max()
            for name in moments
            for a, b in zip(moments[name], moments_0[name], strict=True)
        ),
    }


def worst(values: Iterable[torch.Tensor]) -> float:
    """The largest on any rank; NaN if one is."""
    own = float(torch.stack(list(values)).max())
    return float(torch.tensor(dist.gathered(own)).max())


NAMES = tuple(Toy().state_dict())
RULES, RATES = Rules(DECAY, {OWN: {name for name in NAMES if name.startswith(OWN)}}), {OTHERS: LR, OWN: OWN_LR}
IDENTITY = Identity("policy", {}, {}, NAMES, {}, (), {}, {}, {})


def all_engines(folder: Path, world: World) -> dict:
    report = {}
    for precision in ("fp32", "bf16"):
        weights, moments, norms_0 = reference(precision == "bf16")
        saved = []
        for name, stage in ENGINES:
            config = config_of(folder, name, stage, precision)
            built = build.build(Toy(), config, RULES, world)
            norms = advance(built, world, 0, HALF)
            checkpoint.save(config, built, IDENTITY, Position("only", HALF, HALF), 0, world)
            saved.append(Path(config.run.dir) / "checkpoints" / f"step_{HALF:08d}")
            norms += advance(built, world, HALF, STEPS)
            found = outcome(built)
            first = next(iter(found[0].values())).double().sum()
            report[f"{name}-{stage}-{precision}"] = {
                **differences(found, (weights, moments)),
                "norms": [norms, norms_0],
                "updates": built.updates(),
                "masters": sorted({str(tensor.dtype) for tensor in built.masters()}),
                "rank_sums": dist.gathered(float(first)),
            }
            built.close()
        # Each engine goes on from what its neighbour in the list saved, with buckets that are full several times a step
        # and smaller than the largest parameter, as at full size.
        deepspeed.BUCKET_ELEMENTS = plain.BUCKET_ELEMENTS = SMALL_BUCKET
        for (name, stage), source in zip(ENGINES, [saved[-1], *saved[:-1]], strict=True):
            toy = Toy()
            checkpoint.load_weights(toy, source, own=True)
            built = build.build(toy, config_of(folder, name, stage, precision), RULES, world)
            checkpoint.load_training(built, source)
            checkpoint.load_averages(built, source)
            advance(built, world, HALF, STEPS)
            report[f"{name}-{stage}-{precision} from {source.parent.parent.name}"] = {
                **differences(outcome(built), (weights, moments)),
                "updates": built.updates(),
            }
            built.close()
        deepspeed.BUCKET_ELEMENTS, plain.BUCKET_ELEMENTS = BUCKETS
    from deepspeed.utils import groups  # its import waits for the environment that the engine has made

    report["timeouts"] = [timeout_s(group) for group in (None, groups._get_data_parallel_group())]
    return report


def timeout_s(group: torch.distributed.ProcessGroup | None) -> float:
    """What a collective of a process group (None: the run's own) waits for the other ranks."""
    own = group or torch.distributed.group.WORLD
    return own._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def resume_on_one_rank(folder: Path, world: World) -> dict:
    weights, moments, _ = reference(False)
    report = {}
    for name, stage in ENGINES:
        config = config_of(folder, name, stage, "fp32")
        source = Path(config.run.dir) / "checkpoints" / f"step_{HALF:08d}"
        toy = Toy()
        checkpoint.load_weights(toy, source, own=True)
        built = build.build(toy, config, RULES, world)
        checkpoint.load_training(built, source)
        checkpoint.load_averages(built, source)
        advance(built, world, HALF, STEPS)
        report[f"{name}-{stage}"] = differences(outcome(built), (weights, moments))
        built.close()
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, command = Path(sys.argv[1]), sys.argv[2]
    here = dist.start(WAIT_S)
    result = all_engines(target, here) if command == "all" else resume_on_one_rank(target, here)
    if here.is_main:
        (target / f"{command}.json").write_text(json.dumps(result))
    dist.stop()
