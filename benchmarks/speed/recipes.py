"""What a step of the full-size recipes takes: memory and operations, computed from the sizes; nothing is run.

    python -m benchmarks.speed.recipes
    python -m benchmarks.speed.recipes --gpus 32 --instruction-tokens 40

Prints the README's table, a row for every stage of every recipe in configs/la4vla_1b. Its last column is for times that
are measured, and empty here.

Memory is what the engine keeps between two steps, 4 bytes a number, but 2 of what engine.compute=frozen_bf16 freezes:
    one GPU, plain   all weights, and a gradient and Adam's two moments of every weight that trains
    a GPU, ZeRO 2    all weights, and a GPU's part of the gradients, the moments and the masters, which DeepSpeed copies
with a number more for every weight that trains where optim.ema_decay is set. Adapters are weights.
Left out are activations, which grow with the micro-batch and the row, the bf16 copies that autocast makes, the engine's
buckets (0.2 GB), the images, and what CUDA takes for itself.

Operations are those of la4vla/model/flops.py, forward, backward and what gradient checkpointing computes again. A row
has the views of its data (VIEWS), an instruction of `--instruction-tokens` and no padding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from la4vla.config import LORA, LoraConfig, StageConfig, TrainConfig, load
from la4vla.model import flops, freeze, lora
from la4vla.model.policy import Policy
from la4vla.model.presets import ModelSize, size_of
from la4vla.shell import exit_status
from la4vla.types import UserError

RECIPES = Path("configs/la4vla_1b")
VIEWS = {"data/la33k/vla": 3, "data/metaworld/task": 1, "data/libero_full/task": 2}
"""Views of the shards that the recipes name; a recipe shows all that its folder has. DROID has three cameras, MetaWorld
is recorded by one, LIBERO's files hold two."""
TOKENS_AROUND_AN_IMAGE = 7  # `Image-1: <img>`, `</img>`, newline
FP32, BF16 = 4, 2  # bytes
HEAD = (
    "| recipe, stage | trains, M | GB, one GPU | GB, each of {gpus} GPUs | samples a step | images + tokens a row "
    "| TFLOP a sample | PFLOP a step | measured s a step |"
)


@dataclass(frozen=True)
class Cost:
    """One stage of one recipe.

    parameters                numbers in the model, adapters among them
    trained                   of them, those that a step changes
    frozen_bytes              of each of the others
    averaged                  whether a moving average of what trains is kept
    samples                   of a step, over all GPUs
    rows                      what samples look like, a kind each
    sample_flops, step_flops  operations, means over the mixture
    """

    recipe: str
    stage: str
    parameters: int
    trained: int
    frozen_bytes: int
    averaged: bool
    samples: int
    rows: tuple[str, ...]
    sample_flops: float

    @property
    def step_flops(self) -> float:
        return self.samples * self.sample_flops

    def gigabytes(self, gpus: int) -> float:
        """Memory of one GPU between two steps: 1 runs the plain engine, more share by ZeRO 2."""
        weights = FP32 * self.trained + self.frozen_bytes * (self.parameters - self.trained)
        beside = (3 if gpus == 1 else 4) + self.averaged  # numbers beside each that trains
        return (weights + FP32 * beside * self.trained / gpus) / 1e9

    def line(self, gpus: int) -> str:
        cells = (
            f"`{self.recipe}`, {self.stage}",
            f"{self.trained / 1e6:.0f}",
            f"{self.gigabytes(1):.1f}",
            f"{self.gigabytes(gpus):.1f}",
            f"{self.samples:,}",
            ", ".join(self.rows),
            f"{self.sample_flops / 1e12:.3g}",
            f"{self.step_flops / 1e15:.3g}",
            "",
        )
        return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def costs(instruction_tokens: int) -> Iterator[Cost]:
    """Every stage of every full-size recipe, by the recipe's name. Reads configs/ of the working directory.

    Raises UserError where the recipes are not there, or a row is longer than the model takes.
    """
    files = [path for path in sorted(RECIPES.glob("*.yaml")) if path.stem != "common" and "construct" not in path.stem]
    if not files:
        raise UserError(f"{RECIPES}: no recipes; start this command in the folder that holds configs/.")
    for path in files:
        config: TrainConfig = load(path, ["run.init_from=another run"], TrainConfig)
        size = size_of(config.model)
        groups = parameters(size, config.model.readout, config.model.lora)
        frozen = BF16 if config.engine.compute == "frozen_bf16" else FP32
        for name, stage in config.stages.items():
            rows, sample_flops = _mean_sample(config, stage, size, instruction_tokens)
            trained = sum(groups[group] for group in stage.train)
            yield Cost(
                *(path.stem, name, sum(groups.values()), trained, frozen, config.optim.ema_decay > 0),
                *(stage.global_batch, rows, sample_flops),
            )


def parameters(size: ModelSize, readout: str, adapters: LoraConfig) -> dict[str, int]:
    """Module group -> how many numbers it holds. Allocates no weight; only adapters, which are drawn."""
    with torch.device("meta"):
        policy = Policy(size, readout, "sdpa", dropout=0.0, writes=False, embodiments=())
    if adapters.rank:
        lora.inject(policy, adapters, seed=0)
    return {
        group: sum(parameter.numel() for parameter in members.values())
        for group, members in freeze.group_parameters(policy).items()
    }


def _mean_sample(
    config: TrainConfig, stage: StageConfig, size: ModelSize, instruction_tokens: int
) -> tuple[tuple[str, ...], float]:
    """What the samples of a stage look like, and the operations of one, the mean over its mixture."""
    rows, mean = [], 0.0
    for name, share in stage.mixture.items():
        source = config.data.sources[name]
        images = 0 if source.kind == "la" else VIEWS[source.path]
        tokens = instruction_tokens + images * (size.image_tokens + TOKENS_AROUND_AN_IMAGE)
        if tokens > size.max_tokens:
            raise UserError(f"rows of {tokens} tokens, the model takes {size.max_tokens}; use fewer of them.")
        forward, added = flops.forward(size, config.model.readout, images, tokens), flops.NO_ADAPTERS
        if LORA in stage.train:
            added = flops.adapters(size, config.model.readout, config.model.lora, images, tokens)
        one = flops.training(forward, stage.train, config.engine.gradient_checkpointing, added)
        rows.append(f"{images} + {tokens}")
        mean += share / sum(stage.mixture.values()) * one
    return tuple(rows), mean


def table(gpus: int, instruction_tokens: int) -> str:
    """Markdown, the README's."""
    head = HEAD.format(gpus=gpus)
    rule = "|---|" + "---:|" * (head.count("|") - 2)
    return "\n".join([head, rule, *(cost.line(gpus) for cost in costs(instruction_tokens))])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.speed.recipes", allow_abbrev=False)
    parser.add_argument("--gpus", type=int, default=8, help="that share gradients, moments and masters by ZeRO 2")
    parser.add_argument("--instruction-tokens", type=int, default=20, help="of a sentence")
    options = parser.parse_args(arguments)
    if options.gpus < 2 or options.instruction_tokens < 1:
        raise UserError("--gpus must be at least 2 (one GPU has a column of its own), --instruction-tokens at least 1.")
    print(table(options.gpus, options.instruction_tokens))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
