"""Whose numbers a released checkpoint speaks: Evo-1's clients of our simulators, or a robot that a file describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from la4vla.sim.registry import SIMULATORS
from la4vla.types import Embodiment, UserError

CLIENTS = {"metaworld": "evo1_privileged", "libero": "evo1"}
"""Robot -> the name of its numbers in the simulator's `clients`, and in protocols."""


@dataclass(frozen=True)
class ReleasedRobot:
    """A robot of a released checkpoint.

    name        in messages
    embodiment  of its states and actions
    views       in the order of the image slots
    """

    name: str
    embodiment: Embodiment
    views: tuple[str, ...]


def find_robot(asked: str, views: tuple[str, ...], state_dims: int, action_dims: int) -> ReleasedRobot:
    """asked: `metaworld`, `libero`, or a YAML file with the fields of types.Embodiment; empty: the simulator whose
    client has these dims. views: instead of the simulator's. Raises UserError where none fits."""
    if asked and asked not in CLIENTS:
        return ReleasedRobot(asked, _described(Path(asked)), _needed(views, asked))
    known = {name: SIMULATORS[name].clients[client] for name, client in CLIENTS.items()}
    if not asked:
        dims = {
            name: (len(one.embodiment.state.names), len(one.embodiment.action.names)) for name, one in known.items()
        }
        fitting = [name for name, sizes in dims.items() if sizes == (state_dims, action_dims)]
        if len(fitting) != 1:
            raise UserError(
                f"the statistics have {state_dims} dims of state and {action_dims} of action, as no robot that is "
                f"known here; describe it with --robot FILE.yaml, or choose one of {', '.join(CLIENTS)}."
            )
        asked = fitting[0]
    return ReleasedRobot(asked, known[asked].embodiment, views or known[asked].views)


def _needed(views: tuple[str, ...], robot: str) -> tuple[str, ...]:
    if not views:
        raise UserError(
            f"--robot {robot}: name its cameras with --views, in the order of the checkpoint's image slots."
        )
    return views


def _described(path: Path) -> Embodiment:
    if not path.is_file():
        raise UserError(f"--robot {path}: no such file, and not one of {', '.join(CLIENTS)}.")
    try:
        return Embodiment.from_dict(yaml.safe_load(path.read_text()))
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: no embodiment ({type(error).__name__}: {error}); it has name, control_hz, state and action, as "
            "docs/released_checkpoints.md shows."
        ) from error
