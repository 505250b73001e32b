"""A folder in the released layout of Evo-1 and LA4VLA (FACTS 4.5): config.json, norm_stats.json and
mp_rank_00_model_states.pt, DeepSpeed's file, of which only tensors and plain values are read.

Refuses: files that need code to be read, statistics of a size that is not the robot's, and a choice among several that
nobody made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from la4vla.data.normalize import Stats
from la4vla.types import Embodiment, UserError

WEIGHTS, CONFIG, NORM_STATS = "mp_rank_00_model_states.pt", "config.json", "norm_stats.json"
STATE, ACTION = "observation.state", "action"


@dataclass(frozen=True)
class ReleasedFolder:
    """What a released folder holds.

    tensors  released name -> tensor as it is stored, on the CPU
    step     of its training; 0 where the file does not say
    config   text of config.json
    stats    text of norm_stats.json
    """

    tensors: Mapping[str, Tensor]
    step: int
    config: str
    stats: str

    @property
    def dtypes(self) -> dict[str, str]:
        """Released name -> dtype, in the file's order."""
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.tensors.items()}


def read_folder(folder: Path) -> ReleasedFolder:
    """Raises UserError for what is missing or cannot be read."""
    for name in (WEIGHTS, CONFIG, NORM_STATS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no {name} in it; give the folder of a released checkpoint, which has {CONFIG}, "
                f"{NORM_STATS} and {WEIGHTS}."
            )
    path = folder / WEIGHTS
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (torch.serialization.pickle.UnpicklingError, RuntimeError, EOFError) as error:  # pyright: ignore
        raise UserError(
            f"{path}: no file of tensors and plain values ({str(error).splitlines()[0]}); nothing in it is executed, "
            "so download it again, or have its owner save {'module': state dict} alone."
        ) from error
    tensors = held.get("module") if isinstance(held, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: no `module` with tensors in it; give the file that DeepSpeed wrote.")
    step = held.get("step", 0)
    number = step if isinstance(step, int) else 0
    return ReleasedFolder(tensors, number, (folder / CONFIG).read_text(), (folder / NORM_STATS).read_text())


def chosen_stats(text: str, asked: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """(`ARM/DATASET`, statistics of the state, of the actions) of norm_stats.json. asked: `ARM/DATASET`, or empty where
    there is only one. Raises UserError for another number of them, and for a damaged file."""
    try:
        found = {
            f"{arm}/{dataset}": (values[STATE], values[ACTION])
            for arm, datasets in json.loads(text).items()
            for dataset, values in datasets.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{NORM_STATS}: damaged ({type(error).__name__}: {error}); download it again.") from error
    if asked and asked not in found:
        raise UserError(f"--stats {asked}: {NORM_STATS} does not have it; use one of {', '.join(found)}.")
    if not asked and len(found) != 1:
        raise UserError(f"{NORM_STATS} holds {len(found)} sets; choose with --stats one of {', '.join(found)}.")
    name = asked or next(iter(found))
    return name, *found[name]


def sizes(state: Mapping[str, Any], action: Mapping[str, Any]) -> tuple[int, int]:
    """Dims of state and action that the statistics are of, without padding: trailing zeros in minimum and maximum."""
    return _length(state), _length(action)


def stats_of(embodiment: Embodiment, normalization: str, which: str, raw: Mapping[str, Any]) -> Stats:
    """Our statistics of the `state` or the `action`. normalization: `bounds`; `bounds_q99`, whose ends become min and
    max; or `normal`, whose std gets the released 1e-8. Raises UserError where they do not fit the embodiment."""
    names = {"state": embodiment.state.names, "action": embodiment.action.names}[which]
    size = len(names)
    if _length(raw) > size:
        raise UserError(
            f"{NORM_STATS}: the {which} has {_length(raw)} dims, robot {embodiment.name} has {size} "
            f"({' '.join(names)}); choose another --robot."
        )
    try:
        rows = {key: [float(value) for value in raw[key]] for key in ("mean", "std", "min", "max")}
        q01, q99 = (
            [float(value) for value in raw.get(key, rows[end])] for key, end in (("q01", "min"), ("q99", "max"))
        )
        rows |= {"q01": q01, "q99": q99}
        if normalization == "bounds_q99":
            rows |= {"min": q01, "max": q99}
        if normalization == "normal":
            rows["std"] = [value + 1e-8 for value in rows["std"]]
        cut = {key: tuple(values[:size]) for key, values in rows.items()}
        return Stats.from_dict({"names": names, "count": 0, **cut})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{NORM_STATS}: its {which} is damaged ({error}); download it again.") from error


def _length(raw: Mapping[str, Any]) -> int:
    """Of one set of statistics, without padding."""
    try:
        moved = np.any(np.abs(np.array([raw["min"], raw["max"]], float)) > 0, axis=0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{NORM_STATS}: damaged ({type(error).__name__}: {error}); download it again.") from error
    return int(np.flatnonzero(moved)[-1]) + 1 if moved.any() else 0
