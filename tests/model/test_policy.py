"""Why: what the whole project rests on. `la` rows are blind, what is masked cannot matter, loss and sampler agree.

The released code broke each of these silently (FACTS 5.1: B1, B2, B3, B8, B17), so each is held exactly, not nearly.
"""

from dataclasses import replace

import pytest
import torch

from la4vla.config import ModelConfig
from la4vla.model import flow
from la4vla.model.policy import build_policy, rebuild
from la4vla.types import KINDS, UserError


def loss_and_gradients(policy, batch):
    policy.zero_grad(set_to_none=True)
    total, count = policy(batch)
    (total / count).backward()
    return total.detach(), count, {name: p.grad for name, p in policy.named_parameters()}


def assert_same(first, second):
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    for name, gradient in first[2].items():
        other = second[2][name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.equal(gradient, other), name


def test_la_never_calls_the_vision_tower_and_gives_it_no_gradient(policy, make_batch):
    internvl = policy.backbone.internvl
    for module in (*internvl.vision_tower.modules(), *internvl.multi_modal_projector.modules()):
        module.register_forward_hook(lambda *_: pytest.fail("vision ran for an la batch"))
    gradients = loss_and_gradients(policy, make_batch(policy.spec, "la"))[2]
    for name, gradient in gradients.items():
        assert (gradient is None) == ("vision_tower" in name or "multi_modal_projector" in name), name


def test_la_batches_cannot_hold_images(policy, make_batch):
    batch = make_batch(policy.spec, "vla")
    assert policy.spec.image_token_id not in make_batch(policy.spec, "la").input_ids_BL
    with pytest.raises(AssertionError):
        policy(replace(batch, kind="la"))
    with pytest.raises(AssertionError):
        policy(replace(batch, images_NCHW=None))


@pytest.mark.parametrize("kind", ["la_leaky", "vla"])
def test_a_batch_without_any_view_equals_la_and_still_counts_vision_in(policy, make_batch, kind):
    """Every image of a micro-batch unreadable: the loss is the text's, and vision has a gradient of zero."""
    batch = make_batch(policy.spec, "la")
    blank = replace(batch, kind=kind)
    expected, found = loss_and_gradients(policy, batch), loss_and_gradients(policy, blank)
    assert torch.equal(expected[0], found[0])
    for name, gradient in found[2].items():
        if "vision_tower" in name or "multi_modal_projector" in name:
            assert torch.count_nonzero(gradient) == 0, name
        else:
            assert torch.equal(gradient, expected[2][name]), name
    policy.eval()
    assert torch.equal(policy.sample(batch, 2), policy.sample(blank, 2))


def test_la_does_not_depend_on_the_vision_weights(policy, make_batch):
    """With NaN in every vision weight, la losses, gradients and actions are bit for bit the same."""
    batch = make_batch(policy.spec, "la")
    before, actions = loss_and_gradients(policy, batch), policy.eval().sample(batch, 3)
    with torch.no_grad():
        for group in ("vision", "projector"):
            for module in policy.groups()[group]:
                for parameter in module.parameters():
                    parameter.fill_(torch.nan)
    assert torch.equal(policy.sample(batch, 3), actions)
    assert_same(loss_and_gradients(policy.train(), batch), before)


def test_vla_sees_its_own_pixels_and_no_other_rows(policy, make_batch):
    batch = make_batch(policy.spec, "vla", views=(1, 1, 1))
    changed = batch.images_NCHW.clone()
    changed[1] = 255 - changed[1]
    policy.eval()
    moved = policy.sample(batch, 2) != policy.sample(replace(batch, images_NCHW=changed), 2)
    assert moved[1].any() and not moved[0].any() and not moved[2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_padded_positions_cannot_matter(policy, make_batch, kind):
    """Ids of real words at pad positions: losses, gradients and actions stay the same, to the bit."""
    batch = make_batch(policy.spec, kind, extra_pads=4)
    garbage = batch.input_ids_BL.masked_fill(~batch.text_mask_BL, 77)
    dirty = replace(batch, input_ids_BL=garbage)
    clean, other = loss_and_gradients(policy, batch), loss_and_gradients(policy, dirty)
    assert_same(clean, other)
    policy.eval()
    assert torch.equal(policy.sample(batch, 3), policy.sample(dirty, 3))


def test_masked_context_cannot_matter(policy, make_batch):
    """Garbage of any size at masked context positions moves nothing; at a real one it does."""
    batch = make_batch(policy.spec, "la", extra_pads=3)
    context, key_mask = policy.backbone(batch)

    def velocity(values):
        cache = policy.head.encode_context(values, key_mask, batch.state_BS, batch.state_mask_BS, batch.embodiment_B)
        return policy.head.velocity(batch.noise_BTA, batch.time_B, cache)

    garbage = torch.where(key_mask[..., None], context, torch.full_like(context, 1e6))
    assert torch.equal(velocity(context), velocity(garbage))
    real = context.clone()
    real[0, 0] += 1.0
    assert not torch.equal(velocity(context)[0], velocity(real)[0])


def test_padding_a_batch_further_changes_nothing_but_rounding(policy, make_batch):
    policy.eval()
    short, long = make_batch(policy.spec, "vla"), make_batch(policy.spec, "vla", extra_pads=20)
    torch.testing.assert_close(policy.sample(short, 3), policy.sample(long, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.7, 1e9, float("nan")])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_targets_and_absent_dims_cannot_change_loss_or_gradients(policy, make_batch, kind, value):
    batch = make_batch(policy.spec, kind)
    dirty = replace(
        batch,
        actions_BTA=torch.where(batch.action_mask_BTA, batch.actions_BTA, value),
        state_BS=torch.where(batch.state_mask_BS, batch.state_BS, value),
        noise_BTA=torch.where(flow.present_dims(batch.action_mask_BTA), batch.noise_BTA, value),
    )
    assert_same(loss_and_gradients(policy, batch), loss_and_gradients(policy, dirty))


def test_the_end_of_a_clip_is_invisible_to_per_token_heads(make_batch):
    """Real steps of a chunk must not know that the clip ends inside it: only the flow of later steps may differ."""
    policy = build_policy(ModelConfig(dropout=0.0), seed=0).eval()
    batch = make_batch(policy.spec, "la")
    cache = policy.encode_context(batch)
    before = policy.head.velocity(batch.noise_BTA, batch.time_B, cache)
    changed = batch.noise_BTA.clone()
    changed[:, 5:] = 0.0
    after = policy.head.velocity(changed, batch.time_B, cache)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3
    changed = batch.noise_BTA.clone()
    changed[:, :5] = 0.0
    assert (before[:, 5:] - policy.head.velocity(changed, batch.time_B, cache)[:, 5:]).abs().max() > 1e-4


def test_sampling_ignores_time_padding_and_targets(policy, make_batch):
    """A served chunk has no targets; validation on a clip's end must sample what serving would."""
    policy.eval()
    batch = make_batch(policy.spec, "la")
    dims = flow.present_dims(batch.action_mask_BTA).expand_as(batch.action_mask_BTA)
    served = replace(batch, action_mask_BTA=dims, actions_BTA=torch.full_like(batch.actions_BTA, torch.nan))
    actions = policy.sample(batch, 4)
    assert torch.equal(actions, policy.sample(served, 4))
    assert actions.dtype == torch.float32 and torch.all(actions[:, :, 6:] == 0) and actions[:, :, :6].abs().min() > 0


def test_a_row_without_any_real_value_counts_nothing(policy, make_batch):
    """How the loader hides a sample it could not read."""
    batch = make_batch(policy.spec, "la")
    mask = batch.action_mask_BTA.clone()
    mask[0] = False
    total, count, gradients = loss_and_gradients(policy, replace(batch, action_mask_BTA=mask))
    assert count == mask.sum() and total.isfinite()
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_equals_single(policy, make_batch, kind):
    policy.eval()
    batch = make_batch(policy.spec, kind)
    together = policy.sample(batch, 4)
    totals = torch.zeros(())
    for row in range(batch.rows):
        length = int(batch.text_mask_BL[row].sum())
        pick = slice(row, row + 1)
        single = replace(
            batch,
            **{
                name: getattr(batch, name)[pick]
                for name in ("state_BS", "state_mask_BS", "actions_BTA", "action_mask_BTA", "noise_BTA", "time_B")
            },
            input_ids_BL=batch.input_ids_BL[pick, :length],
            text_mask_BL=batch.text_mask_BL[pick, :length],
        )
        if kind != "la":
            counts = (batch.input_ids_BL == policy.spec.image_token_id).sum(1) // policy.spec.image_tokens
            first = int(counts[:row].sum())
            index = (single.input_ids_BL[0] == policy.spec.image_token_id).nonzero()[:, 0]
            single = replace(single, images_NCHW=batch.images_NCHW[first : first + counts[row]], image_index=index)
            if counts[row] == 0:
                single = replace(single, kind="la", images_NCHW=None, image_index=None)
        torch.testing.assert_close(policy.sample(single, 4)[0], together[row], rtol=1e-4, atol=1e-5)
        totals = totals + policy(single)[0]
    torch.testing.assert_close(policy(batch)[0], totals, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_equals_sdpa(make_batch, kind):
    """The release gave other actions on another attention backend (FACTS 5.1 B2)."""
    one = build_policy(ModelConfig(dropout=0.0, attention="eager"), seed=0).eval()
    two = build_policy(ModelConfig(dropout=0.0, attention="sdpa"), seed=0).eval()
    assert one.backbone.internvl.vision_tower.config._attn_implementation == "eager"
    assert two.backbone.internvl.language_model.config._attn_implementation == "sdpa"
    batch = make_batch(one.spec, kind)
    torch.testing.assert_close(one.sample(batch, 4), two.sample(batch, 4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one(batch)[0], two(batch)[0], rtol=1e-5, atol=1e-4)


def test_an_absent_attention_backend_is_an_error():
    with pytest.raises(UserError, match="flash-attn"):
        build_policy(ModelConfig(attention="flash_attention_2"), seed=0)


def test_cached_context_equals_projecting_it_every_step(policy, make_batch):
    policy.eval()
    batch = make_batch(policy.spec, "vla")
    dims = flow.present_dims(batch.action_mask_BTA)

    def velocity(x, time):
        return policy.head.velocity(x, time, policy.encode_context(batch))

    with torch.no_grad():
        assert torch.equal(flow.euler(velocity, batch.noise_BTA, dims, 4), policy.sample(batch, 4))


def test_loss_and_sampler_use_one_velocity(policy, make_batch):
    """One Euler step from time 0 is noise + velocity, so the loss at time 0 is the squared distance of that step."""
    policy.eval()
    batch = make_batch(policy.spec, "la")
    batch = replace(batch, time_B=torch.zeros(batch.rows))
    difference = (policy.sample(batch, 1) - batch.actions_BTA).masked_fill(~batch.action_mask_BTA, 0.0)
    torch.testing.assert_close(policy(batch)[0], difference.square().sum(), rtol=1e-5, atol=1e-4)


def test_time_is_continuous_under_bf16(policy, make_batch):
    """bf16 has 8 bits: 0.5 and 0.5005 are one number there, and were one time in the release (FACTS 5.1 B3)."""
    policy.eval()
    batch = make_batch(policy.spec, "la")
    near, far = torch.full((3,), 0.5), torch.full((3,), 0.5005)
    assert near.bfloat16()[0] == far.bfloat16()[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        cache = policy.encode_context(batch)
        one, two = (policy.head.velocity(batch.noise_BTA, time, cache) for time in (near, far))
        total, count = policy(batch)
    assert one.dtype == total.dtype == count.dtype == torch.float32
    assert not torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_weights_run_and_stay_near(policy, make_batch, kind):
    """Engines may cast the weights (DeepSpeed) or autocast; the loss stays fp32 and close either way."""
    policy.eval()
    batch = make_batch(policy.spec, kind)
    exact = policy(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        autocast = policy(batch)[0]
    cast = policy.to(torch.bfloat16)(batch)[0]
    for loss in (autocast, cast):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, rtol=0.03, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_memory_not_gradients(policy, make_batch, kind):
    batch = make_batch(policy.spec, kind)
    before = loss_and_gradients(policy, batch)
    calls = []
    layer = policy.backbone.internvl.language_model.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    policy.enable_gradient_checkpointing()
    after = loss_and_gradients(policy, batch)
    assert len(calls) == 2
    assert_same(before, after)


def test_dropout_is_off_in_eval_and_on_in_training(make_batch):
    policy = build_policy(ModelConfig(dropout=0.5), seed=0)
    batch = make_batch(policy.spec, "la")
    assert policy(batch)[0] != policy(batch)[0]
    with pytest.raises(AssertionError):
        policy.sample(batch, 2)
    policy.eval()
    assert policy(batch)[0] == policy(batch)[0]


def test_a_seed_is_a_model_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    one, two, other = (build_policy(ModelConfig(), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert {"head.blocks.0.attn.kv_proj.weight", "head.action_encoder.w1.weight"} <= set(different)
    assert all(value.isfinite().all() for value in one.values())


def test_rebuild_from_the_description_gives_the_same_actions(policy, make_batch):
    again = rebuild(policy.description)
    assert all(parameter.isnan().all() for parameter in again.parameters())
    again.load_state_dict(policy.state_dict())
    batch = make_batch(policy.spec, "vla")
    assert torch.equal(again.eval().sample(batch, 3), policy.eval().sample(batch, 3))
    with pytest.raises(UserError, match="disagree about `newer`"):
        rebuild({**policy.description, "size": {**policy.description["size"], "newer": 1}})


def test_an_unknown_preset_is_an_error():
    with pytest.raises(UserError, match="tiny"):
        build_policy(ModelConfig(preset="huge"), seed=0)
