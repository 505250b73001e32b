"""Checkpoints: written so that no moment of a crash can hurt, read so that any number of ranks can go on.

`save` writes `checkpoints/step_XXXXXXXX.tmp`, syncs it to disk, marks it COMPLETE and renames it; only then are old
ones pruned. All ranks take part in gathering, rank 0 writes, and what goes wrong there is an error on every rank.
A folder without COMPLETE is a wreck: nobody reads or counts it, the next save or start removes it.
The files are those of manifest.py and know neither ranks nor engines: whole fp32 tensors by parameter name. The
masters are the weights (both engines train fp32 parameters), so training.safetensors holds only AdamW's moments and
its count of updates; their moving average, if there is one, has a file of its own. A run of adapters stores what
trained, and the identity of the weights that the adapters belong to.
Refuses: reading anything without COMPLETE, loading weights that do not fit, resuming under another config.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from la4vla import manifest
from la4vla.config import CheckpointConfig, TrainConfig
from la4vla.files import sha256
from la4vla.manifest import Checkpoint, Manifest, TrainedRobot
from la4vla.model.base import load_stored, some
from la4vla.train import disk, integrity
from la4vla.train.dist import World, log0, on_main
from la4vla.train.engines.engine import Engine
from la4vla.train.optim import MOMENTS
from la4vla.types import UserError, flat

MAY_CHANGE = (
    "run.dir",
    "run.resume",
    "run.init_from",
    "run.init_parts",
    "model.weights",
    "model.tokenizer",
    "model.base",
    "engine.name",
    "engine.zero_stage",
    "engine.gradient_checkpointing",
    "engine.max_skipped_steps",
    "engine.timeout_s",
    "checkpoint",
    "log",
    "validate",
    "data.decode_threads",
    "data.read_ahead",
    "data.max_bad_samples",
)
"""Keys, or beginnings of keys, that a resumed run may change: they change no sample and no update. Besides them the
micro-batches of stages, and the paths of sources: folders move, and `check_data` looks at what is in them. Weights and
tokenizer come from the checkpoint."""

UPDATES = "updates"


@dataclass(frozen=True)
class Identity:
    """What a checkpoint says beside its weights, so that it can be served: the learner's part of the manifest.

    learner     which one
    model       what rebuilds the module
    base        the weights that adapters belong to, or empty
    held        names in the module's state dict that are stored; all of them where `base` is empty
    input_spec  sizes of its input
    robots      those of its data
    text        what it is taught to write
    sources     source -> fingerprint of its data
    tokenizer   file name -> content
    """

    learner: Literal["policy", "vlm", "grounding"]
    model: dict[str, Any]
    base: dict[str, Any]
    held: tuple[str, ...]
    input_spec: dict[str, Any]
    robots: tuple[TrainedRobot, ...]
    text: dict[str, Any]
    sources: dict[str, str]
    tokenizer: dict[str, bytes]


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    stage       its present stage
    stage_step  finished steps of the stage
    step        finished steps of the run
    """

    stage: str
    stage_step: int
    step: int


def save(
    config: TrainConfig, engine: Engine, identity: Identity, position: Position, skipped_steps: int, world: World
) -> None:
    """Write a checkpoint and prune old ones. All ranks call it. Raises UserError (on all) when the disk is full.

    skipped_steps: of the run so far.
    """
    weights = {name: _host(tensor) for name, tensor in engine.weights(identity.held) if _kept(world)}
    training = {key: _host(tensor) for key, tensor in _moments(engine) if _kept(world)}
    averages = {name: _host(tensor) for name, tensor in engine.averages() if _kept(world)}
    files = {manifest.WEIGHTS: weights, manifest.TRAINING: training, manifest.EMA: averages}
    updates = engine.updates()
    on_main(world, lambda: _write(config, files, updates, identity, position, skipped_steps, world))


def start_clean(run_dir: Path, world: World) -> None:
    """Remove what a crash, or a hand, has left half-written or half-deleted. Rank 0 only."""
    for folder in sorted(run_dir.glob(manifest.STEPS)):
        _remove_wreck(folder, world)
    for wreck in run_dir.glob(f"{manifest.CHECKPOINTS}/*.tmp"):
        shutil.rmtree(wreck)


