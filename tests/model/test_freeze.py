"""Why: frozen things that train, and trainable ones that do not, fail silently (FACTS 5.1 B7)."""

import hashlib

import pytest
import torch

from la4vla.config import MODULE_GROUPS, ModelConfig
from la4vla.model import freeze
from la4vla.model.policy import build_policy
from la4vla.types import UserError


def hashes(policy):
    return {name: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for name, p in policy.named_parameters()}


def test_groups_hold_every_parameter_once(policy):
    groups = freeze.group_parameters(policy)
    names = [name for group in groups.values() for name in group]
    assert tuple(groups) == MODULE_GROUPS and all(groups.values())
    assert sorted(names) == sorted(name for name, _ in policy.named_parameters())


@pytest.mark.parametrize(
    "trained", [("head",), ("llm", "head"), ("projector",), ("vision", "embeddings"), MODULE_GROUPS]
)
def test_exactly_the_trained_groups_move(policy, make_batch, trained):
    freeze.set_trainable(policy, trained)
    before = hashes(policy)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    policy.train()(make_batch(policy.spec, "vla"))[0].backward()
    optimizer.step()
    after = hashes(policy)
    moved = {name for name in before if before[name] != after[name]}
    groups = freeze.group_parameters(policy)
    assert moved == {name for group in trained for name in groups[group]}


def test_frozen_parts_stay_in_eval_when_the_policy_trains(policy):
    freeze.set_trainable(policy, ("llm", "head"))
    policy.train()
    groups = policy.groups()
    for group in MODULE_GROUPS:
        for module in groups[group]:
            assert all(part.training == (group in ("llm", "head")) for part in module.modules()), group
    policy.eval()
    assert not any(module.training for module in policy.modules())
    freeze.set_trainable(policy, MODULE_GROUPS)
    policy.train()
    assert all(module.training for module in policy.modules())


def test_a_later_stage_frees_what_an_earlier_one_froze():
    policy = build_policy(ModelConfig(), 0)
    freeze.set_trainable(policy, ("head",))
    freeze.set_trainable(policy, ("vision",))
    trains = {group for group, p in freeze.group_parameters(policy).items() if all(x.requires_grad for x in p.values())}
    assert trains == {"vision"}


@pytest.mark.parametrize("groups", [(), ("heads",), ("llm", "visoin")])
def test_unknown_or_no_groups_are_errors(policy, groups):
    with pytest.raises(UserError, match="vision, projector"):
        freeze.set_trainable(policy, groups)


def test_the_table_marks_what_trains(policy):
    freeze.set_trainable(policy, ("projector", "head"))
    lines = freeze.summary_table(policy).splitlines()
    assert [line.split()[0] for line in lines] == [*MODULE_GROUPS, "all"]
    assert [line.split()[-1] for line in lines[:-1]] == ["frozen", "trains", "frozen", "frozen", "trains"]
