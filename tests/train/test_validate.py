"""Why: validation that moves a run by one bit makes every run with it another experiment. Runs with and without must
end in the same bytes, and a resumed run must go on alike; the numbers are checked against the weights that were saved.
(With ZeRO-3, which gathers parameters call by call: test_resume.py.)"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla import manifest
from la4vla.config import load
from la4vla.data.collate import collate
from la4vla.data.reader import window
from la4vla.data.setup import fingerprint
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from la4vla.probe_cases.cases import CaseList, read_cases
from la4vla.probe_cases.motion import travel
from la4vla.rng import RngUse, generator
from la4vla.serve.policy import ServedPolicy
from tests.fixtures import POSE, spoil, write_shards
from tests.train.held_out import write_cases, write_clips
from tests.train.launch import STEPS, write_config

MODES = ("full", "no_text", "no_vision", "neither")


def digests(config: Path) -> dict[str, str]:
    run = Path(load(config).run.dir)
    files = [folder / name for folder in run.glob("checkpoints/*") for name in (manifest.WEIGHTS, manifest.TRAINING)]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def records(config: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(load(config).run.dir) / "metrics.jsonl").read_text().splitlines()]


def said(config: Path) -> dict[int, dict[str, float]]:
    """Step -> the numbers of validation."""
    rows = {
        row["step"]: {key: value for key, value in row.items() if key.startswith("val/")} for row in records(config)
    }
    return {step: numbers for step, numbers in rows.items() if numbers}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("validate")


def test_a_run_with_it_ends_in_the_same_bytes_and_says_the_truth(place, shards, cases, in_process):
    plain, watched = write_config(place, shards, "plain"), write_config(place, shards, "watched")
    dropout = "model.dropout=0.2"
    assert in_process(str(plain), dropout).codes == (0,)
    ended = in_process(str(watched), dropout, f"validate.cases={cases}", "validate.every_steps=4")
    assert ended.codes == (0,) and "not held out" not in ended.stdout
    assert digests(watched) == digests(plain)
    found = said(watched)
    names = [f"val/{what}/{mode}" for mode in MODES for what in ("loss", "dar")]
    assert list(found) == [4, 8] and list(found[4]) == names and not said(plain)
    trained = [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm", "lr")} for row in records(watched)]
    assert trained == [{k: row[k] for k in trained[0]} for row in records(plain)]
    by_hand = worked_by_hand(Path(load(watched).run.dir) / "checkpoints" / "step_00000008", cases)
    assert {key: found[8][key] for key in by_hand} == pytest.approx(by_hand, rel=1e-4)


def worked_by_hand(checkpoint: Path, cases: Path) -> dict[str, float]:
    """Loss and DAR of the saved weights, one case at a time, by what serves a checkpoint."""
    served = ServedPolicy.load(checkpoint)
    clips = read_shard(read_index(cases.parent / "vla"), 0, ("front",))
    found = {}
    asked = (("full", "vla", True), ("no_text", "vla", False), ("no_vision", "la", True), ("neither", "la", False))
    for mode, kind, told in asked:
        errors, counts, hits = [], [], []
        for number, clip in enumerate(clips):
            sample = window(clip, 0, served.spec.horizon, kind, "by hand")
            if kind == "vla":
                sample = sample.but(views={"front": simplejpeg.decode_jpeg(clip.frames["front"][0], colorspace="RGB")})
            sample = served.processor.chain(sample if told else sample.but(instruction=""))
            draws = generator(3, RngUse.VALIDATE, number)
            time = float(draws.beta(2.0, 2.0))
            noise = draws.random((served.spec.horizon, served.spec.action_dim), dtype=np.float32) * 2 - 1
            batch = collate([sample], served.spec, served.processor.encode, [noise], [time], [0])
            error, count = served.policy(batch)
            errors.append(float(error))
            counts.append(int(count))
            chunk = served.processor.chain.inverse(served.policy.sample(batch, 10)[0].numpy(), clip.state[0])
            end = travel(chunk[: len(clip)], clip.state[0], served.embodiment)[-1]
            hits.append(bool(end[0] > 0))
        found |= {f"val/loss/{mode}": sum(errors) / sum(counts), f"val/dar/{mode}": float(np.mean(hits))}
    return found


@pytest.mark.slow
@pytest.mark.thorough
def test_a_resumed_run_says_the_same_once(place, shards, cases, in_process):
    """Resumed from step 5, as after a kill in step 6."""
    config, changes = write_config(place, shards, "straight"), (f"validate.cases={cases}", "validate.every_steps=3")
    assert in_process(str(config), *changes).codes == (0,)
    before = digests(config), said(config)
    for checkpoint in manifest.complete(load(config).run.dir):
        if manifest.read(checkpoint).step > 5:
            shutil.rmtree(checkpoint)
    ended = in_process(str(config), *changes)
    assert ended.codes == (0,) and "resume: exact" in ended.stdout
    assert (digests(config), said(config)) == before
    assert list(said(config)) == [3, 6, 9] and len(records(config)) == STEPS


def test_a_blind_run_is_validated_blind(place, shards, cases, in_process):
    config = write_config(place, shards, "blind")
    changes = ("stages.pretrain.mixture.vla=0", "stages.pretrain.train=[llm,head]", "validate.every_steps=5")
    ended = in_process(str(config), *changes, f"validate.cases={cases}")
    assert ended.codes == (0,), ended.stderr
    assert {key for numbers in said(config).values() for key in numbers} == {
        f"val/{what}/{mode}" for mode in ("no_vision", "neither") for what in ("loss", "dar")
    }


def test_clips_that_the_run_trains_on_are_said_not_to_be_held_out(shards, in_process, tmp_path):
    """However few of them; of a blind run's own clips too, whose images lie in another folder."""
    write_clips(tmp_path / "vla", [3, 101, 102, 17, 103, 104])
    short = ("stages.pretrain.steps=1", "stages.finetune.steps=1", "stages.pretrain.train=[llm,head]")
    config = write_config(tmp_path, shards, "own")
    changes = (*short, "stages.pretrain.mixture.vla=0", f"validate.cases={write_cases(tmp_path / 'vla')}")
    ended = in_process(str(config), *changes)
    assert "warning: 2 of the 6 clips of validate.cases are also in source la (by key and length)" in ended.stdout


