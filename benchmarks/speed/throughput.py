"""Measures how fast the model trains and acts, against the same model fed the released layout, and the loader alone.

    python -m benchmarks.speed.throughput --preset tiny --device cpu --batch 32
    python -m benchmarks.speed.throughput --preset la4vla_1b --device cuda --batch 32 --precision bf16 --checkpointing

Layouts, all through the same weights and the same `Policy`:
    la             the instruction alone; language model and head train (FACTS 4.1, stage 2)
    released la    what the release feeds for an LA sample: three image slots, every image through the (frozen) vision
                   tower, rows padded to `max_tokens` positions; language model and head train
    vla            the views that exist, no padding; everything trains
    released vla   always three image slots, rows padded to `max_tokens` positions; everything trains
A row's cost depends on its shape alone, so token ids and pixels are random. Time is the median of calls after a
warm-up. la4vla/model/flops.py counts operations and MFU. MFU's numerator leaves out recomputation; on a CPU its
denominator is a measured matrix product.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.speed import loader_throughput
from benchmarks.speed.layouts import Layout, layouts, make_batch
from la4vla import __version__
from la4vla.config import FlowConfig, ModelConfig
from la4vla.model import flops, flow, freeze
from la4vla.model.policy import Policy, build_policy
from la4vla.model.presets import PRESETS
from la4vla.shell import exit_status
from la4vla.types import UserError

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """What was measured of one layout.

    layout                  its name
    positions               length of a row
    images                  of a row
    train_samples_per_s     forward and backward
    forward_samples_per_s   forward alone
    train_operations        floating-point operations of one training sample
    mfu                     useful operations a second over the device's peak; 0: the peak is unknown
    calls                   that the training time is the median of
    """

    layout: str
    positions: int
    images: int
    train_samples_per_s: float
    forward_samples_per_s: float
    train_operations: float
    mfu: float
    calls: int


class Bench:
    """A policy on a device in a precision, and a stopwatch that waits for the device."""

    def __init__(self, policy: Policy, device: str, precision: str, seconds: float, clock: str) -> None:
        self.policy, self.device, self.precision, self.seconds = policy.to(device), device, precision, seconds
        self.clock = CLOCKS[clock]
        self.readout: str = policy.description["readout"]

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def time(self, call: Callable[[], object]) -> tuple[float, int]:
        """(median seconds, calls). The first call warms up and counts only if it already takes `seconds`."""
        spent = [self._once(call)]
        if spent[0] < self.seconds:
            spent = [self._once(call)]
        while sum(spent) < self.seconds:
            spent.append(self._once(call))
        return statistics.median(spent), len(spent)

    def _once(self, call: Callable[[], object]) -> float:
        self._wait()
        begin = self.clock()
        call()
        self._wait()
        return self.clock() - begin

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> float:
        """The device's peak in operations a second; 0: unknown."""
        if self.device == "cuda":
            return flops.peak_bf16(torch.cuda.get_device_name()) if self.precision == "bf16" else 0.0
        side = 1024
        matrix = torch.ones(side, side, dtype=torch.bfloat16 if self.precision == "bf16" else torch.float32)
        return 2 * side**3 / min(self._once(lambda: matrix @ matrix) for _ in range(8))

    def train(self, layout: Layout, rows: int, checkpointing: bool, peak: float) -> Timing:
        freeze.set_trainable(self.policy, layout.trained)
        self.policy.train()
        batch = make_batch(self.policy.size, layout, rows).to(self.device)

        def step() -> None:
            with self.autocast():
                total, count = self.policy(batch)
            (total / count).backward()
            self.policy.zero_grad(set_to_none=True)

        def forward() -> None:
            with torch.no_grad(), self.autocast():
                self.policy(batch)

        step_s, calls = self.time(step)
        forward_s, _ = self.time(forward)
        cost = flops.forward(self.policy.size, self.readout, layout.images, layout.positions)
        useful = flops.training(cost, layout.trained)
        return Timing(
            layout=layout.name,
            positions=layout.positions,
            images=layout.images,
            train_samples_per_s=rows / step_s,
            forward_samples_per_s=rows / forward_s,
            train_operations=flops.training(cost, layout.trained, checkpointing),
            mfu=useful * rows / step_s / peak if peak else 0.0,
            calls=calls,
        )

    def sampler(self, layout: Layout, flow_steps: int) -> dict[str, float]:
        """Milliseconds of one chunk at batch 1, in this benchmark's precision (a served policy computes in fp32).

        context: the backbone. flow_cached, flow_uncached: the flow, with the context's keys and values projected once a
        chunk or once a step. chunk, chunk_uncached: their sums.
        """
        policy = self.policy.eval()
        batch = make_batch(policy.size, layout, 1).to(self.device)
        dims = flow.present_dims(batch.action_mask_BTA)
        with torch.no_grad(), self.autocast():
            context, key_mask = policy.backbone(batch)

            def encode_context() -> Any:
                return policy.head.encode_context(
                    context, key_mask, batch.state_BS, batch.state_mask_BS, batch.embodiment_B
                )

            def cached() -> None:
                cache = encode_context()
                flow.euler(lambda x, t: policy.head.velocity(x, t, cache), batch.noise_BTA, dims, flow_steps)

            def uncached() -> None:
                flow.euler(lambda x, t: policy.head.velocity(x, t, encode_context()), batch.noise_BTA, dims, flow_steps)

        def alone(call: Callable[[], Any]) -> None:
            # One autocast region for each call: within a region, later calls would find the weights in bf16 already.
            with torch.no_grad(), self.autocast():
                call()

        calls = {"context": lambda: policy.backbone(batch), "flow_cached": cached, "flow_uncached": uncached}
        spent = {name: 1e3 * self.time(partial(alone, call))[0] for name, call in calls.items()}
        spent["chunk"] = spent["context"] + spent["flow_cached"]
        spent["chunk_uncached"] = spent["context"] + spent["flow_uncached"]
        return spent


