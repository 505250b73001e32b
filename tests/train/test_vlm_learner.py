"""Why: a model that writes is trained by the loop that trains policies; what it learns, saves and goes on from must be
its own, on any number of ranks, whole and by adapters. Real runs of the smallest one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from la4vla import manifest
from la4vla.config import load
from la4vla.files import sha256
from la4vla.train.learners.texts import text_row
from la4vla.types import UserError
from la4vla.vlm.generate import Writing, write
from la4vla.vlm.load import build_vlm, save_vlm
from la4vla.vlm.stored import load_checkpoint
from tests.fixtures import make_text, write_texts
from tests.train.launch import train, train_killed

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
    (answer,) = write(vlm, encoder, [encoder.question(text_row(make_text(7), "asked"))], Writing(32))
    assert answer.ended == "turn" and answer.text == make_text(7).turns[-1].text


def test_the_first_batch_can_be_read(adapted):
    run = Path(load(adapted).run.dir)
    told = (run / manifest.FIRST_TEXTS).read_text()
    assert "LEARNED | answer " in told and "given   | <|im_start|>user" in told
    assert (run / manifest.FIRST_BATCH).is_file()


def test_an_adapter_checkpoint_is_adapters_and_the_name_of_their_base(adapted, place):
    made, stored = manifest.read(newest(adapted)), load_file(newest(adapted) / manifest.WEIGHTS)
    assert made.learner == "vlm" and made.views == [] and made.transforms == []
    assert made.embodiment["name"] == "test_arm" and made.text == {"codec": {}, "max_tokens": 1024}
    assert set(made.base["files"]) == {"config.json", "model.safetensors"} and made.base["place"] == f"{place}/public"
    assert stored and all(".lora_" in name and ".language_model." in name for name in stored)
    vlm, _ = load_checkpoint(newest(adapted), made)
    state = vlm.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stored.items())


@pytest.mark.parametrize("overrides", [(), ("engine.name=deepspeed", "engine.zero_stage=2")], ids=["plain", "zero2"])
def test_killed_and_resumed_equals_straight(adapted, place, overrides):
    begun = (f"model.weights={place}/public", *ADAPTERS, *overrides)
    config = write_config(place, "killed" + "".join(overrides[1:]))
    assert train_killed(2, 4, config, *begun).codes[0] < 0
    ended = train(2, config, *begun)
    assert ended.codes == (0, 0), ended.stderr
    assert "resume: exact" in ended.stdout
    ours, theirs = (newest(item) for item in (config, adapted))
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
    policy = write_config(place, "policy")
    ended = in_process(str(policy), "learner=policy", "model.preset=tiny", f"run.init_from={newest(second, 2)}")
    assert ended.codes == (2,)


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
