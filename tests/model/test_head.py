"""Why: the head is our own reading of FACTS 4.1: held against torch's attention, the released shapes, the algebra."""

import math

import pytest
import torch
from torch import nn

from la4vla.model import flow
from la4vla.model.head import Attention, FlowHead
from la4vla.model.presets import LA4VLA_1B, TINY

ONE = torch.zeros(1, dtype=torch.int64)  # the number of one row's embodiment


def test_attention_is_torchs_multihead_attention():
    """Also the map from a released `in_proj_weight`: q over k over v."""
    torch.manual_seed(0)
    ours, theirs = Attention(64, 4, dropout=0.0, embodiments=0), nn.MultiheadAttention(64, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        ours.q_proj.weight.copy_(theirs.in_proj_weight[:64])
        ours.kv_proj.weight.copy_(theirs.in_proj_weight[64:])
        ours.q_proj.bias.copy_(theirs.in_proj_bias[:64])
        ours.kv_proj.bias.copy_(theirs.in_proj_bias[64:])
        ours.out_proj.load_state_dict(theirs.out_proj.state_dict())
    x, context = torch.randn(2, 5, 64), torch.randn(2, 7, 64)
    seen = torch.arange(7) < torch.tensor([[4], [7]])
    expected, _ = theirs(x, context, context, key_padding_mask=~seen)
    found = ours(x, ours.keys_values(context), mask=seen[:, None, None], causal=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "parameters"),
    [  # FACTS 4.1, parameter counts
        ("blocks", 77_163_520),
        ("readout.pool", 40_141_696),
        ("action_encoder", 1_629_824),
        ("state_encoder", 944_000),
        ("norm_out", 1_792),
    ],
)
def test_flatten_head_has_the_released_parts(part, parameters):
    with torch.device("meta"):
        head = FlowHead(LA4VLA_1B, "flatten", dropout=0.2, embodiments=0)
    assert sum(p.numel() for p in head.get_submodule(part).parameters()) == parameters


def test_integrating_the_true_field_returns_the_data():
    """The velocity of a straight path is constant, so any number of Euler steps must land on the actions."""
    torch.manual_seed(0)
    noise, actions = torch.rand(4, 6, 3) * 2 - 1, torch.rand(4, 6, 3) * 2 - 1
    mask = torch.ones(4, 6, 3, dtype=torch.bool)
    mask[..., 2] = False
    _, target = flow.path(noise, actions, mask, torch.rand(4))
    for steps in (1, 7, 32):
        found = flow.euler(lambda x, time: target, noise, flow.present_dims(mask), steps)
        torch.testing.assert_close(found, actions * mask, rtol=0, atol=1e-5)


def test_integrating_the_exact_field_of_two_points_returns_the_points():
    """Data on -1 and 1, normal noise: the field is known in closed form, and Euler must carry the noise to the data."""
    noise = torch.randn(512, 1, 1, generator=torch.Generator().manual_seed(0))

    def field(x, time):
        t = time[:, None, None]
        mean = torch.tanh(t * x / (1 - t) ** 2)  # of the data given x_t
        return (mean - x) / (1 - t)

    found = flow.euler(field, noise, torch.ones(1, 1, 1, dtype=torch.bool), 200)
    assert (found.abs() - 1).abs().max() < 0.02
    assert torch.equal(found.sign(), noise.sign())


def test_path_runs_from_noise_to_actions():
    noise, actions, mask = (
        torch.full((2, 3, 2), -1.0),
        torch.full((2, 3, 2), 1.0),
        torch.ones(2, 3, 2, dtype=torch.bool),
    )
    x, velocity = flow.path(noise, actions, mask, torch.tensor([0.0, 0.25]))
    assert torch.all(x[0] == -1.0) and torch.all(x[1] == -0.5) and torch.all(velocity == 2.0)


def test_squared_error_counts_only_what_is_real():
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    total, count = flow.squared_error(torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2), mask)
    assert (total.item(), count.item()) == (9.0, 1.0)


def test_sinusoid_is_the_released_table_between_its_entries_too():
    width, index = 8, 123
    rates = [math.exp(-math.log(10_000.0) * i / width) for i in range(0, width, 2)]
    expected = [f(index * rate) for rate in rates for f in (math.sin, math.cos)]
    torch.testing.assert_close(flow.sinusoid(torch.tensor(index), width), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    between = flow.sinusoid(torch.tensor([123.0, 123.5]), width)
    assert (between[0] - between[1]).abs().max() > 0.1


@pytest.mark.parametrize("readout", ["per_token", "flatten"])
def test_velocity_refuses_times_that_lost_precision(readout):
    head = FlowHead(TINY, readout, dropout=0.0, embodiments=0)
    cache = head.encode_context(
        torch.zeros(1, 2, TINY.width),
        torch.ones(1, 2, dtype=torch.bool),
        torch.zeros(1, 8),
        torch.ones(1, 8).bool(),
        ONE,
    )
    with pytest.raises(AssertionError):
        head.velocity(torch.zeros(1, TINY.horizon, 8), torch.zeros(1).bfloat16(), cache)


def test_chunk_steps_can_agree():
    """What self-attention is for: later steps of a per_token chunk depend on earlier ones."""
    torch.manual_seed(0)
    head = FlowHead(TINY, "per_token", dropout=0.0, embodiments=0).eval()
    cache = head.encode_context(
        torch.randn(1, 4, TINY.width),
        torch.ones(1, 4, dtype=torch.bool),
        torch.zeros(1, 8),
        torch.ones(1, 8).bool(),
        ONE,
    )
    x = torch.randn(1, TINY.horizon, TINY.action_dim, requires_grad=True)
    head.velocity(x, torch.tensor([0.5]), cache)[0, 7].sum().backward()
    reach = x.grad[0].abs().sum(-1)
    assert torch.all(reach[:8] > 0) and torch.all(reach[8:] == 0)
