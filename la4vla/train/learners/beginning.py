"""A policy that begins with parts of another checkpoint (run.init_parts): what that means for its tokenizer and its
statistics, how it is built, and what is said about it.

The tokenizer belongs to the embedding table, the statistics to the weights that read and write states and actions:
where these are taken, so are they; where they are not, both are this run's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from la4vla import manifest
from la4vla.config import LANGUAGE_HEAD, ModelConfig, TrainConfig, begins_in_parts
from la4vla.manifest import Checkpoint
from la4vla.model import weights
from la4vla.model.base import some
from la4vla.model.freeze import group_parameters
from la4vla.model.parts import Parts, choose
from la4vla.model.policy import Policy, build_policy
from la4vla.model.presets import size_of
from la4vla.train.dist import World, log0, on_main
from la4vla.train.resume import Resume

EMBEDDINGS = f"backbone.internvl.{weights.EMBEDDINGS}"
INTERFACE = ("head.state_encoder.fc1.", "head.action_encoder.w1.", "head.readout.")
"""Beginnings of the names of the weights that meet normalised numbers."""
WHAT = ("taken", "left", "fresh")
NOT_HERE = "not in this model"  # what the group of a weight is called that the policy has no place for


@dataclass(frozen=True)
class Beginning:
    """What begins a policy.

    source  the checkpoint that parts are taken from
    shapes  of its weights by name; those of a model that writes have the names of a policy
    parts   what is taken of them
    """

    source: Checkpoint
    shapes: dict[str, tuple[int, ...]]
    parts: Parts

    @property
    def keeps_tokenizer(self) -> bool:
        return EMBEDDINGS in self.parts.taken

    @property
    def keeps_statistics(self) -> bool:
        """Never those of a model that writes, which has none."""
        of_policy = self.source.manifest.learner == "policy"
        return of_policy and not any(name.startswith(INTERFACE) for name in self.parts.fresh)

    def build(self, model: ModelConfig, seed: int, writes: bool) -> Policy:
        """What is not taken is as in a new policy: of model.weights where they give it, else random."""
        policy = build_policy(model if self.needs_weights(model) else replace(model, weights=""), seed, writes)
        weights.fill(policy, self.source.folder, self.parts.taken)
        return policy

    def needs_weights(self, model: ModelConfig) -> bool:
        """Whether model.weights give something of what is fresh."""
        return bool(model.weights) and any(name.startswith(("backbone.", LANGUAGE_HEAD)) for name in self.parts.fresh)

    def tell(self, policy: Policy, config: TrainConfig, world: World) -> None:
        """In the run's log, and with every name in its folder. Collective."""
        report = self._report(policy, config.model)
        lines = [f"parts of {self.source.folder} (every name is in {manifest.PARTS}):"]
        for group in dict.fromkeys(group for what in WHAT for group in report[what]):
            cells = [f"{what} {_told(report[what][group])}" for what in WHAT if group in report[what]]
            lines.append(f"  {group:<18}{'; '.join(cells)}")
        lines.append(f"  fresh weights begin {report['fresh_weights']}")
        if config.data.stats_source:
            stats = f"those of data.stats_source={config.data.stats_source}"
        elif self.keeps_statistics:
            stats = "those of the checkpoint, whose weights read and write states and actions"
        else:
            stats = "those of this run's data: weights that read or write states or actions are fresh"
        tokenizer = "the checkpoint's, with its embeddings" if self.keeps_tokenizer else "this run's own"
        log0(world, "\n".join([*lines, f"  statistics: {stats}", f"  tokenizer: {tokenizer}"]))
        path = Path(config.run.dir) / manifest.PARTS
        about = {"statistics": stats, "tokenizer": tokenizer}
        on_main(world, lambda: path.write_text(json.dumps(report | about, indent=1)))

    def _report(self, policy: Policy, model: ModelConfig) -> dict[str, Any]:
        groups = {name: group for group, named in group_parameters(policy).items() for name in named}
        sizes = {name: tensor.numel() for name, tensor in policy.state_dict().items()}
        stored = {name: math.prod(shape) for name, shape in self.shapes.items()}
        taken, left = self.parts.taken, self.parts.left
        given = f"as model.weights={model.weights} give them, else random" if self.needs_weights(model) else "random"
        return {
            "checkpoint": str(self.source.folder),
            "weights_sha256": self.source.manifest.weights_sha256,
            "taken": _by_group({name: (stored[old], old) for name, old in taken.items()}, groups),
            "left": _by_group({name: (stored[old], old) for name, old in left.items()}, groups),
            "fresh": _by_group({name: (sizes[name], "") for name in self.parts.fresh}, groups),
            "fresh_weights": given,
        }


def find_beginning(config: TrainConfig, resume: Resume, writes: bool) -> Beginning | None:
    """None for a run that goes on, and for one that begins without run.init_parts. writes: whether the policy has a
    language head. Raises UserError where the parts do not fit."""
    source = resume.checkpoint
    if resume.own or source is None or not begins_in_parts(config.run):
        return None
    shapes = weights.stored_shapes(source.folder)
    model = config.model
    with torch.device("meta"):
        policy = Policy(size_of(model), model.readout, model.attention, model.dropout, writes, embodiments=())
    needed = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    return Beginning(source, shapes, choose(shapes, needed, config.run.init_parts, str(source.folder)))


def _by_group(named: Mapping[str, tuple[int, str]], groups: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """named: name in the policy -> (how many numbers, name in the checkpoint or empty)."""
    found: dict[str, dict[str, Any]] = {}
    for name, (numbers, old) in named.items():
        entry = found.setdefault(groups.get(name, NOT_HERE), {"numbers": 0, "names": {}})
        entry["numbers"] += numbers
        entry["names"][name] = old
    return found


def _told(entry: Mapping[str, Any]) -> str:
    return f"{entry['numbers']:,} numbers in {some(entry['names'])}"
