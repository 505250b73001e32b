"""Readers: each reads one dataset format as a `Dataset` of episodes."""

from __future__ import annotations

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Dataset
from la4vla.types import UserError


def open_dataset(config: ConstructConfig) -> Dataset:
    """The dataset that the config's `read` names.

    Raises UserError if it does not exist, has another format, or needs a package that is not installed.
    """
    try:
        if config.read.format == "lerobot":
            from la4vla.construct.readers.lerobot import LeRobot

            return LeRobot(config)
        if config.read.format == "libero":
            from la4vla.construct.readers.libero import Libero

            return Libero(config)
        if config.read.format == "npz":
            from la4vla.construct.readers.npz import Npz

            return Npz(config)
        if config.read.format == "rlds":
            from la4vla.construct.readers.rlds import Rlds

            return Rlds(config)
        from la4vla.construct.readers.recorded import Recorded

        return Recorded(config)
    except ModuleNotFoundError as error:
        raise UserError(
            f'read.format={config.read.format} needs the package {error.name}; pip install "la4vla[construct]" has it.'
        ) from error
