"""Why: the sizes are the published model's, so parameter and operation counts must come out as in FACTS 4.1."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.speed.recipes import parameters
from la4vla import manifest
from la4vla.config import LORA_TARGETS, MODULE_GROUPS, LoraConfig, ModelConfig
from la4vla.model import flops, freeze, lora, weights
from la4vla.model.policy import Policy, build_policy, rebuild
from la4vla.model.presets import LA4VLA_1B, PRESETS, SMALL, TINY, ModelSize, preset, size_of
from la4vla.types import UserError
from tests.hand_checkpoint import complete

EVERYTHING = MODULE_GROUPS


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return Policy(LA4VLA_1B, "flatten", "sdpa", 0.2, writes=False, embodiments=())


def test_parameters_by_module(full_size):
    counts = {
        group: sum(p.numel() for p in parameters.values())
        for group, parameters in freeze.group_parameters(full_size).items()
    }
    assert counts == {
        "vision": 304_012_288,
        "projector": 4_482_816,
        "embeddings": 135_899_904,
        "llm": 344_674_176 - 135_899_904,
        "head": 122_029_360,
    }
    assert sum(counts.values()) == sum(p.numel() for p in full_size.parameters()) == 775_198_640


@pytest.mark.parametrize(
    ("groups", "trainable"),
    [(("head",), 122_029_360), (("llm", "head"), 330_803_632), (EVERYTHING, 775_198_640)],
)
def test_trainable_counts_of_the_stages(full_size, groups, trainable):
    freeze.set_trainable(full_size, groups)
    assert sum(p.numel() for p in full_size.parameters() if p.requires_grad) == trainable
    assert f"{trainable:,} train" in freeze.summary_table(full_size)


def test_tiny_is_tiny():
    assert 2.5e6 < sum(p.numel() for p in build_policy(ModelConfig(), 0).parameters()) < 4e6


def test_small_is_small_and_reads_what_tiny_reads():
    with torch.device("meta"):
        small = Policy(SMALL, "per_token", "sdpa", 0.0, writes=False, embodiments=())
    assert 55e6 < sum(p.numel() for p in small.parameters()) < 65e6
    assert SMALL.spec == TINY.spec


@pytest.mark.parametrize("name", PRESETS)
def test_spec_and_dict(name):
    size = preset(name)
    assert size.image_tokens == {"tiny": 16, "small": 16, "la4vla_1b": 256}[name]
    assert size.spec.max_tokens >= 3 * (size.image_tokens + 8) + 40
    assert ModelSize.from_dict(size.to_dict()) == size


def test_a_missing_size_is_an_error():
    raw = LA4VLA_1B.to_dict()
    del raw["horizon"]
    with pytest.raises(UserError, match="horizon"):
        ModelSize.from_dict(raw)


def test_another_horizon_is_another_chunk_and_no_other_weight():
    config = ModelConfig(preset="tiny", horizon=8)
    assert size_of(config).horizon == 8 and size_of(ModelConfig(preset="tiny")) == TINY
    short, usual = build_policy(config, 0), build_policy(ModelConfig(preset="tiny"), 0)
    assert short.spec.horizon == 8 and rebuild(short.description).spec == short.spec
    assert {name: p.shape for name, p in short.named_parameters()} == {
        name: p.shape for name, p in usual.named_parameters()
    }


SIZES_SET = dict(horizon=5, llm_layers=3, state_dim=33, action_dim=40)


@pytest.mark.parametrize("readout", ["per_token", "flatten"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_other_sizes_from_the_config(name, readout):
    size = size_of(ModelConfig(preset=name, **SIZES_SET))
    assert size == replace(PRESETS[name], **SIZES_SET)
    with torch.device("meta"):
        made = Policy(size, readout, "sdpa", 0.0, writes=False)
    assert (made.spec.horizon, made.spec.state_dim, made.spec.action_dim) == (5, 33, 40)
    assert len(made.backbone.internvl.language_model.layers) == 3
    shapes = {name: tuple(p.shape) for name, p in made.head.named_parameters()}
    assert shapes["state_encoder.fc1.weight"][1] == 33 and shapes["action_encoder.w1.weight"][1] == 40
    assert shapes["readout.fc2.weight"][0] == (40 if readout == "per_token" else 5 * 40)
    assert parameters(size, readout, LoraConfig())["head"] == sum(p.numel() for p in made.head.parameters())


def test_weights_of_another_horizon_do_not_fit_where_they_depend_on_it(tmp_path):
    made = build_policy(ModelConfig(preset="tiny", readout="flatten"), 0)
    save_file(made.state_dict(), tmp_path / manifest.WEIGHTS)
    complete(tmp_path, learner="policy", model=made.description)
    with pytest.raises(UserError, match=r"head\.readout\.pool\.weight.*use the model settings it was trained with"):
        weights.load(build_policy(ModelConfig(preset="tiny", readout="flatten", horizon=8), 0), str(tmp_path))


TF = 1e12


def test_forward_operations():
    assert flops.vision(LA4VLA_1B) == pytest.approx(0.723 * TF, rel=0.01)
    assert flops.llm(LA4VLA_1B, 1024) == pytest.approx(0.480 * TF, rel=0.01)
    head = flops.head_memory(LA4VLA_1B, 1024) + flops.head_velocity(LA4VLA_1B, "flatten", 1024)
    assert head == pytest.approx(0.034 * TF, rel=0.02)


@pytest.mark.parametrize(
    ("images", "trained", "published"),
    [
        (3, ("llm", "head"), 4.19),
        (3, ("head",), 2.75),
        (3, EVERYTHING, 10.70),
    ],
)
def test_training_operations_of_the_released_layout(images, trained, published):
    """With gradient checkpointing, as the release trains."""
    cost = flops.forward(LA4VLA_1B, "flatten", images, 1024)
    assert flops.training(cost, trained, checkpointing=True) == pytest.approx(published * TF, rel=0.01)


def test_dropping_image_tokens_saves_what_facts_say():
    trained = ("llm", "head")
    released = flops.training(flops.forward(LA4VLA_1B, "flatten", 3, 1024), trained, checkpointing=True)
    ours = flops.training(flops.forward(LA4VLA_1B, "flatten", 0, 36), trained, checkpointing=True)
    assert ours == pytest.approx(0.080 * TF, rel=0.1)
    assert released / ours == pytest.approx(52, rel=0.1)


def test_a_frozen_tower_costs_its_forward_only():
    cost = flops.forward(LA4VLA_1B, "per_token", 1, 300)
    assert flops.training(cost, ("head",)) == cost.vision + cost.projector + cost.llm + 3 * cost.head
    assert flops.training(cost, ("projector",)) == cost.vision + 3 * cost.projector + 2 * cost.llm + 2 * cost.head
    assert flops.training(cost, EVERYTHING) == 3 * cost.total


def test_caching_the_context_saves_the_projections():
    sizes = (LA4VLA_1B, "flatten", 1, 300, 10)
    saved = flops.chunk(*sizes, cached=False) - flops.chunk(*sizes, cached=True)
    assert saved == pytest.approx(9 * flops.head_memory(LA4VLA_1B, 300))


def test_counts_match_torchs_counter(make_batch):
    """torch counts what really runs; the analytic count has to be that, image slots and all."""
    from torch.utils.flop_counter import FlopCounterMode

    for readout, sizes in (("per_token", {}), ("flatten", {}), ("per_token", SIZES_SET), ("flatten", SIZES_SET)):
        policy = build_policy(ModelConfig(readout=readout, attention="eager", **sizes), 0).eval()
        batch = make_batch(policy.spec, "vla", rows=1, views=(2,))
        with FlopCounterMode(display=False) as counter:
            policy(batch)
        expected = flops.forward(policy.size, readout, 2, batch.input_ids_BL.shape[1]).total
        assert expected == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_operations_of_adapters_match_torchs_counter(make_batch):
    """Forward and backward, since what adapters cost is mostly what they save: no gradient of what they adapt."""
    from torch.utils.flop_counter import FlopCounterMode

    for readout, targets in (("per_token", list(LORA_TARGETS)), ("flatten", list(LORA_TARGETS)), ("flatten", ["llm"])):
        policy = build_policy(ModelConfig(readout=readout, attention="eager", dropout=0.0), 0)
        settings = LoraConfig(rank=32, targets=targets)
        lora.inject(policy, settings, seed=0)
        freeze.set_trainable(policy, ["lora"])
        batch = make_batch(policy.spec, "vla", rows=1, views=(2,))
        with FlopCounterMode(display=False) as counter:
            policy(batch)[0].backward()
        tokens = batch.input_ids_BL.shape[1]
        cost = flops.forward(policy.size, readout, 2, tokens)
        added = flops.adapters(policy.size, readout, settings, 2, tokens)
        assert flops.training(cost, (), False, added) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 0), ("NVIDIA L4", 0)],
)
def test_an_unknown_gpu_has_no_mfu(gpu, peak):
    """The PCIe part is slower than the SXM part of its name."""
    assert flops.peak_bf16(gpu) == peak
