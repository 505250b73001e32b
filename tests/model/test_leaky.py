"""Why: kind `la_leaky` is there to measure the release's masking, so it must leak as the release did, no more and no
less: nothing through the language model, everything through the image positions that the head attends to (FACTS 5.1 B1,
B8)."""

from dataclasses import replace

import pytest
import torch

from la4vla.config import ModelConfig
from la4vla.model.policy import build_policy
from la4vla.types import UserError
from tests.model.test_backbone import reference


@pytest.fixture(params=["sdpa", "eager"])
def seeing(request):
    return build_policy(ModelConfig(attention=request.param), seed=0).eval()


def positions(policy, batch):
    """bool [B, L] each: where real tokens are that are text, and those that are images."""
    image = batch.input_ids_BL == policy.spec.image_token_id
    return batch.text_mask_BL & ~image, image


def test_pixels_reach_the_head_by_the_image_positions_alone(seeing, make_batch):
    batch = make_batch(seeing.spec, "la_leaky")
    repainted = replace(batch, images_NCHW=255 - batch.images_NCHW)
    text, image = positions(seeing, batch)
    with torch.no_grad():
        (before, key_mask), (after, _) = seeing.backbone(batch), seeing.backbone(repainted)
        seen = seeing.backbone(replace(repainted, kind="vla"))[0] - seeing.backbone(replace(batch, kind="vla"))[0]
    assert torch.equal(before[text], after[text]), "the language model let a pixel through"
    assert (before[image] - after[image]).abs().amax(-1).min() > 1e-3 and torch.equal(key_mask, batch.text_mask_BL)
    assert seen[text].abs().max() > 1e-3, "the probe is blind: pixels move no text where nothing is masked"
    leak = (seeing.sample(batch, 4) - seeing.sample(repainted, 4)).abs().amax((1, 2))
    print(f"\nleak into the actions, rows of 1, 2 and no image: {[f'{value:.1e}' for value in leak.tolist()]}")
    assert leak[:2].min() > 1e-4 and leak[2] == 0


def test_it_is_the_releases_mask(seeing, make_batch):
    """transformers' own forward with zeros at the image positions of the 2-D mask, which is how the release did it."""
    batch = make_batch(seeing.spec, "la_leaky")
    text, image = positions(seeing, batch)
    with torch.no_grad():
        context, key_mask = seeing.backbone(batch)
        expected = reference(seeing.backbone.internvl, replace(batch, text_mask_BL=text))
    torch.testing.assert_close(context[key_mask], expected[key_mask], rtol=1e-4, atol=1e-5)
    assert image.any()


def test_an_image_does_not_see_the_images_before_it(seeing, make_batch):
    """Row 1 shows two images: what stands at the second's positions does not depend on the first."""
    batch = make_batch(seeing.spec, "la_leaky", views=(1, 2, 0))
    changed = batch.images_NCHW.clone()
    changed[1] = 255 - changed[1]  # row 1's first
    _, image = positions(seeing, batch)
    first, second = image[1].nonzero()[:, 0].chunk(2)
    with torch.no_grad():
        before, after = (
            seeing.backbone(replace(batch, images_NCHW=images))[0] for images in (batch.images_NCHW, changed)
        )
    assert torch.equal(before[1, second], after[1, second]) and not torch.equal(before[1, first], after[1, first])


def test_it_sends_gradient_into_vision_which_la_never_does(policy, make_batch):
    batch = make_batch(policy.spec, "la_leaky")
    policy(batch)[0].backward()
    for group in ("vision", "projector"):
        for module in policy.groups()[group]:
            assert all(parameter.grad is not None for parameter in module.parameters())
            assert any(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_a_backend_that_cannot_mask_is_refused(make_batch):
    policy = build_policy(ModelConfig(), seed=0).eval()
    policy.backbone.attention = "flash_attention_2"  # not installed where the tests run
    with pytest.raises(UserError, match=r"set model\.attention=sdpa"):
        policy.sample(make_batch(policy.spec, "la_leaky"), 1)