def load_weights(module: nn.Module, folder: Path, own: bool, from_base: Collection[str] = ()) -> None:
    """A checkpoint's weights into a module of the same sizes. own: the run goes on from it, else takes its weights.
    from_base: names that need not be stored, since the base of adapters gives them.

    Raises UserError naming what is missing or left over, and for a file that is no safetensors.
    """
    with integrity.curing(folder, own, manifest.WEIGHTS):
        stored = load_file(folder / manifest.WEIGHTS)
    load_stored(module, stored, folder, from_base)


def load_training(engine: Engine, folder: Path) -> None:
    """A checkpoint's optimizer state into an engine with the same trainable parameters, on any number of ranks.

    Raises UserError for state of other parameters and for a damaged file.
    """
    path = folder / manifest.TRAINING
    with integrity.curing(folder, True, manifest.TRAINING), safe_open(path, framework="pt") as file:
        names = {key.split("/", 1)[1] for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        trainable = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
        if names != trainable:
            raise UserError(
                f"{folder}: its optimizer state is for other parameters: missing {some(trainable - names)}, "
                f"unexpected {some(names - trainable)}; start a new run.dir from its weights, with run.init_from."
            )

        def read(name: str) -> tuple[Tensor, Tensor]:
            first, second = (file.get_tensor(f"{key}/{name}") for key in MOMENTS)
            return first, second

        engine.load_moments(read, int(file.metadata()[UPDATES]))


def load_averages(engine: Engine, folder: Path) -> None:
    """The moving averages of a checkpoint whose optimizer state `load_training` has loaded. Raises UserError for a
    damaged file."""
    with integrity.curing(folder, True, manifest.EMA), safe_open(folder / manifest.EMA, framework="pt") as file:
        engine.load_averages(file.get_tensor)


def check_resumable(checkpoint: Checkpoint, config: TrainConfig) -> None:
    """Raises UserError naming the first setting that differs from the run that wrote the checkpoint."""
    run_dir, written = checkpoint.folder.parent.parent, checkpoint.manifest.config
    then, now = flat(written), flat(asdict(config))
    for key in [*then, *(now.keys() - then.keys())]:
        if _may_change(key) or then.get(key) == now.get(key):
            continue
        raise UserError(
            f"{key} is {now.get(key, 'absent')}, the run in {run_dir} has {then.get(key, 'absent')}; set "
            "it back, or start a new run.dir (run.init_from takes over the weights)."
        )
    for name, before, here in _orders(written, asdict(config)):
        if before != here:
            raise UserError(f"{name} are in another order than in {run_dir}; put them back.")


def _orders(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[str]]]:
    """What must keep its order: a resumed run takes samples and gives views their slots by it."""
    yield "stages", list(then["stages"]), list(now["stages"])
    yield "data.sources", list(then["data"]["sources"]), list(now["data"]["sources"])
    for name, stage in now["stages"].items():
        yield f"stages.{name}.mixture", list(then["stages"][name]["mixture"]), list(stage["mixture"])


def check_data(checkpoint: Checkpoint, sources: Mapping[str, str]) -> None:
    """Raises UserError naming the first source whose fingerprint is not that of the run that wrote the checkpoint."""
    for name, then in checkpoint.manifest.sources.items():
        if sources.get(name) != then:
            raise UserError(
                f"data.sources.{name} holds other data than the run in {checkpoint.folder.parent.parent} began with; "
                "put it back or start a new run.dir."
            )


