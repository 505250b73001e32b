"""Where a run stands, and the checkpoint that it goes on from.

Order (only the first that applies): the newest complete checkpoint of this run; `run.init_from`; fresh weights.
Rank 0 looks and decides; the other ranks follow, or say that they see another file system.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from la4vla import manifest
from la4vla.config import TrainConfig
from la4vla.manifest import Checkpoint
from la4vla.train import checkpoint, integrity, stopping
from la4vla.train.checkpoint import Position
from la4vla.train.dist import World, gathered, on_main
from la4vla.types import UserError


@dataclass(frozen=True)
class Resume:
    """Where a run begins or goes on.

    position    where it stands; at the end of a stage it is told as the beginning of the next one
    checkpoint  what gives the weights, or None for fresh ones
    own         whether the checkpoint is this run's, not that of `run.init_from`
    """

    position: Position
    checkpoint: Checkpoint | None
    own: bool

    @property
    def inside_stage(self) -> bool:
        """Whether the checkpoint's optimizer goes on; a stage begins with a new one."""
        return self.own and self.position.stage_step > 0


def begin_run(config: TrainConfig, world: World) -> Resume:
    """Where the run stands, agreed upon by all ranks; removes what a crash has left. Raises UserError (on all)."""

    def look() -> Resume:
        checkpoint.start_clean(Path(config.run.dir), world)
        return find_resume(config)

    return _agreed(config, on_main(world, look))


def begin_stage(config: TrainConfig, position: Position, world: World) -> Resume:
    """From the checkpoint that ended the stage before, agreed upon by all ranks. Raises UserError (on all)."""

    def look() -> Resume:
        folder = manifest.newest(config.run.dir)
        newest = integrity.open_checkpoint(folder, own=True) if folder else None
        if newest is None or newest.manifest.step != position.step:
            raise UserError(
                f"{config.run.dir}: the checkpoint of step {position.step}, which ended a stage just now, is gone; "
                "leave checkpoints of a running run alone, and start again: the run resumes from its newest one."
            )
        integrity.check_present(newest, own=True)  # this run wrote it just now: its bytes are not read twice
        return Resume(position, newest, own=True)

    return _agreed(config, on_main(world, look))


def _agreed(config: TrainConfig, resume: Resume) -> Resume:
    """`resume` if every rank sees the checkpoint that rank 0 chose (and no other where it found none). Collective."""
    folder = resume.checkpoint.folder if resume.checkpoint else None
    identity = ""
    if folder is not None and (folder / manifest.COMPLETE).is_file():
        identity = manifest.read(folder).weights_sha256
    # Looked up by name where rank 0 has one: a network file system may list a folder's old contents for a while.
    fresh = resume.own or manifest.newest(config.run.dir) is None
    views = gathered((identity, fresh))
    others = [rank for rank, view in enumerate(views) if view != views[0]]
    if others:
        raise UserError(
            f"rank {others[0]} does not see the same {folder or config.run.dir} as rank 0; put run.dir (and "
            "run.init_from) on a file system that all ranks share."
        )
    return resume


def find_resume(config: TrainConfig) -> Resume:
    """Where the run in `run.dir` stands. Raises UserError when it may not go on from there."""
    run_dir, first = Path(config.run.dir), next(iter(config.stages))
    folder = manifest.newest(run_dir)
    if folder is None:
        return Resume(Position(first, 0, 0), _initial(config), own=False)
    if config.run.resume == "never":
        raise UserError(
            f"{run_dir} holds checkpoints and run.resume is never; choose another run.dir or set run.resume=auto."
        )
    newest = integrity.open_checkpoint(folder, own=True)
    checkpoint.check_resumable(newest, config)
    position = _position(config, newest)
    if not is_finished(config, position):
        integrity.check(newest, own=True)
    return Resume(position, newest, own=True)


def _initial(config: TrainConfig) -> Checkpoint | None:
    """The checkpoint of `run.init_from`, if it names one."""
    if not config.run.init_from:
        return None
    with integrity.curing(Path(config.run.init_from), own=False):
        folder = manifest.resolve(config.run.init_from)
    begun = integrity.open_checkpoint(folder, own=False)
    integrity.check(begun, own=False)
    return begun


def _position(config: TrainConfig, newest: Checkpoint) -> Position:
    stood, names = newest.manifest, list(config.stages)
    at = names.index(stood.stage)
    if stood.stage_step == config.stages[stood.stage].steps and at + 1 < len(names):
        return Position(names[at + 1], 0, stood.step)
    return Position(stood.stage, stood.stage_step, stood.step)


def is_finished(config: TrainConfig, position: Position) -> bool:
    whole = sum(stage.steps for stage in config.stages.values())
    return position.step == whole or stopping.is_over(config, position.step)
