"""Why: a schedule that runs N times too fast, norms that decay and steps that are not skipped never crash; they only
cost success. Pure functions, so tables."""

import math

import pytest
import torch

from la4vla.config import OptimConfig, StageConfig
from la4vla.train import optim


def stage(**changes) -> StageConfig:
    return StageConfig(**{"steps": 100, "lr": 2.0, "warmup_steps": 10, **changes})


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (5, 1.0),
        (10, 2.0),
        (55, 1.0),
        (100, 0.0),
        (99, 2.0 * 0.5 * (1 + math.cos(math.pi * 89 / 90))),
    ],
)
def test_lr_is_linear_then_cosine(step, expected):
    assert optim.lr_at(step, stage(), 2.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (1, 1.0), (2, 2.0), (99, 2.0)])
def test_a_constant_rate_stays_after_its_warm_up(step, expected):
    assert optim.lr_at(step, stage(schedule="constant", warmup_steps=2), 2.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (5, 1.0), (10, 2.0), (55, 1.0), (73, 0.6), (100, 0.0)])
def test_linear_decay_falls_from_the_top_to_0(step, expected):
    assert optim.lr_at(step, stage(schedule="linear"), 2.0) == pytest.approx(expected, abs=1e-12)


def test_lr_without_warmup_starts_at_the_top_and_with_too_much_never_gets_there():
    assert optim.lr_at(0, stage(warmup_steps=0), 2.0) == 2.0
    assert optim.lr_at(99, stage(warmup_steps=200), 2.0) == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("step", "expected"), [(5, 1.0), (10, 2.0), (69, 2.0), (70, 2.0), (85, 1.1), (99, 2.0 - 1.8 * 29 / 30), (100, 0.2)]
)
def test_wsd_stays_at_the_top_and_falls_in_its_last_share_to_its_floor(step, expected):
    falling = stage(schedule="wsd", decay_share=0.3, min_lr_ratio=0.1)
    assert optim.lr_at(step, falling, 2.0) == pytest.approx(expected, abs=1e-12)


def test_wsd_never_falls_inside_its_warm_up():
    assert optim.lr_at(39, stage(schedule="wsd", decay_share=0.9, warmup_steps=40), 2.0) == pytest.approx(1.95)
    assert optim.lr_at(40, stage(schedule="wsd", decay_share=0.9, warmup_steps=40), 2.0) == 2.0


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 1.1), ("linear", 1.1)])
def test_a_floor_is_where_the_rate_ends(schedule, middle):
    floored = stage(schedule=schedule, min_lr_ratio=0.1)
    assert [optim.lr_at(step, floored, 2.0) for step in (10, 55, 100)] == pytest.approx([2.0, middle, 0.2])


def test_without_a_floor_rates_are_what_they_were_to_the_bit():
    """A run that was begun before goes on with the same bytes."""
    for step in range(101):
        fraction = (step - 10) / 90
        cosine = 2e-5 * step / 10 if step < 10 else 2e-5 * 0.5 * (1.0 + math.cos(math.pi * fraction))
        straight = 2e-5 * step / 10 if step < 10 else 2e-5 * (1.0 - fraction)
        assert optim.lr_at(step, stage(), 2e-5) == cosine
        assert optim.lr_at(step, stage(schedule="linear"), 2e-5) == straight


def test_a_group_has_its_own_rate_with_and_without_decay():
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2), "c": torch.nn.Linear(2, 2)})
    named = dict(module.named_parameters())
    optimizer = optim.build(named, OptimConfig(), optim.Rules(0.1, {"tail": {"b.weight", "b.bias", "frozen"}}))
    optim.set_rates(optimizer.param_groups, optim.rates_at(55, stage(lr=1.0, lr_groups={"tail": 4.0})))
    held = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name, parameter in named.items()
        if any(parameter is one for one in group["params"])
    }
    rates = {"a": 0.5, "b": 2.0, "c": 0.5}
    assert held == {name: (rates[name[0]], 0.1 if name.endswith("weight") else 0.0) for name in named}


def test_only_matrices_that_are_no_norm_decay():
    module = torch.nn.ModuleDict(
        {"linear": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2), "table": torch.nn.Embedding(3, 2)}
    )
    module.odd_norm = torch.nn.Linear(2, 2)  # a matrix by shape, a norm by name
    named = dict(module.named_parameters())
    assert {name for name, p in named.items() if optim.decays(name, p)} == {"linear.weight", "table.weight"}
    optimizer = optim.build(named, OptimConfig(), optim.Rules(0.1, {}))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(named)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_state_made_ahead_is_what_adamw_makes_itself():
    """A canary for torch: fill_state writes AdamW's state by hand."""
    results = []
    for ahead in (False, True):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
        optimizer = optim.build({"w": parameter}, OptimConfig(), optim.Rules(0.1, {}))
        if ahead:
            optim.fill_state(optimizer, [parameter])
        for step in range(3):
            parameter.grad = torch.full_like(parameter, 0.5 + step)
            optimizer.param_groups[0]["lr"] = 0.1
            optimizer.step()
        state = optimizer.state[parameter]
        assert set(state) == {"step", *optim.MOMENTS}
        results.append([parameter.data, *(state[key] for key in ("step", *optim.MOMENTS))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_does(bad):
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = optim.build({"a": parameters[0], "b.weight": parameters[1]}, OptimConfig(), optim.Rules(0.1, {}))
    optim.fill_state(optimizer, parameters)
    for group in optimizer.param_groups:
        group["lr"] = 0.1

    def step(value: float) -> float:
        parameters[0].grad, parameters[1].grad = torch.full((3,), value), torch.ones(2, 2)
        norm = optim.clip_and_guard(optimizer, parameters, clip_norm=1.0)
        optimizer.step()
        return float(norm)

    assert step(2.0) == pytest.approx(4.0)
    before = [tensor.clone() for p in parameters for tensor in (p.data, *optimizer.state[p].values())]
    assert not math.isfinite(step(bad))
    after = [tensor for p in parameters for tensor in (p.data, *optimizer.state[p].values())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert optim.updates_done(optimizer) == 1
    step(2.0)
    assert optim.updates_done(optimizer) == 2
    assert not torch.equal(before[0], parameters[0].data)


def test_clipping_scales_to_the_norm_and_never_up():
    for value, expected in ((3.0, 1.0), (0.1, 0.2)):
        parameter = torch.nn.Parameter(torch.zeros(4))
        optimizer = optim.build({"w": parameter}, OptimConfig(), optim.Rules(0.0, {}))
        parameter.grad = torch.full((4,), value)
        assert float(optim.clip_and_guard(optimizer, [parameter], 1.0)) == pytest.approx(2 * value)
        assert float(parameter.grad.norm()) == pytest.approx(expected, rel=1e-5)
