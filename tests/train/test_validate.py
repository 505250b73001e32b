"""Why: validation that moves a run by one bit makes every run with it another experiment. Runs with and without must
end in the same bytes, on every engine, and a resumed run must go on alike; the numbers are checked against the weights
that were saved."""

import hashlib
import json
from collections.abc import Sequence
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
from la4vla.data.shards.writer import View
from la4vla.probe_cases.cases import Case, CaseList, read_cases
from la4vla.probe_cases.motion import travel
from la4vla.rng import RngUse, generator
from la4vla.serve.policy import ServedPolicy
from tests.fixtures import POSE, make_clip, spoil, write_shards
from tests.train.launch import STEPS, train, train_killed, write_config

MODES = ("full", "no_text", "no_vision", "neither")


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    """Of six clips that no run trains on."""
    folder = tmp_path_factory.mktemp("held_out")
    write_clips(folder / "vla", range(100, 106))
    return write_cases(folder / "vla")


def write_clips(folder: Path, numbers: Sequence[int]) -> None:
    """Those below 24 are clips of the runs' own folders."""
    front = {"front": View(16, 16)}
    write_shards(folder, [make_clip(n, 5 + (3 * n) % 7, views=front) for n in numbers], 1, front)


def write_cases(folder: Path) -> Path:
    """A case of each clip of a folder, at its first frame, said to go forward along x."""
    rows = [
        Case(clip.key, 0, clip.task, "forward", "forward/backward", [1, 0, 0], clip.instruction, "", "", None, None)
        for clip in read_shard(read_index(folder), 0, ())
    ]
    listed = CaseList(str(folder), fingerprint(read_index(folder)), "test_arm", {}, {}, tuple(rows))
    listed.write(folder.parent / "cases.jsonl")
    return folder.parent / "cases.jsonl"


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
            batch = collate([sample], served.spec, served.processor.encode, [noise], [time])
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
    straight, killed = write_config(place, shards, "straight"), write_config(place, shards, "killed")
    changes = (f"validate.cases={cases}", "validate.every_steps=3")
    assert in_process(str(straight), *changes).codes == (0,)
    assert train_killed(1, 6, killed, *changes).codes != (0,)
    assert in_process(str(killed), *changes).codes == (0,)
    assert digests(killed) == digests(straight) and said(killed) == said(straight)
    assert list(said(killed)) == [3, 6, 9] and len(records(killed)) == STEPS


@pytest.mark.slow
@pytest.mark.thorough
def test_two_ranks_of_zero_3_end_in_the_same_bytes(place, shards, cases):
    """ZeRO-3 gathers parameters call by call: a rank that validated alone would hang, and parameters that stayed
    gathered would be trained on."""
    short = ("stages.pretrain.steps=3", "stages.finetune.steps=1", "flow.steps=2", "stages.pretrain.micro_batch=4")
    without, watched = write_config(place, shards, "zero"), write_config(place, shards, "zero_watched")
    for config, own in ((without, ()), (watched, (f"validate.cases={cases}", "validate.every_steps=2"))):
        ended = train(2, config, "engine.name=deepspeed", "engine.zero_stage=3", *short, *own)
        assert ended.codes == (0, 0), ended.stderr
    assert len(digests(without)) > 2 and digests(watched) == digests(without)
    assert list(said(watched)) == [2, 4]


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
