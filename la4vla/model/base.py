"""The weights that adapters belong to: where they lie, what identifies them, and whether a folder holds them.

A base is a checkpoint of ours, or a folder or hub repository in a public layout. Its files are compared by sha256:
adapters on other weights are other adapters, and no loss would tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from la4vla import manifest
from la4vla.files import sha256
from la4vla.manifest import DamagedCheckpoint, Manifest
from la4vla.model.tokenizer import local_folder
from la4vla.types import UserError

PUBLIC = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model")
"""Of a hub repository, what is fetched."""


@dataclass(frozen=True)
class Base:
    """What adapters belong to.

    place  folder or hub id, as it was given
    files  name -> sha256 hex of every file that makes up its weights
    """

    place: str
    files: Mapping[str, str]

    @staticmethod
    def identify(place: str) -> Base:
        """Reads all of its weights. Raises UserError for a place that cannot be reached or holds no weights."""
        folder = local_folder(place, PUBLIC)
        return Base(place, {name: sha256(folder / name) for name in _names(folder)})

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Base:
        return Base(raw["place"], dict(raw["files"]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def find(self, named: str, setting: str) -> Path:
        """The folder that holds it: `named`, or where it lay. setting: what names another place, for messages.

        Raises UserError where nothing is there and where other weights are. Reads all of its weights.
        """
        place = named or self.place
        try:
            folder = local_folder(place, PUBLIC)
        except UserError as error:
            raise UserError(
                f"the adapters belong to the weights in {place}, which is not there; say where they lie with {setting}."
            ) from error
        for name, written in self.files.items():
            if not (folder / name).is_file() or sha256(folder / name) != written:
                raise UserError(
                    f"{place} holds other weights than those that the adapters belong to ({name} differs); say with "
                    f"{setting} where {self.place} lies now."
                )
        return folder


def load_stored(module: nn.Module, stored: Mapping[str, Tensor], folder: Path, from_base: Collection[str] = ()) -> None:
    """What a checkpoint holds, into a module that `rebuild` made: every name and shape must be the module's, and only
    the names `from_base` may be missing. Raises UserError naming what is missing or left over."""
    expected = module.state_dict()
    fits = {name for name in stored.keys() & expected.keys() if stored[name].shape == expected[name].shape}
    missing = expected.keys() - fits - set(from_base)
    if fits != stored.keys() or missing:
        raise UserError(
            f"{folder}: its weights do not fit this model: missing {some(missing)}, unexpected "
            f"{some(stored.keys() - fits)}; use the model settings it was trained with."
        )
    module.load_state_dict(stored, strict=False)


def load_average(module: nn.Module, folder: Path, written: Manifest) -> None:
    """The moving average of what trained, over the weights of a checkpoint that the module has already. Raises
    UserError where the checkpoint has none, and for one that is damaged."""
    if not written.ema_sha256:
        raise UserError(
            f"{folder} holds no average of its weights; train with optim.ema_decay, or leave out --weights ema."
        )
    path = folder / manifest.EMA
    if not path.is_file() or sha256(path) != written.ema_sha256:
        raise DamagedCheckpoint(folder, f"its {manifest.EMA} is not that of its manifest")
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, average in load_file(path).items():
            parameters[name].copy_(average)


def some(names: Collection[str]) -> str:
    """How many there are, and the first three."""
    listed = sorted(names)
    return f"{len(listed)} ({', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''})" if listed else "none"


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a checkpoint of ours, not a folder in a public layout."""
    return (folder / manifest.MANIFEST).is_file()


def _names(folder: Path) -> list[str]:
    if is_checkpoint(folder):
        return [manifest.WEIGHTS]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names or not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no weights in it (config.json and *.safetensors); give the folder of a model.")
    return ["config.json", *names]
