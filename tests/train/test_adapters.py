"""Why: adapters on other weights than theirs are another model, and no loss would tell; a checkpoint that holds only
what trained must go on as one that holds everything. Real processes, plain and under ZeRO-2; a copy of a run without
its last checkpoint is what a kill while saving leaves (test_resume.py kills)."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from la4vla import manifest
from la4vla.config import load
from la4vla.export import export
from la4vla.files import sha256
from la4vla.model.backbone import internvl_config
from la4vla.model.presets import TINY
from la4vla.model.tokenizer import TINY_TOKENIZER
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import Observation, UserError
from tests.train.launch import train

pytestmark = pytest.mark.slow

STEPS = 4
CONFIG = """
run: {{dir: {run}, seed: 3}}
model: {{dropout: 0.0, weights: {base}, lora: {{rank: 4}}}}
data:
  streams: 4
  decode_threads: 1
  sources:
    la: {{path: {data}/la, kind: la}}
    vla: {{path: {data}/vla, kind: vla}}
stages:
  only:
    mixture: {{la: 0.5, vla: 0.5}}
    steps: 4
    global_batch: 8
    micro_batch: 2
    train: [lora, head]
    lr: 1.0e-3
    warmup_steps: 1
    schedule: linear
    min_lr_ratio: 0.1
