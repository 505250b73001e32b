"""What a run says about itself: meters that wait on the device, and sinks that write one record now and then.

A meter adds without a host sync; `Meters.collect` does one reduction over ranks and one sync, when a line is logged.
`metrics.jsonl` is always written and a resumed run cuts it back to its step, so that no step appears twice. TensorBoard
and W&B are imported here only, when asked for.
"""

from __future__ import annotations

import json
import math
import os
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from la4vla import manifest
from la4vla.config import TrainConfig
from la4vla.train import disk
from la4vla.train.dist import World, max_over_ranks, sum_over_ranks
from la4vla.types import UserError

Reduce = Literal["mean", "sum", "max"]
Record = dict[str, Any]


class Meters:
    """Named numbers gathered between two log lines. reductions: how ranks and additions become one number.

    mean: sum of values / sum of weights, over ranks and additions. sum: over both. max: the largest rank's sum
    (timings: the straggler counts).
    """

    def __init__(self, world: World, reductions: dict[str, Reduce]) -> None:
        self._world = world
        self._reductions = reductions
        self._names = list(reductions)
        self._reset()

    def add(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        row = self._totals[self._names.index(name)]
        row[0] += value
        row[1] += weight

    def collect(self) -> dict[str, float]:
        """The numbers since the last call, over all ranks; starts anew. Collective; the only host sync. A mean of
        nothing is NaN."""
        sums = sum_over_ranks(self._totals.clone())
        largest = max_over_ranks(self._totals)
        result = {}
        for name, (value, weight), (top, _) in zip(self._names, sums.tolist(), largest.tolist(), strict=True):
            reduce = self._reductions[name]
            if reduce == "mean":
                result[name] = value / weight if weight else math.nan
            else:
                result[name] = value if reduce == "sum" else top
        self._reset()
        return result

    def _reset(self) -> None:
        self._totals = torch.zeros(len(self._names), 2, dtype=torch.float64, device=self._world.device)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process since its start: of the GPU if there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Sink(Protocol):
    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


def open_sinks(config: TrainConfig, resumed_step: int) -> list[Sink]:
    """The sinks a config asks for; rank 0 only. Raises UserError when a package is missing."""
    sinks: list[Sink] = [JsonLines(Path(config.run.dir) / manifest.METRICS, resumed_step)]
    if config.log.tensorboard:
        sinks.append(TensorBoard(config, resumed_step))
    if config.log.wandb_project:
        sinks.append(WandB(config))
    return sinks


class JsonLines:
    """One JSON object a line, unbuffered. Numbers that are not finite are written as null."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        kept = [line for step, line in _rows(path) if step <= resumed_step]
        new = path.with_suffix(".new")
        self._path = path
        with disk.guarded(path, "a metric"):
            new.write_bytes(b"".join(line + b"\n" for line in kept))
            os.replace(new, path)
        self._file = path.open("ab", buffering=0)  # a buffer that a full disk did not take fails once more at close

    def write(self, record: Record) -> None:
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        line = (json.dumps(finite) + "\n").encode()
        with disk.guarded(self._path, "a metric"):
            while line:
                line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()


def _rows(path: Path) -> list[tuple[int, bytes]]:
    """(step, line) of the whole lines before the first that cannot be read. A kill cuts the last line, which is dropped
    in silence; a machine that goes down leaves zeros or half a line within, where the file is cut, and that is said."""
    if not path.is_file():
        return []
    rows: list[tuple[int, bytes]] = []
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
    for number, line in enumerate(lines, start=1):
        step = _step(line)
        if step is None:
            dropped = len(lines) - number
            tqdm.write(
                f"{path}: line {number} cannot be read; the file is cut there ({dropped} lines behind it dropped)"
            )
            break
        rows.append((step, line))
    return rows


def _step(line: bytes) -> int | None:
    """None for a line that is no record."""
    try:
        record = json.loads(line)
    except ValueError:  # no JSON, or no text at all
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) else None


class TensorBoard:
    def __init__(self, config: TrainConfig, resumed_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise UserError("log.tensorboard needs tensorboard; run: pip install 'la4vla[tensorboard]'.") from error
        self._writer = SummaryWriter(str(Path(config.run.dir) / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if isinstance(value, float | int) and key != "step":
                self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    def __init__(self, config: TrainConfig) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise UserError("log.wandb_project needs wandb; run: pip install 'la4vla[wandb]'.") from error
        identity = Path(config.run.dir) / "wandb_id"
        self._run = wandb.init(
            project=config.log.wandb_project,
            dir=config.run.dir,
            id=identity.read_text() if identity.is_file() else None,
            resume="allow",
            config=asdict(config),
        )
        with disk.guarded(identity, "the id of the W&B run"):
            identity.write_text(self._run.id)

    def write(self, record: Record) -> None:
        self._run.log(record, step=record["step"])

    def close(self) -> None:
        self._run.finish()
