"""Why: a model that writes is trained by the loop that trains policies; what it learns, saves and goes on from must be
its own, on any number of ranks, whole and by adapters. Real runs of the smallest one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from la4vla import manifest
from la4vla.action_text.action_text import ActionText
from la4vla.action_text.config import ActionTextConfig
from la4vla.config import load
from la4vla.data.shards.texts import ABOUT
from la4vla.files import sha256
from la4vla.types import Embodiment, UserError
from la4vla.vlm.generate import Writing, write
from la4vla.vlm.load import build_vlm, save_vlm
from la4vla.vlm.rare_tokens import is_one_token
from la4vla.vlm.stored import load_checkpoint
from tests.fixtures import ARM, make_text, write_texts
from tests.train.launch import train

pytestmark = pytest.mark.slow

CONFIG = """
learner: vlm
run: {{dir: {run}, seed: 3}}
model: {{preset: tiny_vlm}}
data:
  streams: 4
  decode_threads: 1
  sources:
    texts: {{path: {texts}, kind: text}}
stages:
  only:
    mixture: {{texts: 1.0}}
    steps: {steps}
    global_batch: 8
    micro_batch: 2
    train: [vision, projector, embeddings, llm, head]
    lr: 2.0e-3
    warmup_steps: 2
    schedule: linear
checkpoint: {{every_steps: 2, keep_last: 9}}
log: {{every_steps: 1}}
"""
ADAPTERS = ("model.lora.rank=4", "stages.only.train=[lora]")


def write_config(place: Path, name: str, steps: int = 4) -> Path:
    path = place / f"{name}.yaml"
    path.write_text(CONFIG.format(run=place / name, texts=place / "texts", steps=steps))
    return path


def newest(config: Path, step: int = 4) -> Path:
    return Path(load(config).run.dir) / "checkpoints" / f"step_{step:08d}"


def rows(config: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(load(config).run.dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    write_texts(folder / "texts", 24)
    write_texts(folder / "held_out", [make_text(number) for number in range(100, 112)])
    vlm, encoder = build_vlm("tiny_vlm", seed=7)
    save_vlm(vlm, encoder, folder / "public")
    return folder


@pytest.fixture(scope="module")
def adapted(place) -> Path:
    """Two ranks, adapters on a public folder, to the end."""
    config = write_config(place, "adapted")
    ended = train(2, config, f"model.weights={place}/public", *ADAPTERS)
    assert ended.codes == (0, 0), ended.stderr
    return config


def test_it_learns_what_it_is_shown_and_writes_it(place, in_process):
    """Four rows over and over, until the model answers them to the letter; it is measured meanwhile."""
    write_texts(place / "four", [make_text(number) for number in (1, 4, 7, 10)])
    config = write_config(place, "fits", steps=30)
    overrides = [f"data.sources.texts.path={place}/four", f"validate.texts={place}/four", "validate.every_steps=10"]
    ended = in_process(str(config), *overrides, "log.every_steps=10", "checkpoint.every_steps=30")
    assert ended.codes == (0,), ended.stderr
    assert "4 of the 4 rows of validate.texts are also in source texts" in ended.stdout
    first, _, last = rows(config)
    assert last["val/exact"] == 1.0 and last["val/text"] < 0.1 < first["val/text"]
    assert {key for key in last if key.startswith("val/exact/")} == {"val/exact/next", "val/exact/scene"}
    vlm, encoder = load_checkpoint(newest(config, 30), manifest.read(newest(config, 30)))
    (answer,) = write(vlm, encoder, [encoder.question(make_text(7).decoded("asked", "nowhere"))], Writing(32))
    assert answer.ended == "turn" and answer.text == make_text(7).turns[-1].text


def test_two_ranks_equal_one_process(place, in_process):
    """Whole, vision too, on rows with no, one and two images: a rank's micro-batch may show none."""
    two, one = (write_config(place, name, steps=3) for name in ("two", "alone"))
    ended = train(2, two)
    assert ended.codes == (0, 0), ended.stderr
    assert in_process(str(one)).codes == (0,)
    a, b = (load_file(newest(config, 3) / manifest.WEIGHTS) for config in (two, one))
    apart = sum(float((a[name] - b[name]).double().square().sum()) for name in b)
    size = sum(float(b[name].double().square().sum()) for name in b)
    assert apart < 1e-8 * size
    assert [row["loss/text"] for row in rows(two)] == pytest.approx([row["loss/text"] for row in rows(one)], rel=1e-4)


def test_the_first_batch_can_be_read(adapted):
    run = Path(load(adapted).run.dir)
    told = (run / manifest.FIRST_TEXTS).read_text()
    assert "LEARNED | answer " in told and "given   | <|im_start|>user" in told
    assert (run / manifest.FIRST_BATCH).is_file()


def test_an_adapter_checkpoint_is_adapters_and_the_name_of_their_base(adapted, place):
    made, stored = manifest.read(newest(adapted)), load_file(newest(adapted) / manifest.WEIGHTS)
    assert made.learner == "vlm" and made.robot().views == [] and made.robot().transforms == []
    about = {"codec": {}, "questions": ["next", "scene"], "max_tokens": 1024}
    assert made.robot().name == "test_arm" and made.text == about
    assert set(made.base["files"]) == {"config.json", "model.safetensors"} and made.base["place"] == f"{place}/public"
    assert stored and all(".lora_" in name and ".language_model." in name for name in stored)
    vlm, _ = load_checkpoint(newest(adapted), made)
    state = vlm.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stored.items())


