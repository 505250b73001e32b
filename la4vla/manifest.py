"""What a checkpoint says about itself: `manifest.json`, readable by every room without torch.load or the train room.

Owns every name inside a run's folder, RUN_DIR/
    checkpoints/step_XXXXXXXX/   one folder a checkpoint, as below
    config.yaml                  the resolved config
    metrics.jsonl                one line a log interval
    first_batch.png              the first images that were trained on
    init_parts.json              what was taken, left and fresh, where it began with parts of other weights
    first_batch.txt              the first conversations, and what of them is learned
    lock                         held while the run is at work

A checkpoint folder holds
    manifest.json           this
    model.safetensors       every weight of the model in fp32, loads without DeepSpeed; with adapters only those that
                            trained, and those that the base does not give
    training.safetensors    AdamW moments by parameter name, free of the world size (the fp32 masters are the weights)
    ema.safetensors         with optim.ema_decay: the moving average of what trains, by parameter name
    tokenizer/              the tokenizer's files
    COMPLETE                written last; a folder without it is a wreck and is never read
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from la4vla.types import UserError

SCHEMA_VERSION = 4
MANIFEST, WEIGHTS, TRAINING, EMA, TOKENIZER, COMPLETE = (
    "manifest.json",
    "model.safetensors",
    "training.safetensors",
    "ema.safetensors",
    "tokenizer",
    "COMPLETE",
)
WHICH_WEIGHTS = ("raw", "ema")
"""Weights of a checkpoint that can be served: as they were trained, or their moving average."""
CHECKPOINTS = "checkpoints"
STEPS = f"{CHECKPOINTS}/step_" + "[0-9]" * 8  # glob below a run's folder
CONFIG, METRICS, LOCK = "config.yaml", "metrics.jsonl", "lock"
HELD_OUT_LOSS = "val/contrast"
"""The number in metrics.jsonl by which a run may stop, and by which its best checkpoint is chosen."""
PARTS = "init_parts.json"
FIRST_BATCH, FIRST_TEXTS = "first_batch.png", "first_batch.txt"


@dataclass(frozen=True)
class TrainedRobot:
    """One robot of a checkpoint's data.

    embodiment  its typed interface
    transforms  the chain that `serve` rebuilds, its statistics included; empty for a vlm
    views       names in slot order; empty for a vlm
    view_sizes  view -> [height, width] of its stored images in pixels, one for each size in the data
    """

    embodiment: dict[str, Any]
    transforms: list[dict[str, Any]]
    views: list[str]
    view_sizes: dict[str, list[list[int]]]

    @property
    def name(self) -> str:
        """Of its embodiment."""
        return self.embodiment["name"]


@dataclass(frozen=True)
class Manifest:
    """What is written beside the weights.

    schema            version of this list of fields
    stage             name of the stage the run stood in
    stage_step        finished steps of that stage
    step              finished optimizer steps over all stages
    skipped_steps     those of them, since step 0, that had no finite gradient and changed nothing
    config            the resolved TrainConfig
    learner           `policy`; `vlm`, a model that writes; `grounding`, a model that scores
    model             what rebuilds the model without its weights
    base              of adapters: the weights they belong to (place, sha256 of its files); empty where
                      model.safetensors holds every weight
    input_spec        sizes of a policy's input; empty for a vlm
    robots            what it learned of each robot in its data (TrainedRobot), in the order of the sources
    text              of a policy: `instructions`, the sources whose clips are told what they are about, and not the
                      task of a whole demonstration. Of all that learned conversations: `questions` (their types, those
                      of the run that it began with included), `codec` of its actions (empty where no source has one)
                      and `max_tokens`, the longest row
    sources           source that the run mixes -> sha256 hex of what its data is
    weights_sha256    of model.safetensors; the model's identity in result files
    training_sha256   of training.safetensors
    ema_sha256        of ema.safetensors; empty where there is none
    tokenizer_sha256  file of tokenizer/ -> its sha256
    git_sha           commit of the code, or `unknown`
    versions          of Python, the device and the libraries
    world_size        ranks that wrote it
    """

    schema: int
    stage: str
    stage_step: int
    step: int
    skipped_steps: int
    config: dict[str, Any]
    learner: Literal["policy", "vlm", "grounding"]
    model: dict[str, Any]
    base: dict[str, Any]
    input_spec: dict[str, Any]
    robots: list[dict[str, Any]]
    text: dict[str, Any]
    sources: dict[str, str]
    weights_sha256: str
    training_sha256: str
    ema_sha256: str
    tokenizer_sha256: dict[str, str]
    git_sha: str
    versions: dict[str, str]
    world_size: int

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1))

    @property
    def trained_robots(self) -> tuple[TrainedRobot, ...]:
        """Raises TypeError or KeyError where the manifest is damaged."""
        return tuple(TrainedRobot(**raw) for raw in self.robots)

    def robot(self, embodiment: str = "") -> TrainedRobot:
        """The robot with this embodiment's name; of a checkpoint of one robot that one, whatever the name.

        Raises UserError where the name is none of several robots, and where there is no robot.
        """
        robots = self.trained_robots
        if len(robots) == 1:
            return robots[0]
        chosen = [robot for robot in robots if robot.name == embodiment]
        if not chosen:
            names = ", ".join(robot.name for robot in robots) or "none"
            asked = f"and {embodiment} is none of them; name" if embodiment else "so say which; name"
            raise UserError(f"this checkpoint knows the embodiments {names}, {asked} one with --embodiment.")
        return chosen[0]

    def identity(self, weights: str) -> str:
        """What results call the model: the sha256 of its weights, and `ema-` before that of their average.

        weights: one of WHICH_WEIGHTS.
        """
        return f"ema-{self.ema_sha256}" if weights == "ema" else self.weights_sha256


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, looked up once.

    folder    where it lies
    manifest  what it says of itself
    """

    folder: Path
    manifest: Manifest

    @staticmethod
    def open(folder: str | Path) -> Checkpoint:
        """Raises UserError as `read` does."""
        return Checkpoint(Path(folder), read(folder))


