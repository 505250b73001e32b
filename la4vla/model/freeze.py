"""What of a model trains: its groups, set for a stage, and the table that says so.

A model has `groups()`, its parts by name, and `frozen_groups`, which its `train` leaves in eval mode. Groups are those
of config.TRAIN_GROUPS that it has: its parts, and `lora`, the adapters in them. Frozen means: no gradient, not in the
optimizer, and eval mode for good where nothing inside trains. A new stage calls `set_trainable` again and builds a new
optimizer; it never flips a flag under one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from la4vla.config import LORA
from la4vla.model.lora import is_adapter
from la4vla.types import UserError


def group_parameters(module: Any) -> dict[str, dict[str, nn.Parameter]]:
    """group -> parameter name in the model -> parameter. Every parameter is in exactly one group; LORA is there where
    the model has adapters."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for group, parts in module.groups().items():
        inside = {names[id(parameter)]: parameter for part in parts for parameter in part.parameters()}
        groups[group] = {name: parameter for name, parameter in inside.items() if not is_adapter(name)}
    if adapters := {name: parameter for name, parameter in module.named_parameters() if is_adapter(name)}:
        groups[LORA] = adapters
    assert sorted(name for group in groups.values() for name in group) == sorted(names.values())
    return groups


def set_trainable(module: Any, groups: Collection[str]) -> None:
    """Trains exactly these groups; the others get no gradient. Parts in which nothing trains go to eval mode and stay
    there.

    Raises UserError for a group that the model does not have, and when nothing would train.
    """
    parameters = group_parameters(module)
    unknown = sorted(group for group in groups if not parameters.get(group))
    if unknown or not groups:
        known = ", ".join(group for group in parameters if parameters[group])
        raise UserError(f"cannot train `{', '.join(unknown)}`; name at least one of {known}.")
    for group, named in parameters.items():
        for parameter in named.values():
            parameter.requires_grad_(group in groups)
    module.frozen_groups = frozenset(group for group, parts in module.groups().items() if not _trains(parts))
    module.train(module.training)


def keep_frozen_in_eval(module: Any) -> None:
    """What a model's `train` does at its end."""
    groups = module.groups()
    for name in module.frozen_groups:
        for part in groups[name]:
            part.eval()


def summary_table(module: Any) -> str:
    """Parameters by group with trainable marks, as text; printed before step 0."""
    rows = []
    total = training = 0
    for group, parameters in group_parameters(module).items():
        count = sum(parameter.numel() for parameter in parameters.values())
        trains = bool(parameters) and all(parameter.requires_grad for parameter in parameters.values())
        rows.append(f"{group:<12}{count:>14,}  {'trains' if trains else 'frozen'}")
        total, training = total + count, training + count * trains
    return "\n".join([*rows, f"{'all':<12}{total:>14,}  {training:,} train"])


def _trains(parts: Collection[nn.Module]) -> bool:
    return any(parameter.requires_grad for part in parts for parameter in part.parameters())
