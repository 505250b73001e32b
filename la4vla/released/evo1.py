"""`la4vla import evo1 FOLDER --out RUN`: a released Evo-1 or LA4VLA checkpoint as a run of ours, and back.

The run has one checkpoint, with everything that serves it: weights, tokenizer, statistics, embodiment, and the compat
block of the code that it was trained with. Nothing in a released folder says which code that was, so it is said. Every
tensor is compared bit by bit with what would be written back before the run is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import la4vla
from la4vla import manifest
from la4vla.config import CompatConfig, DataConfig, FlowConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from la4vla.config.checks import choice
from la4vla.data.bounds import ReleasedBounds
from la4vla.data.normalize import Normalize, near_constant
from la4vla.data.transforms import Chain, Pad, ResizeImages, SelectViews, chain_to_dicts
from la4vla.files import sha256
from la4vla.manifest import Manifest, TrainedRobot
from la4vla.model.policy import Policy, rebuild
from la4vla.model.presets import ModelSize, preset
from la4vla.model.released_context import SLOTS
from la4vla.model.tokenizer import TINY_TOKENIZER_PRESETS, Prompter, build_prompter
from la4vla.released import layout
from la4vla.released.layout import ReleasedFolder
from la4vla.released.names import to_ours, to_released
from la4vla.released.robots import ReleasedRobot, find_robot
from la4vla.types import UserError

RELEASED = "released"  # folder of a checkpoint: what is needed to write it back
DESCRIPTION = "layout.json"
TOKENIZER = "OpenGVLab/InternVL3-1B-hf"  # has the tokenizer that the release took, with the ids of FACTS 4.1


@dataclass(frozen=True)
class ReleaseCode:
    """What one version of the released code does (FACTS 4.2, 4.3).

    time_scale  of the index into the table of times
    pad_state   what its server shows at absent dims of the state
    steps       Euler steps of its server
    """

    time_scale: int
    pad_state: float
    steps: int


RELEASES = {
    "evo1": ReleaseCode(1000, -1.0, 32),  # Evo-1 main: the checkpoints of 2025
    "evo1_flash": ReleaseCode(999, 0.0, 50),
    "la4vla": ReleaseCode(999, 0.0, 32),
}
NORMALIZATIONS = ("bounds", "bounds_q99", "normal")


@dataclass(frozen=True)
class ImportRequest:
    """What `la4vla import evo1` was told.

    folder         in the released layout
    out            folder of the run, which does not exist yet
    release        key of RELEASES
    context        eager or flash: with which attention it was trained
    robot          of released/robots.py; empty: by the size of its statistics
    views          names of its views; empty: the robot's
    stats          `ARM/DATASET` in norm_stats.json; empty: the only one
    normalization  one of NORMALIZATIONS; the files do not say it (B16), and the release's server takes bounds
    tokenizer      folder or hub id; empty: TOKENIZER, or the preset's own
    preset         of its sizes
    """

    folder: Path
    out: Path
    release: str = "evo1"
    context: str = "flash"
    robot: str = ""
    views: tuple[str, ...] = ()
    stats: str = ""
    normalization: str = "bounds"
    tokenizer: str = ""
    preset: str = "la4vla_1b"


def import_evo1(asked: ImportRequest) -> str:
    """Writes the run and says what it is and what was assumed. Raises UserError for bad input; `out` is then not
    there."""
    choice("--release", asked.release, tuple(RELEASES))
    choice("--context", asked.context, ("eager", "flash"))
    choice("--normalization", asked.normalization, NORMALIZATIONS)
    if asked.out.exists():
        raise UserError(f"{asked.out}: exists already; remove it or choose another folder.")
    released = layout.read_folder(asked.folder)
    which, state, action = layout.chosen_stats(released.stats, asked.stats)
    robot = find_robot(asked.robot, asked.views, *layout.sizes(state, action))
    if len(robot.views) > SLOTS:
        raise UserError(f"--views: a released checkpoint has {SLOTS} image slots; name no more views.")
    size = _size(asked, released)
    config = _config(asked, size)
    prompter = build_prompter(config.model)
    policy = rebuild(_description(config, size))
    policy.load_state_dict(to_ours(released.tensors, policy.state_dict()))
    _check_return(policy, released)
    chain = _chain(asked, size, robot, state, action)
    _write(asked, released, config, policy, prompter, chain, robot)
    return _report(asked, released, robot, which)


def write_back(checkpoint: str | Path, out: str | Path) -> str:
    """An imported checkpoint, or the newest one of a run, in the released layout again, byte-equal in every tensor.
    Raises UserError where it was not imported or `out` exists."""
    folder, target = manifest.resolve(checkpoint), Path(out)
    if target.exists():
        raise UserError(f"{target}: exists already; remove it or choose another folder.")
    if not (folder / RELEASED / DESCRIPTION).is_file():
        raise UserError(f"{folder}: was not imported, so it has no released layout; leave --layout out.")
    if sha256(folder / manifest.WEIGHTS) != manifest.read(folder).weights_sha256:
        raise UserError(f"{folder}: its weights are not those of its manifest; copy the checkpoint again.")
    description = json.loads((folder / RELEASED / DESCRIPTION).read_text())
    tensors = to_released(load_file(folder / manifest.WEIGHTS), description["dtypes"])
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    torch.save({"module": tensors, "step": description["step"]}, temporary / layout.WEIGHTS)
    for name in (layout.CONFIG, layout.NORM_STATS):
        shutil.copy(folder / RELEASED / name, temporary / name)
    temporary.rename(target)
    return f"{target}: the released layout, {len(tensors)} tensors"


def _size(asked: ImportRequest, released: ReleasedFolder) -> ModelSize:
    """The preset's, with the horizon and the widths of state and action that the tensors have."""
    shapes = {name: tuple(tensor.shape) for name, tensor in released.tensors.items()}
    try:
        horizon = shapes["action_head.action_encoder.pos_encoding.pe"][1]
        state_dim = shapes["action_head.state_encoder.fc1.linear.weight"][1]
        action_dim = shapes["action_head.action_encoder.W1.linear.weight"][1]
    except (KeyError, IndexError) as error:
        raise UserError(f"{asked.folder}: its tensors are not Evo-1's or LA4VLA's ({error}); FACTS 4.5.") from error
    return replace(preset(asked.preset), horizon=horizon, state_dim=state_dim, action_dim=action_dim)