def ratios(timings: Sequence[Timing]) -> dict[str, float]:
    """Our layouts over the released ones, where both were timed."""
    by_name = {timing.layout: timing for timing in timings}
    factors = {}
    for kind in ("la", "vla"):
        if {kind, f"released {kind}"} <= set(by_name):
            ours, released = by_name[kind], by_name[f"released {kind}"]
            factors[f"{kind} training"] = ours.train_samples_per_s / released.train_samples_per_s
            factors[f"{kind} forward"] = ours.forward_samples_per_s / released.forward_samples_per_s
            factors[f"{kind} operations"] = released.train_operations / ours.train_operations
    return factors


def versions(device: str) -> dict[str, str]:
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} cpu"
    return {
        "la4vla": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": hardware,
        "threads": str(torch.get_num_threads()),
    }


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.throughput",
        allow_abbrev=False,
        description="Training, sampling and loading speed.",
    )
    top.add_argument("--preset", choices=PRESETS, default="tiny")
    top.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    top.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast over fp32 weights")
    top.add_argument("--batch", type=int, default=2)
    top.add_argument("--views", type=int, default=1, help="views of a vla row; the released layout always has three")
    top.add_argument(
        "--instruction-tokens",
        type=int,
        default=20,  # the release's LA rows have about 40 useful tokens (FACTS 5.1 B6), 21 of them around images
    )
    top.add_argument("--readout", choices=("per_token", "flatten"), default=ModelConfig.readout)
    top.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"), default=ModelConfig.attention)
    top.add_argument("--flow-steps", type=int, default=FlowConfig.steps)
    top.add_argument(
        "--checkpointing", action="store_true", help="recompute vision and language blocks in the backward pass"
    )
    top.add_argument("--layouts", nargs="+", choices=("la", "released la", "vla", "released vla"), help="only these")
    top.add_argument("--seconds", type=float, default=5.0, help="spent on each number, after a warm-up call")
    top.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor seconds, for a machine shared with others"
    )
    top.add_argument("--no-sampler", action="store_true")
    top.add_argument("--no-loader", action="store_true")
    top.add_argument("--json", type=Path, help="also write everything here")
    return top


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the options ask for, JSON-able. Raises UserError for options that do not fit this machine."""
    if options.clock == "cpu" and (options.device != "cpu" or torch.get_num_threads() != 1):
        raise UserError("--clock cpu counts the seconds of one CPU thread; use --device cpu and OMP_NUM_THREADS=1.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu.")
    config = ModelConfig(preset=options.preset, readout=options.readout, attention=options.attention)
    policy = build_policy(config, seed=0)
    if options.checkpointing:
        policy.enable_gradient_checkpointing()
    bench = Bench(policy, options.device, options.precision, options.seconds, options.clock)
    peak = bench.peak()
    chosen = [
        layout
        for layout in layouts(policy.size, options.instruction_tokens, options.views)
        if not options.layouts or layout.name in options.layouts
    ]
    timings = []
    for layout in chosen:
        print(f"timing {layout.name} ...", file=sys.stderr, flush=True)
        try:
            timings.append(bench.train(layout, options.batch, options.checkpointing, peak))
        except torch.OutOfMemoryError:
            print(f"{layout.name}: out of memory at batch {options.batch}; left out", file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
    sampled = [] if options.no_sampler else [layout for layout in chosen if layout.name != "released la"]
    return {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "versions": versions(options.device),
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "peak_operations_per_s": peak,
        "training": [asdict(timing) for timing in timings],
        "ratios": ratios(timings),
        "sampler_ms": {layout.name: bench.sampler(layout, options.flow_steps) for layout in sampled},
        "loader": {} if options.no_loader else loader_throughput.measure(options.preset, options.seconds),
    }


def summary_table(result: dict[str, Any]) -> str:
    """What the command prints of `measure`'s result."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in result["versions"].items()),
        f"{result['settings']['preset']}: {result['parameters']:,} parameters, batch {result['settings']['batch']}, "
        f"{result['settings']['precision']}, {result['settings']['clock']} clock; "
        f"peak {result['peak_operations_per_s'] / 1e12:.2f} T/s (0: unknown)",
        "",
        f"{'layout':<14}{'positions':>10}{'images':>8}{'train/s':>11}{'forward/s':>11}{'TF/sample':>11}{'MFU':>7}",
    ]
    for row in result["training"]:
        lines.append(
            f"{row['layout']:<14}{row['positions']:>10}{row['images']:>8}{row['train_samples_per_s']:>11.3f}"
            f"{row['forward_samples_per_s']:>11.3f}{row['train_operations'] / 1e12:>11.4f}{row['mfu']:>7.1%}"
        )
    lines += ["", *(f"{name:<16}{value:>8.1f} x the released layout" for name, value in result["ratios"].items())]
    for name, times in result["sampler_ms"].items():
        flow_times = f"{times['flow_cached']:.1f}, projecting the context every step {times['flow_uncached']:.1f}"
        lines.append(f"chunk of {name}: {times['chunk']:.1f} ms = context {times['context']:.1f} + flow {flow_times}")
    lines += [f"loader, {kind}: {rate:,.0f} samples/s" for kind, rate in result["loader"].items()]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(list(arguments))
    result = measure(options)
    print(summary_table(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