class DamagedCheckpoint(UserError):
    """A checkpoint that is marked complete and is not what was written. Says what to do where no run goes on from it.

    what  is wrong, without the cure
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.what = what
        super().__init__(f"{folder}: {what}; copy the folder again, or use an earlier step of the run.")


def read(folder: str | Path) -> Manifest:
    """The manifest of a complete checkpoint. Raises UserError for a missing or half-written one and for one of another
    version, DamagedCheckpoint for a damaged one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder.")
    if not (folder / COMPLETE).is_file():
        raise UserError(f"{folder}: not a complete checkpoint (no {COMPLETE} in it); use an earlier step of the run.")
    try:
        raw = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError) as error:  # ValueError: no JSON, or no text at all
        raise DamagedCheckpoint(folder, f"its {MANIFEST} is damaged ({error})") from error
    if not (isinstance(raw, dict) and isinstance(raw.get("schema"), int)):
        raise DamagedCheckpoint(folder, f"its {MANIFEST} is damaged (it has no schema)")
    if raw["schema"] > SCHEMA_VERSION:
        raise UserError(
            f"{folder}: written by a newer la4vla (schema {raw['schema']}, this one reads {SCHEMA_VERSION}); upgrade."
        )
    wrong = raw.keys() ^ {field.name for field in fields(Manifest)}
    if wrong:
        raise UserError(
            f"{folder}: its {MANIFEST} is not of this la4vla (schema {raw['schema']}, this one reads {SCHEMA_VERSION}; "
            f"missing or unexpected: {', '.join(sorted(wrong))}); read it with the version that wrote it "
            f"({raw.get('git_sha') or 'its git_sha is missing too'})."
        )
    return Manifest(**raw)


def require_policy(folder: Path, description: Manifest) -> None:
    """Raises UserError for a checkpoint of another learner."""
    if description.learner != "policy":
        does = "writes" if description.learner == "vlm" else "scores"
        raise UserError(f"{folder} is a model that {does} (learner {description.learner}), not a policy with actions.")


def resolve(path: str | Path) -> Path:
    """The checkpoint a user means by a checkpoint folder or by the folder of a run (then its newest complete one)."""
    folder = Path(path)
    if (folder / CHECKPOINTS).is_dir():
        newest_folder = newest(folder)
        if newest_folder is None:
            raise UserError(f"{folder}: the run has no complete checkpoint yet; train it further or name another run.")
        return newest_folder
    read(folder)
    return folder


def held_out_losses(run_dir: str | Path) -> list[tuple[int, float]]:
    """(step, loss) of every measurement of HELD_OUT_LOSS in a run's metrics, in order; none where it is not measured.
    Losses that are not finite are infinite."""
    path = Path(run_dir) / METRICS
    found: list[tuple[int, float]] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # a kill cut it; the run cuts the file there when it goes on
            break
        if isinstance(row, dict) and HELD_OUT_LOSS in row:
            found.append((row["step"], math.inf if row[HELD_OUT_LOSS] is None else row[HELD_OUT_LOSS]))
    return found


def best(run_dir: str | Path) -> Path | None:
    """The complete checkpoint with the lowest held-out loss, the newest one where none was measured, or None."""
    losses, folders = dict(held_out_losses(run_dir)), complete(run_dir)
    measured = [folder for folder in folders if step_of(folder) in losses]
    return min(measured, key=lambda folder: losses[step_of(folder)]) if measured else newest(run_dir)


def step_of(folder: Path) -> int:
    """Of a checkpoint's folder, by its name."""
    return int(folder.name.removeprefix("step_"))


def newest(run_dir: str | Path) -> Path | None:
    """The complete checkpoint with the highest step below `run_dir/checkpoints`, or None."""
    folders = complete(run_dir)
    return folders[-1] if folders else None


def complete(run_dir: str | Path) -> list[Path]:
    """The complete checkpoints below `run_dir/checkpoints`, by step."""
    return sorted(path.parent for path in Path(run_dir).glob(f"{STEPS}/{COMPLETE}"))