def test_what_does_not_fit_is_refused_before_training(shards, cases, in_process, tmp_path):
    config = write_config(tmp_path, shards, "refused")
    on = (str(config), f"validate.cases={cases}")
    assert "multiple of log.every_steps" in in_process(*on, "log.every_steps=3", "validate.every_steps=4").stderr
    assert "probe cases" in in_process(str(config), f"validate.cases={tmp_path}/none.jsonl").stderr
    write_shards(tmp_path / "pose", 6, 1, ["front"], embodiment=POSE)
    other = CaseList(
        str(tmp_path / "pose"), fingerprint(read_index(tmp_path / "pose")), "test_pose", {}, {}, read_cases(cases).cases
    )
    other.write(tmp_path / "pose.jsonl")
    assert "the cases are of `test_pose`" in in_process(str(config), f"validate.cases={tmp_path}/pose.jsonl").stderr
    assert "not those that the cases were sampled from" in in_process(*on, f"validate.shards={shards}/vla").stderr
    write_clips(tmp_path / "spoiled" / "vla", [100])
    spoil(tmp_path / "spoiled" / "vla", "clip-00100", "action", 2, 0, float("nan"))
    bad = in_process(str(config), f"validate.cases={write_cases(tmp_path / 'spoiled' / 'vla')}")
    assert "action x is nan at frame 2; write the folder again without it" in bad.stderr
    flash = in_process(*on, "model.attention=flash_attention_2", "engine.precision=bf16")
    assert "set model.attention=sdpa or leave validate.cases out" in flash.stderr
    assert not list(Path(load(config).run.dir).glob("checkpoints/*"))
