"""Why: with projections of its own a robot's rows must meet its own numbers and nobody else's, and teach them alone."""

import pytest
import torch

from la4vla.config import ModelConfig, TrainConfig, load, validate
from la4vla.model.head import EmbodimentLinear
from la4vla.model.policy import build_policy, rebuild
from la4vla.types import Batch, UserError

ROBOTS = ("arm", "plane", "legs")
OWN = ("action_encoder.w1", "state_encoder.fc1", "readout.fc2")


def numbered(batch: Batch, *numbers: int) -> Batch:
    return Batch(**{**vars(batch), "embodiment_B": torch.tensor(numbers)})


def test_a_row_goes_through_the_layer_of_its_embodiment():
    torch.manual_seed(0)
    layer, x = EmbodimentLinear(3, 5, 4), torch.randn(4, 2, 5)
    with torch.no_grad():
        layer.weight.normal_(), layer.bias.normal_()
    numbers = torch.tensor([2, 0, 2, 1])
    by_hand = torch.stack([x[row] @ layer.weight[n].T + layer.bias[n] for row, n in enumerate(numbers)])
    torch.testing.assert_close(layer(x, numbers), by_hand)


def test_a_policy_of_several_is_one_policy_for_each(make_batch):
    """Its weights for embodiment n, put into a policy that shares them, give the same chunk."""
    config = ModelConfig(dropout=0.0, embodiments="separate")
    policy = build_policy(config, 0, embodiments=ROBOTS).eval()
    batch = numbered(make_batch(policy.spec, "vla"), 2, 0, 1)
    chunks = policy.sample(batch, 3)
    for row, number in enumerate((2, 0, 1)):
        shared = build_policy(ModelConfig(dropout=0.0), 0).eval()
        mine = policy.state_dict()
        shared.load_state_dict(
            {
                name: mine[name][number] if mine[name].ndim > old.ndim else mine[name]
                for name, old in shared.state_dict().items()
            }
        )
        torch.testing.assert_close(chunks[row], shared.sample(batch, 3)[row])
    assert torch.equal(policy.head.action_encoder.w1.bias, torch.zeros(3, policy.size.width))
    assert not torch.equal(*policy.head.action_encoder.w1.weight[:2])


def test_a_robots_rows_teach_its_own_projections_alone(make_batch):
    policy = build_policy(ModelConfig(dropout=0.0), 0, embodiments=ROBOTS)
    loss, _ = policy(numbered(make_batch(policy.spec, "vla"), 1, 1, 1))
    loss.backward()
    for name in OWN:
        taught = policy.head.get_submodule(name).weight.grad.abs().sum((1, 2)) > 0
        assert taught.tolist() == [False, True, False], name


def test_it_is_rebuilt_from_its_description():
    policy = build_policy(ModelConfig(), 3, embodiments=ROBOTS)
    again = rebuild(policy.description)
    again.load_state_dict(policy.state_dict())
    assert again.description == policy.description and policy.description["embodiments"] == list(ROBOTS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["run.init_parts.take=[head.*]", "run.init_from=x"], "a name holds those of several robots"),
        (["model.readout=flatten"], "needs model.readout=per_token"),
        (
            ["model.lora.rank=4", "model.lora.targets=[head]", "stages.finetune.train=[lora]", "run.init_from=x"],
            "train head whole",
        ),
    ],
)
def test_what_cannot_be_separate_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        validate(load("configs/tiny/finetune_libero.yaml", ["model.embodiments=separate", *changes], TrainConfig))
