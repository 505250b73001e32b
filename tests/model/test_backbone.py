"""Why: transformers is a moving seam. Images land in their slots, pixels are normalised in fp32, nothing waits."""

from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import InternVLModel

from la4vla.config import ModelConfig
from la4vla.model.backbone import IMAGENET_MEAN, IMAGENET_STD
from la4vla.model.policy import build_policy
from la4vla.types import KINDS


def reference(internvl: InternVLModel, batch):
    """transformers' own forward: placeholder mask, padding mask and all."""
    pixels = batch.images_NCHW.float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return internvl(
        input_ids=batch.input_ids_BL, pixel_values=(pixels - mean) / std, attention_mask=batch.text_mask_BL.long()
    ).last_hidden_state


def test_context_equals_transformers_own_forward(make_batch):
    policy = build_policy(ModelConfig(), seed=0).eval()
    batch = make_batch(policy.spec, "vla")
    with torch.no_grad():
        context, key_mask = policy.backbone(batch)
        expected = reference(policy.backbone.internvl, batch)
    assert torch.equal(key_mask, batch.text_mask_BL)
    torch.testing.assert_close(context[key_mask], expected[key_mask], rtol=1e-4, atol=1e-5)


def test_each_image_reaches_its_own_slot(make_batch):
    """Swapping the pictures of row 1's two slots must not be the same row: a wrist view is not a base view."""
    policy = build_policy(ModelConfig(), seed=0).eval()
    batch = make_batch(policy.spec, "vla", views=(1, 2, 0))
    swapped = batch.images_NCHW[[0, 2, 1]]
    with torch.no_grad():
        before = policy.backbone(batch)[0]
        after = policy.backbone(replace(batch, images_NCHW=swapped))[0]
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    first_image = int((batch.input_ids_BL[1] == policy.spec.image_token_id).nonzero()[0])
    assert torch.equal(before[1, :first_image], after[1, :first_image])
    assert not torch.equal(before[1, first_image], after[1, first_image])


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh")
"""lift_fresh: a tensor made of Python numbers, which travels to the device by a copy that waits."""


class Reads(TorchDispatchMode):
    """Lists the operations that make the host wait for the device: values read, shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_operation_makes_the_host_wait(policy, make_batch):
    """Forward, backward and sampling; transformers' own mask building would read `mask.all()`."""
    for kind in KINDS:
        batch = make_batch(policy.spec, kind)
        with Reads() as reads:
            policy.train()(batch)[0].backward()
            policy.eval().sample(batch, 2)
        assert reads.found == []
    with Reads() as reads:
        reference(policy.backbone.internvl, make_batch(policy.spec, "vla"))
    assert reads.found, "the probe no longer sees what transformers does; this test has gone blind"


def test_pixels_are_normalised_in_fp32_also_in_bf16(make_batch):
    """bf16 has no code for every one of 256 grey levels around 1; the release normalised there (FACTS 5.1)."""
    policy = build_policy(ModelConfig(), seed=0).to(torch.bfloat16).eval()
    seen = []
    policy.backbone.internvl.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    batch = make_batch(policy.spec, "vla", rows=1, views=(1,))
    with torch.no_grad():
        policy.backbone(batch)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    exact = ((batch.images_NCHW.double() / 255 - mean) / std).float()
    assert seen[0].dtype == torch.bfloat16 and torch.equal(seen[0], exact.bfloat16())


def test_no_key_value_cache_is_kept(make_batch):
    """A policy reads a row once; a cache would hold every layer's keys for nothing."""
    policy = build_policy(ModelConfig(), seed=0).eval()
    found = []
    policy.backbone.internvl.language_model.register_forward_hook(lambda *call: found.append(call[2].past_key_values))
    policy.sample(make_batch(policy.spec, "la"), 1)
    assert found == [None]
