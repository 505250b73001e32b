"""Why: training and serving each have their own tests; this one holds them together. What the trainer fed the model and
what the served policy feeds it must be the same numbers, from the files of a finished run alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import torch

from la4vla import config
from la4vla.data.reader import Reader
from la4vla.data.setup import prepare
from la4vla.data.shards.writer import View
from la4vla.data.transforms import chain_to_dicts
from la4vla.model.tokenizer import build_prompter
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import Observation
from tests.fixtures import ARM, make_clip, train_config, write_shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config of a finished 2-step run of the tiny preset on vision shards, its clips)."""
    place = tmp_path_factory.mktemp("trained")
    write_shards(place / "task", views=("front", "wrist"), image_size=112)
    settings = train_config({"task": (place / "task", "vla")}, steps=2, global_batch=4)
    settings = replace(settings, run=config.RunConfig(dir=str(place / "run")))
    (place / "config.yaml").write_text(config.to_yaml(settings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "la4vla.train", str(place / "config.yaml")]
    subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=300)
    return settings


@pytest.fixture(scope="module")
def fresh(run, tmp_path_factory):
    """The same config for a run that has no checkpoint yet: what it knows, it knows from the shards."""
    return replace(run, run=config.RunConfig(dir=str(tmp_path_factory.mktemp("fresh") / "run")))


@pytest.fixture(scope="module")
def served(run):
    return ServedPolicy.load(run.run.dir)


def test_the_served_statistics_are_those_of_the_clips(served):
    """Computed here from the clips themselves, so that a wrong stats.json or a stale checkpoint shows."""
    clips = [make_clip(number, *length_and_views(number)) for number in range(16)]
    for stats, rows in (
        (served.processor.chain.normalize.state, np.concatenate([clip.state for clip in clips])),
        (served.processor.chain.normalize.action, np.concatenate([clip.action for clip in clips])),
    ):
        assert stats.count == len(rows)
        np.testing.assert_allclose([stats.q01, stats.q99], np.quantile(rows, [0.01, 0.99], axis=0), rtol=1e-5)
        np.testing.assert_allclose([stats.min, stats.max], [rows.min(0), rows.max(0)], rtol=1e-6)


def test_the_served_chain_is_the_trained_chain(fresh, served):
    trained = chain_to_dicts(prepare(fresh, served.spec, build_prompter(fresh.model).encode).only_robot.chain)
    assert json.loads(json.dumps(chain_to_dicts(served.processor.chain))) == json.loads(json.dumps(trained))
    assert served.views == ("front", "wrist") and served.embodiment == ARM and served.step == 2
    assert served.view_sizes == {"front": ((112, 112),), "wrist": ((112, 112),)}


def test_a_training_row_and_the_same_moment_served_are_the_same_numbers(fresh, served, monkeypatch):
    """One row of the trainer's first batch, found in the shards by its key, asked of the served policy."""
    setup = prepare(fresh, served.spec, build_prompter(fresh.model).encode)
    with Reader(fresh, setup, rank=0, world_size=1) as reader:
        batch = next(iter(reader.steps("first", 0))).batches[0]
    asked = []
    monkeypatch.setattr(served.policy, "sample", lambda batch, steps: asked.append(batch) or batch.noise_BTA)
    _, name, start = batch.keys[0].split("/")
    clip = make_clip(int(name.split("-")[1]), *length_and_views(int(name.split("-")[1])))
    seen = Observation(decoded(clip, int(start)), clip.state[int(start)], clip.instruction)
    served.infer([seen], [NoiseKey(0, "any", 0, 0)])
    (query,) = asked
    length = query.input_ids_BL.shape[1]
    assert torch.equal(query.input_ids_BL[0], batch.input_ids_BL[0, :length])
    assert not batch.text_mask_BL[0, length:].any()
    assert torch.equal(query.images_NCHW, batch.images_NCHW[:2])
    assert torch.equal(query.state_BS[0], batch.state_BS[0]) and torch.equal(
        query.state_mask_BS, batch.state_mask_BS[:1]
    )
    assert torch.equal(query.action_mask_BTA.any(1)[0], batch.action_mask_BTA[0].any(0))


def length_and_views(number):
    return 5 + (3 * number) % 7, ARM, {"front": View(112, 112), "wrist": View(112, 112)}


def decoded(clip, start):
    return {view: simplejpeg.decode_jpeg(frames[start]) for view, frames in clip.frames.items()}


def test_actions_come_back_in_raw_units(run, served):
    (chunk,) = served.infer(
        [Observation({v: np.full((112, 112, 3), 90, np.uint8) for v in served.views}, np.zeros(4, np.float32), "lift")],
        [NoiseKey(0, "any", 0, 0)],
    )
    spread = served.processor.chain.normalize.action
    assert chunk.shape == (16, 4) and np.isfinite(chunk).all()
    normalised = (chunk - np.add(spread.q01, spread.q99) / 2) / (np.subtract(spread.q99, spread.q01) / 2)
    assert 0.1 < np.abs(normalised).max() < 20