def _config(asked: ImportRequest, size: ModelSize) -> TrainConfig:
    code = RELEASES[asked.release]
    tokenizer = asked.tokenizer or ("" if asked.preset in TINY_TOKENIZER_PRESETS else TOKENIZER)
    compat = CompatConfig(code.time_scale, code.pad_state, asked.context)
    return TrainConfig(
        run=RunConfig(dir=str(asked.out)),
        model=ModelConfig(
            preset=asked.preset, horizon=size.horizon, tokenizer=tokenizer, readout="flatten", compat=compat
        ),
        flow=FlowConfig(steps=code.steps),
        data=DataConfig(normalization="mean_std" if asked.normalization == "normal" else "min_max"),
    )


def _description(config: TrainConfig, size: ModelSize) -> dict[str, Any]:
    """What `rebuild` takes."""
    model = config.model
    return {
        "size": size.to_dict(),
        "readout": model.readout,
        "attention": model.attention,
        "dropout": model.dropout,
        "writes": False,
        "embodiments": [],
        "compat": asdict(model.compat),
        "lora": {},
    }


def _check_return(policy: Policy, released: ReleasedFolder) -> None:
    """Raises UserError for a tensor that would not come back as it was."""
    back = to_released(policy.state_dict(), released.dtypes)
    for name, tensor in released.tensors.items():
        if not _same_bytes(back[name], tensor):
            raise UserError(f"{name} does not come back byte-equal; report it with the name of the checkpoint.")


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    whole = (one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*whole)