def _moments(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    for name, *values in engine.moments():
        for key, value in zip(MOMENTS, values, strict=True):
            yield f"{key}/{name}", value


def _kept(world: World) -> bool:
    """Only rank 0 holds what it gathers; the others only take part in gathering."""
    return world.is_main


def _host(tensor: Tensor) -> Tensor:
    """A private contiguous copy: ties become two tensors, which safetensors demands."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _write(
    config: TrainConfig,
    files: dict[str, dict[str, Tensor]],
    updates: int,
    identity: Identity,
    position: Position,
    skipped_steps: int,
    world: World,
) -> None:
    parent = Path(config.run.dir) / manifest.CHECKPOINTS
    kept = manifest.best(config.run.dir) if config.validate.patience else None
    final = parent / f"step_{position.step:08d}"
    folder = _tmp(final)
    if (final / manifest.COMPLETE).is_file():
        return  # a step is saved once: the run that goes on from it takes it as it is
    if final.is_dir():
        _remove_wreck(final, world)
    shutil.rmtree(folder, ignore_errors=True)
    prune(parent, config.checkpoint, kept)  # what a lower keep_last lets go makes room
    files = {name: tensors for name, tensors in files.items() if tensors or name != manifest.EMA}
    needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    needed += sum(len(data) for data in identity.tokenizer.values())
    try:
        with disk.guarded(parent, f"a checkpoint of {needed / disk.GB:.3f} GB"):
            (folder / manifest.TOKENIZER).mkdir(parents=True)
            disk.check_room(parent, needed)
            for name, tensors in files.items():
                about = {UPDATES: str(updates)} if name == manifest.TRAINING else None
                save_file(tensors, folder / name, metadata=about)
            for name, data in identity.tokenizer.items():
                (folder / manifest.TOKENIZER / name).write_bytes(data)
            _manifest(config, folder, identity, position, skipped_steps, world).write(folder)
            _sync(folder)
            (folder / manifest.COMPLETE).touch()
            _sync(folder)
    except (OSError, SafetensorError, UserError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    folder.rename(final)
    _sync_folder(parent)
    prune(parent, config.checkpoint, kept)


def prune(parent: Path, config: CheckpointConfig, best: Path | None = None) -> None:
    """Delete all but the newest `keep_last` complete ones, every `keep_every`-th, and the best. A kill leaves a .tmp,
    never half of one."""
    folders = sorted(path.parent for path in parent.parent.glob(f"{manifest.STEPS}/{manifest.COMPLETE}"))
    for folder in folders[: -config.keep_last]:
        regular = config.keep_every and manifest.step_of(folder) % config.keep_every == 0
        if regular or folder == best:
            continue
        shutil.rmtree(folder.rename(_tmp(folder)))


def _remove_wreck(folder: Path, world: World) -> None:
    """Remove a checkpoint's folder unless it is complete."""
    if (folder / manifest.COMPLETE).is_file():
        return
    log0(world, f"{folder}: not complete (no {manifest.COMPLETE} in it), removed")
    shutil.rmtree(_tmp(folder), ignore_errors=True)
    shutil.rmtree(folder.rename(_tmp(folder)))


def _tmp(folder: Path) -> Path:
    return folder.with_name(folder.name + ".tmp")


def _manifest(
    config: TrainConfig, folder: Path, identity: Identity, position: Position, skipped_steps: int, world: World
) -> Manifest:
    return Manifest(
        schema=manifest.SCHEMA_VERSION,
        stage=position.stage,
        stage_step=position.stage_step,
        step=position.step,
        skipped_steps=skipped_steps,
        config=asdict(config),
        learner=identity.learner,
        model=identity.model,
        base=identity.base,
        input_spec=identity.input_spec,
        robots=[asdict(robot) for robot in identity.robots],
        text=identity.text,
        sources=identity.sources,
        weights_sha256=sha256(folder / manifest.WEIGHTS),
        training_sha256=sha256(folder / manifest.TRAINING),
        ema_sha256=sha256(folder / manifest.EMA) if config.optim.ema_decay else "",
        tokenizer_sha256={name: sha256(folder / manifest.TOKENIZER / name) for name in identity.tokenizer},
        git_sha=_git_sha(),
        versions={
            "python": platform.python_version(),
            "device": device_name(world),
            **{name: metadata.version(name) for name in ("la4vla", "torch", "transformers", "peft", "deepspeed")},
        },
        world_size=world.size,
    )


def device_name(world: World) -> str:
    """`cpu`, or the GPU's own name."""
    return "cpu" if world.device.type == "cpu" else torch.cuda.get_device_name(world.device)


def _git_sha() -> str:
    """Commit of the installed code, or `unknown` outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _may_change(key: str) -> bool:
    if key.startswith("stages.") and key.endswith(".micro_batch"):
        return True
    if key.startswith("data.sources.") and key.endswith(".path"):
        return True
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)
