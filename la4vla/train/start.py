"""Before step 0: where a run stands, which weights it starts from, and what it tells the user first.

Order (only the first that applies): the newest complete checkpoint of this run; `run.init_from`; fresh weights.
Rank 0 looks and decides; the others go along, or say that they see another file system.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from la4vla import manifest
from la4vla.config import TrainConfig, to_yaml
from la4vla.files import locked
from la4vla.model.freeze import set_trainable
from la4vla.model.policy import Policy, build_policy, rebuild
from la4vla.train import checkpoint, disk
from la4vla.train.checkpoint import Position
from la4vla.train.dist import World, gathered, on_main
from la4vla.types import Batch, UserError

CONFIG = "config.yaml"
FIRST_BATCH = "first_batch.png"


@dataclass(frozen=True)
class Start:
    """position: where the run stands, told as the beginning of the next stage where one is finished.

    weights: checkpoint folder that gives the weights, or none. own: it is this run's, not another's.
    """

    position: Position
    weights: Path | None
    own: bool

    @property
    def inside_stage(self) -> bool:
        """Whether the checkpoint's optimizer goes on; a stage begins with a new one."""
        return self.own and self.position.stage_step > 0


@contextmanager
def only_run(config: TrainConfig, world: World) -> Iterator[None]:
    """Keeps other runs out of run.dir until the end of this one, however it ends. Raises UserError (on all)."""
    run_dir = Path(config.run.dir)
    taken = f"{run_dir}: another run is at work there; wait for it or end it, or choose another run.dir."
    with ExitStack() as held:

        def hold() -> None:
            with disk.guarded(run_dir, "a run"):
                held.enter_context(locked(run_dir / "lock", taken))

        on_main(world, hold)
        yield


def begin_run(config: TrainConfig, world: World) -> Start:
    """Where the run stands, agreed upon by all ranks; removes what a crash has left. Raises UserError (on all)."""

    def look() -> Start:
        checkpoint.start_clean(Path(config.run.dir), world)
        return find_start(config)

    return _agreed(config, on_main(world, look))


def begin_stage(config: TrainConfig, position: Position, world: World) -> Start:
    """From the checkpoint that ended the stage before, agreed upon by all ranks. Raises UserError (on all)."""

    def look() -> Start:
        folder = manifest.newest(config.run.dir)
        if folder is None or manifest.read(folder).step != position.step:
            raise UserError(
                f"{config.run.dir}: the checkpoint of step {position.step}, which ended a stage just now, is gone; "
                "leave checkpoints of a running run alone, and start again: the run resumes from its newest one."
            )
        return Start(position, folder, own=True)

    return _agreed(config, on_main(world, look))


def _agreed(config: TrainConfig, start: Start) -> Start:
    """`start` if every rank sees the checkpoint that rank 0 chose (and no other where it found none). Collective."""
    seen = ""
    if start.weights is not None and (start.weights / manifest.COMPLETE).is_file():
        seen = manifest.read(start.weights).weights_sha256
    # Looked up by name where rank 0 has one: a network file system may list a folder's old contents for a while.
    fresh = start.own or manifest.newest(config.run.dir) is None
    views = gathered((seen, fresh))
    others = [rank for rank, view in enumerate(views) if view != views[0]]
    if others:
        raise UserError(
            f"rank {others[0]} does not see the same {start.weights or config.run.dir} as rank 0; put run.dir (and "
            "run.init_from) on a file system that all ranks share."
        )
    return start


def find_start(config: TrainConfig) -> Start:
    """Where the run in `run.dir` stands. Raises UserError when it may not go on from there."""
    run_dir, first = Path(config.run.dir), next(iter(config.stages))
    folder = manifest.newest(run_dir)
    if folder is None:
        init = manifest.resolve(config.run.init_from) if config.run.init_from else None
        return Start(Position(first, 0, 0), init, own=False)
    if config.run.resume == "never":
        raise UserError(f"{run_dir} holds checkpoints and run.resume is never; choose another run.dir or resume=auto.")
    found = manifest.read(folder)
    checkpoint.check_resumable(folder, found, config)
    names = list(config.stages)
    at = names.index(found.stage)
    if found.stage_step == config.stages[found.stage].steps and at + 1 < len(names):
        return Start(Position(names[at + 1], 0, found.step), folder, own=True)
    return Start(Position(found.stage, found.stage_step, found.step), folder, own=True)


def is_finished(config: TrainConfig, position: Position) -> bool:
    return position.step == sum(stage.steps for stage in config.stages.values())


def make_policy(config: TrainConfig, start: Start) -> Policy:
    """The policy on the CPU with its weights, as the current stage trains it (load, then freeze)."""
    if start.weights is None:
        policy = build_policy(config.model, config.run.seed)
    else:
        found = manifest.read(start.weights)
        fresh = replace(config.model, weights="")  # their places are all that is needed of fresh weights
        policy = rebuild(found.model) if start.own else build_policy(fresh, config.run.seed)
        checkpoint.load_weights(policy, start.weights)
    policy.train()
    set_trainable(policy, config.stages[start.position.stage].train)
    if config.engine.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    return policy


def write_config(config: TrainConfig) -> None:
    run_dir = Path(config.run.dir)
    with disk.guarded(run_dir, CONFIG):
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / CONFIG).write_text(to_yaml(config))


def contact_sheet(batches: tuple[Batch, ...], folder: Path, most: int = 32) -> None:
    """The first images that this rank trains on, side by side, as the model gets them: look at it once a run."""
    images = [image for batch in batches if batch.images_NCHW is not None for image in batch.images_NCHW[:most]]
    if not images:
        return
    tiles = [image.permute(1, 2, 0).cpu().numpy() for image in images[:most]]
    blank = np.zeros_like(tiles[0])
    rows = [tiles[first : first + 8] for first in range(0, len(tiles), 8)]
    sheet = np.concatenate([np.concatenate(row + [blank] * (8 - len(row)), axis=1) for row in rows])
    cv2.imwrite(str(folder / FIRST_BATCH), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