def _chain(
    asked: ImportRequest, size: ModelSize, robot: ReleasedRobot, state: Mapping[str, Any], action: Mapping[str, Any]
) -> Chain:
    """As the release prepared a sample: the instruction as it is, no cleaning."""
    body = robot.embodiment
    of_state = layout.stats_of(body, asked.normalization, "state", state)
    of_action = layout.stats_of(body, asked.normalization, "action", action)
    if asked.normalization == "normal":
        if still := [*near_constant("mean_std", of_state), *near_constant("mean_std", of_action)]:
            raise UserError(
                f"--normalization normal: {' '.join(still)} hardly moved in training, which the release divides by and "
                "we do not; take bounds."
            )
        normalize = Normalize("mean_std", of_state, of_action)
    else:
        normalize = ReleasedBounds("min_max", of_state, of_action)
    pad = Pad(size.state_dim, size.action_dim, len(body.action.names))
    return Chain((SelectViews(robot.views), ResizeImages(size.image_size), normalize, pad))


def _write(
    asked: ImportRequest,
    released: ReleasedFolder,
    config: TrainConfig,
    policy: Policy,
    prompter: Prompter,
    chain: Chain,
    robot: ReleasedRobot,
) -> None:
    run = asked.out.with_name(asked.out.name + ".tmp")
    shutil.rmtree(run, ignore_errors=True)
    folder = run / manifest.CHECKPOINTS / f"step_{released.step:08d}"
    (folder / RELEASED).mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in policy.state_dict().items()}, folder / manifest.WEIGHTS)
    prompter.save(folder / manifest.TOKENIZER)
    description = {"layout": "evo1", "release": asked.release, "step": released.step, "dtypes": released.dtypes}
    (folder / RELEASED / DESCRIPTION).write_text(json.dumps(description, indent=1))
    (folder / RELEASED / layout.CONFIG).write_text(released.config)
    (folder / RELEASED / layout.NORM_STATS).write_text(released.stats)
    sizes = {view: [[policy.size.image_size] * 2] for view in robot.views}
    trained = TrainedRobot(robot.embodiment.to_dict(), chain_to_dicts(chain), list(robot.views), sizes)
    Manifest(
        schema=manifest.SCHEMA_VERSION,
        stage="",
        stage_step=0,
        step=released.step,
        skipped_steps=0,
        config=asdict(config),
        learner="policy",
        model=policy.description,
        base={},
        input_spec=asdict(policy.spec),
        robots=[asdict(trained)],
        text={"instructions": []},
        sources={},
        weights_sha256=sha256(folder / manifest.WEIGHTS),
        training_sha256="",
        ema_sha256="",
        tokenizer_sha256={path.name: sha256(path) for path in (folder / manifest.TOKENIZER).iterdir()},
        git_sha="unknown",
        versions={"la4vla": la4vla.__version__, "torch": torch.__version__},
        world_size=1,
    ).write(folder)
    (folder / manifest.COMPLETE).touch()
    (run / manifest.CONFIG).write_text(to_yaml(config))
    run.rename(asked.out)


def _report(asked: ImportRequest, released: ReleasedFolder, robot: ReleasedRobot, which: str) -> str:
    code = RELEASES[asked.release]
    return "\n".join(
        (
            f"{asked.out}: {len(released.tensors)} tensors of {asked.folder}, each of which comes back byte-equal",
            f"  taken as trained by the code of `{asked.release}` (--release): time index x {code.time_scale}, absent "
            f"state {code.pad_state:g}, {code.steps} flow steps, {asked.context} attention (--context)",
            f"  taken as robot {robot.name} (--robot): state {' '.join(robot.embodiment.state.names)}; action "
            f"{' '.join(robot.embodiment.action.names)}; views {' '.join(robot.views)}",
            f"  statistics {which} (--stats) by {asked.normalization} (--normalization)",
        )
    )