@pytest.mark.parametrize("overrides", [(), ("engine.name=deepspeed", "engine.zero_stage=2")], ids=["plain", "zero2"])
def test_resumed_equals_straight(adapted, place, tmp_path, overrides):
    """A copy without its last checkpoint goes on from the middle, on the engine that wrote it or on another."""
    copy = shutil.copytree(load(adapted).run.dir, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / newest(adapted).name)
    begun = (f"model.weights={place}/public", *ADAPTERS, *overrides, f"run.dir={copy}")
    ended = train(2, adapted, *begun)
    assert ended.codes == (0, 0), ended.stderr
    assert ("resume: exact" in ended.stdout) is not bool(overrides)
    ours, theirs = copy / "checkpoints" / newest(adapted).name, newest(adapted)
    if not overrides:
        assert sha256(ours / manifest.WEIGHTS) == sha256(theirs / manifest.WEIGHTS)
    for name, value in load_file(ours / manifest.WEIGHTS).items():
        assert (value - load_file(theirs / manifest.WEIGHTS)[name]).abs().max() < 1e-5


def test_adapters_on_a_checkpoint_of_ours(place, in_process):
    """The order of the study: a small model is pretrained whole, then adapted."""
    whole, second = write_config(place, "whole", steps=2), write_config(place, "second", steps=2)
    assert in_process(str(whole)).codes == (0,)
    ended = in_process(str(second), f"run.init_from={newest(whole, 2)}", *ADAPTERS)
    assert ended.codes == (0,), ended.stderr
    made = manifest.read(newest(second, 2))
    assert made.base["files"] == {manifest.WEIGHTS: sha256(newest(whole, 2) / manifest.WEIGHTS)}
    vlm, _ = load_checkpoint(newest(second, 2), made)
    base = load_file(newest(whole, 2) / manifest.WEIGHTS)
    held = {name: value for name, value in vlm.state_dict().items() if ".lora_" not in name}
    state = {name.replace(".base_layer.", "."): value for name, value in held.items()}
    assert state.keys() == base.keys() and all(torch.equal(state[name], base[name]) for name in base)


def test_a_policy_takes_the_backbone_and_the_language_head(place, shards, in_process):
    """And nothing else: its flow head and its statistics are its own."""
    whole, policy = write_config(place, "before", steps=1), place / "policy.yaml"
    assert in_process(str(whole)).codes == (0,)
    policy.write_text(
        f"run: {{dir: {place}/policy, init_from: {newest(whole, 1)}}}\n"
        "model: {dropout: 0.0}\n"
        "data:\n"
        "  streams: 4\n"
        f"  sources: {{la: {{path: {shards}/la, kind: la}}, texts: {{path: {place}/texts, kind: text}}}}\n"
        "stages: {only: {mixture: {la: 1, texts: 1}, steps: 1, global_batch: 8, lr: 0, train: [llm, head]}}\n"
    )
    ended = in_process(str(policy))
    assert ended.codes == (0,), ended.stderr
    theirs, ours = (load_file(newest(config, 1) / manifest.WEIGHTS) for config in (whole, policy))
    named = {"network.model.": "backbone.internvl.", "network.lm_head.": "language_head."}
    for old, new in named.items():
        group = {name: value for name, value in theirs.items() if name.startswith(old)}
        assert group and all(torch.equal(ours[name.replace(old, new)], value) for name, value in group.items())
    assert manifest.read(newest(policy, 1)).learner == "policy"


def test_digits_of_a_codec_are_tokens_before_a_row_is_made(place, in_process):
    """And the checkpoint says how its actions are written, and by which robot they can be played."""
    robot = replace(ARM, action=replace(ARM.action, metres_per_unit=0.01))
    text = ActionText.open(ActionTextConfig(codec="tokens"), robot)
    write_texts(place / "coded", 8, robot=robot)
    (place / "coded" / ABOUT).write_text(json.dumps({"action_text": text.to_dict()}))
    config = write_config(place, "coding", steps=1)
    ended = in_process(str(config), f"data.sources.texts.path={place}/coded")
    assert ended.codes == (0,) and "actions as `tokens`" in ended.stdout, ended.stderr
    made = manifest.read(newest(config, 1))
    again = ActionText.from_dict(made.text["codec"], Embodiment.from_dict(made.robot().embodiment))
    _, encoder = load_checkpoint(newest(config, 1), made)
    assert again.tokens == text.tokens and all(is_one_token(encoder, token) for token in text.tokens)


def test_what_does_not_fit_is_one_sentence(place, adapted, in_process):
    config = write_config(place, "wrong")
    for overrides, words in (
        (("model.preset=tiny",), "model.preset is tiny, which cannot write; set model.preset=tiny_vlm"),
        (("stages.only.train=[language_head]",), "with learner=vlm its language head is `head`"),
        (("data.sources.texts.kind=la",), "learner vlm learns conversations alone"),
        (("stages.only.train=[lora]",), "model.lora.rank is 0"),
    ):
        ended = in_process(str(config), *overrides)
        assert ended.codes == (2,) and words in ended.stderr, ended.stderr
    with pytest.raises(UserError, match="say where they lie with --base"):
        load_checkpoint(newest(adapted), manifest.read(newest(adapted)), base=str(place / "nowhere"))
