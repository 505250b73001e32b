"""A tiny checkpoint made by hand, so that serving is tested against the format and not against the trainer."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from la4vla import manifest
from la4vla.config import DataConfig, ModelConfig, RunConfig, SourceConfig, StageConfig, TrainConfig
from la4vla.data.normalize import Stats
from la4vla.data.transforms import build_chain, chain_to_dicts
from la4vla.model.policy import build_policy
from la4vla.model.tokenizer import build_prompter
from la4vla.serve.policy import file_sha256
from la4vla.types import Embodiment, Kind
from la4vla.vlm.load import build_vlm


def stats(names: tuple[str, ...], reach: float) -> Stats:
    low, high = (-reach,) * len(names), (reach,) * len(names)
    return Stats(names, 100, (0.0,) * len(names), (reach / 2,) * len(names), low, high, low, high)


def write_checkpoint(
    folder: Path,
    embodiment: Embodiment,
    views: tuple[str, ...],
    seed: int = 0,
    kind: Kind = "vla",
    size: tuple[int, int] = (112, 112),
    levels: str = "low",
    instructions: tuple[str, ...] = ("task",),
) -> Path:
    """A complete checkpoint folder of the tiny preset with random weights and plausible statistics.

    size: height and width of the images that it was trained on. levels: of its source, which is called `task`.
    instructions: sources whose clips were told what they are about."""
    config = TrainConfig(
        run=RunConfig(dir="runs/hand"),
        model=ModelConfig(preset="tiny", dropout=0.0),
        data=DataConfig(sources={"task": SourceConfig(path="task", kind=kind, levels=levels)}),
        stages={"only": StageConfig(mixture={"task": 1.0}, steps=7)},
    )
    policy = build_policy(config.model, seed)
    both = stats(embodiment.state.names, 0.7), stats(embodiment.action.names, 1.0)
    chain = build_chain(DataConfig(), embodiment, views, both, policy.spec)
    folder.mkdir(parents=True)
    save_file(policy.state_dict(), folder / manifest.WEIGHTS)
    build_prompter(config.model).save(folder / manifest.TOKENIZER)
    return complete(
        folder,
        config=asdict(config),
        learner="policy",
        model=policy.description,
        input_spec=asdict(policy.spec),
        robots=[
            asdict(
                manifest.TrainedRobot(
                    embodiment.to_dict(), chain_to_dicts(chain), list(views), {view: [list(size)] for view in views}
                )
            )
        ],
        text={"instructions": list(instructions)},
    )


def write_average(folder: Path, seed: int) -> Path:
    """Gives a checkpoint of `write_checkpoint` an average of what trained: its head, as that of another seed."""
    policy = build_policy(ModelConfig(preset="tiny"), seed)
    save_file({f"head.{name}": p.detach() for name, p in policy.head.named_parameters()}, folder / manifest.EMA)
    made = replace(manifest.read(folder), ema_sha256=file_sha256(folder / manifest.EMA))
    made.write(folder)
    return folder


def write_vlm_checkpoint(
    folder: Path, embodiment: Embodiment, codec: dict[str, Any], seed: int = 0, questions: tuple[str, ...] = ()
) -> Path:
    """A complete checkpoint folder of `tiny_vlm` with random weights. codec: of its action texts; empty for none.
    questions: that it was asked."""
    vlm, encoder = build_vlm("tiny_vlm", seed)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in vlm.state_dict().items()}, folder / manifest.WEIGHTS)
    encoder.save(folder / manifest.TOKENIZER)
    return complete(
        folder,
        learner="vlm",
        model={**vlm.description, "lora": {}},
        robots=[asdict(manifest.TrainedRobot(embodiment.to_dict(), [], [], {}))],
        text={"codec": codec, "questions": list(questions), "max_tokens": encoder.max_tokens},
    )


def complete(folder: Path, **about: Any) -> Path:
    """Writes the manifest of a folder that has its weights. about: what differs from an empty one."""
    values: dict[str, Any] = dict(
        schema=manifest.SCHEMA_VERSION,
        stage="only",
        stage_step=7,
        step=7,
        skipped_steps=0,
        config={},
        base={},
        input_spec={},
        robots=[],
        text={},
        sources={},
        weights_sha256=file_sha256(folder / manifest.WEIGHTS),
        training_sha256="",
        ema_sha256="",
        tokenizer_sha256={},
        git_sha="",
        versions={},
        world_size=1,
    )
    manifest.Manifest(**{**values, **about}).write(folder)
    (folder / manifest.COMPLETE).touch()
    return folder
