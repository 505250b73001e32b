"""What of the policy trains: the groups of config.MODULE_GROUPS, set for a stage, and the table that says so.

Frozen means: no gradient, eval mode for good, not in the optimizer. A new stage calls `set_trainable` again and builds
a new optimizer; it never flips a flag under one.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from la4vla.config import MODULE_GROUPS
from la4vla.model.policy import Policy
from la4vla.types import UserError


def group_parameters(policy: Policy) -> dict[str, dict[str, nn.Parameter]]:
    """group -> parameter name in the policy -> parameter. Every parameter is in exactly one group."""
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    groups = {
        group: {names[id(parameter)]: parameter for module in modules for parameter in module.parameters()}
        for group, modules in policy.groups().items()
    }
    assert tuple(groups) == MODULE_GROUPS
    assert sorted(name for group in groups.values() for name in group) == sorted(names.values())
    return groups


def set_trainable(policy: Policy, groups: Collection[str]) -> None:
    """Trains exactly these groups; the others get no gradient and go to eval mode and stay there.

    Raises UserError for a group that does not exist, and when nothing would train.
    """
    unknown = sorted(set(groups) - set(MODULE_GROUPS))
    if unknown or not groups:
        raise UserError(f"cannot train `{', '.join(unknown)}`; name at least one of {', '.join(MODULE_GROUPS)}.")
    for group, parameters in group_parameters(policy).items():
        for parameter in parameters.values():
            parameter.requires_grad_(group in groups)
    policy.frozen_groups = frozenset(MODULE_GROUPS) - frozenset(groups)
    policy.train(policy.training)


def summary_table(policy: Policy) -> str:
    """Parameters by group with trainable marks, as text; printed before step 0."""
    rows = []
    total = training = 0
    for group, parameters in group_parameters(policy).items():
        count = sum(parameter.numel() for parameter in parameters.values())
        trains = all(parameter.requires_grad for parameter in parameters.values())
        rows.append(f"{group:<12}{count:>14,}  {'trains' if trains else 'frozen'}")
        total, training = total + count, training + count * trains
    return "\n".join([*rows, f"{'all':<12}{total:>14,}  {training:,} train"])
