"""Why: an adapter on the wrong layer, one that does not begin as nothing, or one that is merged in half precision makes
another model and says nothing."""

import pytest
import torch
from torch import nn

from la4vla.config import LoraConfig, ModelConfig
from la4vla.model import freeze, lora
from la4vla.model.policy import build_policy
from la4vla.types import UserError

ADAPTED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def moved(policy, seed=1):
    """With adapters that do something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.05, generator=draw)
    return policy


@pytest.fixture
def policy():
    return build_policy(ModelConfig(dropout=0.0), seed=0).eval()


def test_the_language_model_alone_is_adapted_and_nothing_changes_at_first(policy, make_batch):
    batch = make_batch(policy.spec, "vla")
    before, names = policy(batch)[0], set(policy.state_dict())
    lora.inject(policy, LoraConfig(rank=4), seed=3)
    layers = lora.adapted(policy)
    assert len(layers) == 7 * policy.size.llm_layers
    assert all(".language_model.layers." in name and name.rpartition(".")[2] in ADAPTED for name in layers)
    assert torch.equal(policy(batch)[0], before)
    assert {name.replace(".base_layer.", ".") for name in policy.state_dict() if ".lora_" not in name} == names


def test_adapters_are_a_function_of_the_seed(policy):
    again = build_policy(ModelConfig(dropout=0.0), seed=0)
    other = build_policy(ModelConfig(dropout=0.0), seed=0)
    torch.manual_seed(1)
    lora.inject(policy, LoraConfig(rank=4), seed=3)
    torch.manual_seed(2)
    lora.inject(again, LoraConfig(rank=4), seed=3)
    lora.inject(other, LoraConfig(rank=4), seed=4)
    one, two, three = (item.state_dict() for item in (policy, again, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    drawn = [name for name in one if ".lora_A." in name]
    assert drawn and all(one[name].std() > 0 and not torch.equal(one[name], three[name]) for name in drawn)


@pytest.mark.parametrize(
    ("target", "part"), [("vision", ".vision_tower."), ("projector", ".multi_modal_"), ("head", "head.")]
)
def test_named_groups_get_adapters_in_all_their_linear_layers(policy, target, part):
    linear = {
        name
        for name, item in policy.named_modules()
        if isinstance(item, nn.Linear) and (part in name or name.startswith(part))
    }
    lora.inject(policy, LoraConfig(rank=2, targets=[target]), seed=0)
    assert set(lora.adapted(policy)) == linear and linear


def test_lora_trains_beside_whole_groups_and_its_hosts_leave_eval_mode(policy, make_batch):
    lora.inject(policy, LoraConfig(rank=4), seed=0)
    freeze.set_trainable(moved(policy), ("lora", "head"))
    policy.train()
    trains = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {name for name in trains if not name.startswith("head.")} == {
        name for name, _ in policy.named_parameters() if ".lora_" in name
    }
    assert policy.frozen_groups == {"vision", "projector", "embeddings"}
    policy(make_batch(policy.spec, "vla"))[0].backward()
    assert all((parameter.grad is not None) == (name in trains) for name, parameter in policy.named_parameters())
    table = freeze.summary_table(policy).splitlines()
    assert [line.split()[0] for line in table] == ["vision", "projector", "embeddings", "llm", "head", "lora", "all"]
    assert [line.split()[0] for line in table if "trains" in line] == ["head", "lora"]


def test_a_group_that_is_not_there_is_a_sentence(policy):
    with pytest.raises(UserError, match="cannot train `lora`; name at least one of vision, projector"):
        freeze.set_trainable(policy, ("lora",))


@pytest.mark.parametrize("held_in", [torch.float32, torch.bfloat16])
def test_merging_gives_the_same_actions_and_the_old_names(policy, make_batch, held_in):
    """The base is brought to fp32 first: added in bf16, most of an adapter would be rounded away."""
    names = set(policy.state_dict())
    lora.inject(policy, LoraConfig(rank=4), seed=0)
    moved(policy)
    for name, parameter in policy.named_parameters():
        if ".base_layer." in name:
            parameter.data = parameter.data.to(held_in)
    batch = make_batch(policy.spec, "vla")
    whole = build_policy(ModelConfig(dropout=0.0), seed=0).eval()
    before = whole.sample(batch, 4)
    exact = {
        name: layer.get_base_layer().weight.double()
        + layer.scaling["default"] * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        for name, layer in lora.adapted(policy).items()
    }
    adapted = policy.sample(batch, 4) if held_in == torch.float32 else None
    lora.merge(policy)
    state = policy.state_dict()
    assert set(state) == names and all(value.dtype == torch.float32 for value in state.values())
    assert max((state[f"{name}.weight"] - value).abs().max() for name, value in exact.items()) < 1e-6
    if adapted is not None:
        assert (policy.sample(batch, 4) - adapted).abs().max() < 1e-5 < (adapted - before).abs().max()