optim: {{ema_decay: 0.9}}
checkpoint: {{every_steps: 2, keep_last: 9}}
log: {{every_steps: 1}}
"""
OWN_RATE = "stages.only.lr_groups.head=2.0e-3"
ENGINES = {
    "plain": (OWN_RATE,),
    "zero2": (
        OWN_RATE,
        *("engine.name=deepspeed", "engine.zero_stage=2"),
        *("engine.precision=bf16", "engine.compute=frozen_bf16"),
    ),
}
RELATIVE = {"plain": 1e-3, "zero2": 0.15}
"""Of the way that the weights go in two steps. Under ZeRO-2 what is frozen is held in bf16 here."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A public folder of the tiny preset's sizes."""
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(internvl_config(TINY, "sdpa"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.05)
    folder = tmp_path_factory.mktemp("base") / "internvl"
    model.save_pretrained(folder)
    shutil.copy(TINY_TOKENIZER / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("adapters")


def write_config(folder: Path, data: Path, base: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(CONFIG.format(run=folder / name, data=data, base=base))
    return path


def newest(config: Path, step: int = STEPS) -> Path:
    return Path(load(config).run.dir) / "checkpoints" / f"step_{step:08d}"


def digests(folder: Path) -> list[str]:
    return [sha256(folder / name) for name in (manifest.WEIGHTS, manifest.TRAINING, manifest.EMA)]


@pytest.fixture(scope="module")
def straight(place, shards, base) -> dict[str, Path]:
    """Two ranks on each engine, from step 0 to the end."""
    runs = {}
    for name, overrides in ENGINES.items():
        runs[name] = write_config(place, shards, base, f"straight_{name}")
        ended = train(2, runs[name], *overrides)
        assert ended.codes == (0, 0), ended.stderr
    return runs


@pytest.fixture(scope="module")
def trained(straight) -> Path:
    return newest(straight["plain"])


def resumed(ranks: int, config: Path, name: str, tmp_path: Path) -> tuple[Path, str]:
    """The last checkpoint of a copy that goes on from the middle, and what was said."""
    copy = shutil.copytree(load(config).run.dir, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:08d}")
    ended = train(ranks, config, *ENGINES[name], f"run.dir={copy}")
    assert ended.codes == (0,) * ranks, ended.stderr
    return copy / "checkpoints" / f"step_{STEPS:08d}", ended.stdout


@pytest.mark.parametrize("name", ENGINES)
def test_resumed_equals_straight(straight, name, tmp_path):
    again, said = resumed(2, straight[name], name, tmp_path)
    assert "resume: exact" in said and digests(again) == digests(newest(straight[name]))


@pytest.mark.parametrize("name", ENGINES)
def test_another_number_of_ranks_differs_by_rounding(straight, name, tmp_path):
    """Two ranks to the middle, then one."""
    again, said = resumed(1, straight[name], name, tmp_path)
    assert "the same samples on 1 instead of 2 ranks" in said
    paths = (newest(straight[name], 2), again, newest(straight[name]))
    begin, a, b = (load_file(path / manifest.WEIGHTS) for path in paths)
    apart = sum(float((a[key] - b[key]).double().square().sum()) for key in a)
    gone = sum(float((b[key] - begin[key]).double().square().sum()) for key in a)
    print(f"\n{name}: {math.sqrt(apart / gone):.1e} of the way of two steps")
    assert 0 < math.sqrt(apart / gone) < RELATIVE[name]


def test_a_checkpoint_holds_what_trained_and_says_what_it_belongs_to(trained, base):
    made, stored = manifest.read(trained), load_file(trained / manifest.WEIGHTS)
    assert all(".lora_" in name or name.startswith("head.") for name in stored)
    assert sum(".lora_" in name for name in stored) == 2 * 7 * TINY.llm_layers
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in stored.values())
    assert made.base == {
        "place": str(base),
        "files": {name: sha256(base / name) for name in ("config.json", "model.safetensors")},
    }
    assert all(stored[name].abs().max() > 0 for name in stored if ".lora_B." in name), "an adapter did not train"


def chunk(policy: ServedPolicy) -> torch.Tensor:
    views = {"front": torch.zeros(16, 16, 3, dtype=torch.uint8).numpy()}
    given = Observation(views, torch.zeros(len(policy.embodiment.state.names)).numpy(), "lift")
    return torch.from_numpy(policy.infer([given], [NoiseKey(0, 0, 0, 0)])[0])


def test_it_is_served_from_where_its_base_lay_or_is_said_to_lie(trained, base, tmp_path):
    here = chunk(ServedPolicy.load(trained))
    moved = shutil.copytree(base, tmp_path / "moved")
    assert torch.equal(chunk(ServedPolicy.load(trained, base=str(moved))), here)
    with pytest.raises(UserError, match=r"which is not there; say where they lie with --base"):
        ServedPolicy.load(trained, base=str(tmp_path / "nowhere"))


def test_the_average_of_adapters_is_what_trained_and_is_exported_with_its_base(trained, tmp_path):
    made, raw, average = (
        manifest.read(trained),
        *(load_file(trained / name) for name in (manifest.WEIGHTS, manifest.EMA)),
    )
    assert average.keys() == raw.keys() and made.ema_sha256 == sha256(trained / manifest.EMA)
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    export(trained, tmp_path / "out", weights="ema")
    here, out = chunk(ServedPolicy.load(trained, weights="ema")), chunk(ServedPolicy.load(tmp_path / "out"))
    assert (here - out).abs().max() < 1e-5 < (here - chunk(ServedPolicy.load(trained))).abs().max()


def test_another_base_is_refused(straight, base, place, tmp_path, in_process):
    """One weight of it is another."""
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = straight["plain"]
    with pytest.raises(UserError, match=r"holds other weights than those that the adapters belong to .* with --base"):
        ServedPolicy.load(newest(config), base=str(other))
    shorter = shutil.copytree(Path(load(config).run.dir), tmp_path / "run")
    shutil.rmtree(shorter / "checkpoints" / f"step_{STEPS:08d}")
    ended = in_process(str(config), f"run.dir={shorter}", f"model.base={other}", *ENGINES["plain"])
    assert ended.codes == (2,) and "say with model.base where" in ended.stderr and ended.stderr.count("\n") == 1


def test_a_name_that_does_not_match_is_refused(trained, tmp_path):
    """An adapter under a name of another library would load as nothing, and the policy would be its base's."""
    folder = shutil.copytree(trained, tmp_path / "renamed")
    weights = {
        name.replace(".lora_A.default.", ".lora_A."): value
        for name, value in load_file(folder / manifest.WEIGHTS).items()
    }
    save_file(weights, folder / manifest.WEIGHTS)
    raw = json.loads((folder / manifest.MANIFEST).read_text())
    raw["weights_sha256"] = sha256(folder / manifest.WEIGHTS)
    (folder / manifest.MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"do not fit this model: missing 28 .*lora_A.default.weight.* unexpected 28"):
        ServedPolicy.load(folder)


def test_adapters_of_another_run_go_on_in_a_new_one_and_others_are_refused(trained, shards, base, place, in_process):
    config = write_config(place, shards, base, "second")
    begun = ("model.weights=", f"run.init_from={trained}", "stages.only.steps=1", "stages.only.lr=0")
    ended = in_process(str(config), *begun)
    assert ended.codes == (0,), ended.stderr
    first, second = (load_file(path / manifest.WEIGHTS) for path in (trained, newest(config, 1)))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert manifest.read(newest(config, 1)).base["place"] == str(base)
    config = write_config(place, shards, base, "third")
    ended = in_process(str(config), *begun, "model.lora.rank=8")
    assert ended.codes == (2,) and "model.lora.rank=4, not 8; set it so" in ended.stderr
    ended = in_process(str(config), *begun, "model.lora.rank=0", "stages.only.train=[head]")
    assert ended.codes == (2,) and "holds adapters and model.lora.rank is 0" in ended.stderr


def test_a_whole_checkpoint_is_a_base_too(alone, shards, base, place, in_process):
    whole = newest(alone, 10)
    config = write_config(place, shards, base, "on_whole")
    begun = ("model.weights=", f"run.init_from={whole}", "stages.only.train=[lora]", "stages.only.steps=1")
    ended = in_process(str(config), *begun, "stages.only.lr=0")
    assert ended.codes == (0,), ended.stderr
    made = manifest.read(newest(config, 1))
    assert made.base == {"place": str(whole), "files": {manifest.WEIGHTS: sha256(whole / manifest.WEIGHTS)}}
    assert all(".lora_" in name for name in load_file(newest(config, 1) / manifest.WEIGHTS))
    assert torch.equal(*(chunk(ServedPolicy.load(path)) for path in (whole, newest(config, 1))))


def test_the_recipe_for_one_gpu_moves_every_adapter(alone, shards, place, in_process):
    """On the tiny preset: recomputed blocks whose inputs need no gradient, on weights in bf16, must not cut it off."""
    whole = newest(alone, 10)
    recipe = Path(__file__).parents[2] / "configs/la4vla_1b/finetune_libero_lora.yaml"
    smaller = {
        **{"model.preset": "tiny", "model.weights": "", "model.readout": "per_token", "data.streams": 4},
        **{"run.dir": place / "recipe", "run.init_from": whole, "data.sources.task.path": shards / "vla"},
        **{f"stages.finetune.{key}": value for key, value in (("steps", 2), ("global_batch", 8), ("warmup_steps", 1))},
    }
    ended = in_process(str(recipe), *(f"{key}={value}" for key, value in smaller.items()))
    assert ended.codes == (0,), ended.stderr
    stored = load_file(place / "recipe" / "checkpoints" / "step_00000002" / manifest.WEIGHTS)
    moved = {name: float(value.abs().max()) > 0 for name, value in stored.items() if ".lora_B." in name}
    assert all(moved.values()) and len(moved) == 7 * TINY.llm_layers + 6 * TINY.vision_layers
    (row, *_) = [json.loads(line) for line in (place / "recipe" / "metrics.jsonl").read_text().splitlines()]
    assert row["lr/head"] == pytest.approx(row["lr"] / 10)
