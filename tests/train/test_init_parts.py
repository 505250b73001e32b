"""Why: weights that were meant to be taken and are random, or statistics and a tokenizer that belong to others than
these, make a policy that trains and never works. So real runs begin with parts of a real checkpoint, and every weight
is compared."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from la4vla import manifest
from la4vla.config import ModelConfig, load
from la4vla.model.policy import build_policy
from tests.fixtures import ARM, write_shards
from tests.train.launch import write_config

pytestmark = pytest.mark.slow

ONE_STEP = ("stages.pretrain.steps=1", "stages.finetune.steps=1", "stages.pretrain.lr=0", "stages.finetune.lr=0")
NEW_ACTIONS = ("head.action_encoder.w1.*", "head.state_encoder.fc1.*", "head.readout.fc2.*")
SIZES = ("model.action_dim=12", "model.state_dim=10", "model.horizon=6", "model.llm_layers=3")


def begun(config: Path) -> tuple[dict, dict, manifest.Manifest]:
    """Weights after steps that change nothing, what the run says of its beginning, and its manifest."""
    run = Path(load(config).run.dir)
    newest = manifest.newest(run)
    assert newest is not None
    return load_file(newest / manifest.WEIGHTS), json.loads((run / manifest.PARTS).read_text()), manifest.read(newest)


def test_a_new_action_space_takes_the_rest_and_its_own_statistics(alone, shards, tmp_path, in_process):
    """Other data, whose numbers reach further, in a model of other sizes."""
    source = manifest.newest(load(alone).run.dir)
    assert source is not None
    write_shards(tmp_path / "la", 8, 4, embodiment=ARM)
    config = write_config(tmp_path, shards, "wide")
    parts = f"run.init_parts.leave={json.dumps([*NEW_ACTIONS, '*.layers.3.*'])}"
    given = (*ONE_STEP, *SIZES, f"run.init_from={source}", parts, f"data.sources.la.path={tmp_path}/la")
    ended = in_process(str(config), *given)
    assert ended.codes == (0,), ended.stderr
    now, said, made = begun(config)
    then = load_file(source / manifest.WEIGHTS)
    fresh = build_policy(ModelConfig(dropout=0.0, action_dim=12, state_dim=10, horizon=6, llm_layers=3), 3).state_dict()
    taken = {name: old for group in said["taken"].values() for name, old in group["names"].items()}
    random = {name for group in said["fresh"].values() for name in group["names"]}
    assert taken.keys() | random == now.keys() and not taken.keys() & random
    assert all(torch.equal(now[name], then[old]) for name, old in taken.items())
    assert all(torch.equal(now[name], fresh[name]) for name in random)
    assert {name.rpartition(".")[0] for name in random} == {name.removesuffix(".*") for name in NEW_ACTIONS}
    left = {name for group in said["left"].values() for name in group["names"]}
    assert left == then.keys() - taken.keys() and any(".layers.3." in name for name in left)
    assert said["left"]["not in this model"]["numbers"] == sum(then[n].numel() for n in left if ".layers.3." in n)
    assert said["statistics"].startswith("those of this run's data") and "statistics: those of this" in ended.stdout
    state = json.loads((tmp_path / "la" / "stats.json").read_text())["state"]
    assert made.robot().transforms != manifest.read(source).robot().transforms
    assert str(state["q99"][0])[:8] in json.dumps(made.robot().transforms)
    assert "  head " in ended.stdout and "fresh weights begin random" in ended.stdout
    again = in_process(str(config), *given, "stages.finetune.steps=1", "run.init_parts.leave=[]")
    assert again.codes == (0,) and "nothing to do" in again.stdout, again.stderr


def test_the_same_interface_keeps_its_statistics_and_other_embeddings_their_tokenizer(
    alone, shards, tmp_path, in_process
):
    source = manifest.newest(load(alone).run.dir)
    assert source is not None
    write_shards(tmp_path / "la", 8, 4)
    config = write_config(tmp_path, shards, "head")
    ended = in_process(
        str(config),
        *(*ONE_STEP, f"run.init_from={source}", "run.init_parts.take=[head.*]", "engine.gradient_checkpointing=true"),
        f"data.sources.la.path={tmp_path}/la",
    )
    assert ended.codes == (0,), ended.stderr
    now, said, made = begun(config)
    then, random = load_file(source / manifest.WEIGHTS), build_policy(load(config).model, 3).state_dict()
    assert all(torch.equal(now[name], (then if name.startswith("head.") else random)[name]) for name in now)
    assert made.robot().transforms == manifest.read(source).robot().transforms
    assert said["tokenizer"] == "this run's own" and said["statistics"].startswith("those of the checkpoint")
    refused = in_process(
        str(config),
        "run.dir=" + str(tmp_path / "x"),
        f"run.init_from={source}",
        SIZES[0],
        "run.init_parts.take=[head.*]",
    )
    assert refused.codes == (2,) and "have another shape in this model" in refused.stderr
