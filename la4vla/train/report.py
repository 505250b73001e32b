"""One log line: what is measured between two of them, and how it is told (metrics.jsonl, other sinks, progress bar)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from la4vla.config import TrainConfig
from la4vla.data.mixture import Schedule
from la4vla.model import flops
from la4vla.train.checkpoint import Position
from la4vla.train.dist import World
from la4vla.train.learners.learner import Learner, Step
from la4vla.train.metrics import Meters, Record, Reduce, Sink, open_sinks, peak_memory_gb


@dataclass(frozen=True)
class StepResult:
    """What a step leaves on the device, all 0-d and unread.

    losses  a micro-batch each: kind, weight in the step's loss, and this rank's part of the kind's mean loss (over
            micro-batches and ranks the parts add up to it)
    norm    global gradient norm before clipping
    votes   ranks that ask to stop
    rates   learning rates of the update, as optim.rates_at
    """

    losses: tuple[tuple[str, float, Tensor], ...]
    norm: Tensor
    votes: Tensor
    rates: Mapping[str, float]


class Report:
    def __init__(self, config: TrainConfig, world: World, learner: Learner, position: Position) -> None:
        self._world, self._learner = world, learner
        self._reductions: dict[str, Reduce] = {
            "loss": "mean",
            **{f"loss/{kind}": "mean" for kind in learner.kinds},
            "grad_norm": "mean",
            "wait_s": "max",
            "memory_gb": "max",
            "bad_samples": "sum",
        }
        self._meters = Meters(world, self._reductions)
        self._sinks: list[Sink] = open_sinks(config, position.step) if world.is_main else []
        self._samples = _samples_before(config, position)
        self._bar = tqdm(
            total=sum(stage.steps for stage in config.stages.values()),
            initial=position.step,
            unit="step",
            disable=not world.is_main,
            dynamic_ncols=True,
        )
        self._peak = _peak_flops(world.device, config.engine.precision)
        self._rates: Mapping[str, float] = {}
        self._fresh()

    def add(self, data: Step, result: StepResult, module: nn.Module) -> None:
        """Take in one step, without a sync. Skipped steps count in no loss and no norm."""
        finite = torch.isfinite(result.norm)
        once = finite / self._world.size  # a mean over ranks' sums: every step weighs 1 in total
        loss = torch.zeros((), device=self._world.device)
        per_kind: dict[str, Tensor] = {}
        for kind, weight, value in result.losses:
            loss = loss + weight * value
            per_kind[kind] = per_kind.get(kind, torch.zeros_like(loss)) + value
        for name, value in [("loss", loss), *((f"loss/{kind}", value) for kind, value in per_kind.items())]:
            self._meters.add(name, torch.where(finite, value, 0.0), once)
        self._meters.add("grad_norm", torch.where(finite, result.norm, 0.0), finite)
        self._meters.add("wait_s", data.wait_s)
        self._samples.update(data.samples)
        self._bad_samples = data.bad_samples
        self._steps_samples += sum(data.samples.values())
        if self._peak:
            self._flops += self._world.size * self._learner.flops(module, data)
        self._rates = result.rates
        self._bar.update()

    def note(self, measured: Record) -> None:
        """Numbers for the next record."""
        self._noted |= measured

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: validation, a checkpoint, the beginning of a stage. Waits for the device, whose
        queue still holds training."""
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def write(self, position: Position, skipped_steps: int) -> None:
        """Reduce over ranks (one sync) and tell everybody. Collective. skipped_steps: of the run so far."""
        self._meters.add("memory_gb", peak_memory_gb(self._world.device))
        self._meters.add("bad_samples", self._bad_samples)
        numbers = self._meters.collect()
        seconds = time.perf_counter() - self._since
        record: Record = {
            "step": position.step,
            "stage": position.stage,
            "stage_step": position.stage_step,
            **{name: numbers[name] for name in self._reductions if name.startswith("loss") or name == "grad_norm"},
            **{f"lr/{group}" if group else "lr": rate for group, rate in self._rates.items()},
            "samples_per_s": self._steps_samples / seconds,
            "data_wait_ratio": numbers["wait_s"] / seconds,
            "memory_gb": numbers["memory_gb"],
            "skipped_steps": skipped_steps,
            "bad_samples": int(numbers["bad_samples"]),
            **{f"samples/{source}": count for source, count in sorted(self._samples.items())},
            **self._noted,
        }
        if self._peak:
            record["mfu"] = self._flops / seconds / (self._peak * self._world.size)
        for sink in self._sinks:
            sink.write(record)
        self._bar.set_postfix_str(
            f"{position.stage} loss {record['loss']:.4f} {record['samples_per_s']:.0f} samples/s "
            f"wait {100 * record['data_wait_ratio']:.0f}%"
        )
        self._fresh()

    def close(self) -> None:
        self._bar.close()
        for sink in self._sinks:
            sink.close()

    def _fresh(self) -> None:
        self._since = time.perf_counter()
        self._steps_samples = 0
        self._bad_samples = 0
        self._flops = 0.0
        self._noted: Record = {}


def _samples_before(config: TrainConfig, position: Position) -> Counter[str]:
    """source -> samples that the run took before a position."""
    taken: Counter[str] = Counter()
    for draw in Schedule(config).draws(next(iter(config.stages)), 0):
        if draw.step >= position.step:
            break
        taken.update({source: count for source, (_, count) in draw.takes.items()})
    return taken


def _peak_flops(device: torch.device, precision: str) -> float:
    """0 where it is not known."""
    on_gpu = device.type == "cuda" and precision == "bf16"
    return flops.peak_bf16(torch.cuda.get_device_name(device)) if on_gpu else 0.0
