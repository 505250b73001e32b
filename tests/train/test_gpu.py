"""Why: only a device shows whether a step waits for it, whether bf16 learns there, and whether it computes what the CPU
does. `pytest -m gpu` runs this file; without a GPU it is skipped."""

import os
import traceback
from unittest import mock

import pytest
import torch

from la4vla.config import EngineConfig, load
from la4vla.data.reader import Reader
from la4vla.data.setup import prepare
from la4vla.model.freeze import set_trainable
from la4vla.model.policy import build_policy
from la4vla.model.tokenizer import build_prompter
from la4vla.train import dist
from la4vla.train.engines import build
from la4vla.train.loop import train_step
from la4vla.train.optim import Rules
from la4vla.types import KINDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CONFIG = """
run: {{dir: {data}/run}}
model: {{dropout: 0.0}}
data:
  streams: 4
  sources: {{la: {{path: {data}/la, kind: la}}, vla: {{path: {data}/vla, kind: vla}}}}
stages:
  only: {{mixture: {{la: 1, vla: 1}}, steps: 30, global_batch: 16, micro_batch: 8, lr: 1.0e-3, warmup_steps: 1,
         train: [vision, projector, embeddings, llm, head]}}
"""


@pytest.fixture
def world():
    with mock.patch.dict(os.environ):  # DeepSpeed's engine sets RANK, which the next start would take for torchrun's
        yield dist.start(EngineConfig().timeout_s)
        dist.stop()


@pytest.fixture
def waits(monkeypatch):
    """The places that waited for the whole device, which the sync debug mode does not see."""
    places = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: places.append(traceback.format_stack(limit=4)))
    yield places
    torch.cuda.set_sync_debug_mode("default")


def trained(shards, tmp_path, world, steps, overrides=(), sync_mode="default"):
    """Losses of each step, and the policy."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(data=shards))
    config = load(path, overrides)
    policy = build_policy(config.model, 0)
    policy.train()
    set_trainable(policy, config.stages["only"].train)
    built = build.build(policy, config, Rules(0.0, {}), world)
    setup = prepare(config, policy.spec, build_prompter(config.model).encode)
    losses = []
    with Reader(config, setup, 0, 1) as reader:
        for data in reader.steps("only", 0):
            # The first steps allocate and choose kernels, which may wait.
            torch.cuda.set_sync_debug_mode(sync_mode if data.step >= 3 else "default")
            losses.append(train_step(built, data, config, KINDS, world, stop=False).losses)
            if data.step == steps - 1:
                break
    torch.cuda.set_sync_debug_mode("default")
    means = [sum(float(weight * value) for _, weight, value in step) for step in losses]
    built.close()
    return means, policy


def test_a_step_never_waits_for_the_device(shards, tmp_path, world, waits):
    means, _ = trained(shards, tmp_path, world, 8, ["engine.precision=bf16"], sync_mode="error")
    assert len(means) == 8 and not waits


def test_deepspeed_does_not_wait_for_the_device_at_every_micro_batch(shards, tmp_path, world, waits):
    """Two micro-batches of each kind a step; ZeRO 2 may wait once a step."""
    trained(shards, tmp_path, world, 4, ["engine.name=deepspeed", "engine.zero_stage=2"])
    before = len(waits)
    trained(shards, tmp_path, world, 8, ["engine.name=deepspeed", "engine.zero_stage=2"])
    assert len(waits) - 2 * before <= 4


def test_bf16_learns_as_fp32_does(shards, tmp_path, world):
    full, _ = trained(shards, tmp_path, world, 30)
    half, _ = trained(shards, tmp_path, world, 30, ["engine.precision=bf16"])
    assert full[-1] < 0.7 * full[0]
    assert half == pytest.approx(full, rel=0.1)


def test_the_device_samples_what_the_cpu_samples(shards, tmp_path, world):
    _, policy = trained(shards, tmp_path, world, 5)
    policy.eval()
    config = load(tmp_path / "config.yaml")
    with Reader(config, prepare(config, policy.spec, build_prompter(config.model).encode), 0, 1) as reader:
        batches = next(iter(reader.steps("only", 0))).batches
    for batch in batches:
        on_device = policy.to("cuda").sample(batch.to("cuda"), 10).cpu()
        torch.testing.assert_close(on_device, policy.to("cpu").sample(batch, 10), atol=2e-3, rtol=0)
