"""Why: a run that resumes with other samples, a fresh optimizer or another learning rate does not crash, it is just
another run. Real processes, killed with SIGKILL while they save, must end in the bytes of a run that
nobody touched; on another number of ranks, within the order of fp32 sums.
"""

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from la4vla import manifest
from la4vla.config import TrainConfig, load
from la4vla.files import sha256
from la4vla.model.freeze import group_parameters
from la4vla.model.policy import build_policy
from tests.train.launch import (
    LIMIT_S,
    ROOT,
    STEPS,
    start,
    start_torchrun,
    train,
    train_killed,
    train_killed_between,
    until_logged,
    wait,
    write_config,
)

pytestmark = pytest.mark.slow

RELATIVE = 1e-3
"""Reached: 1e-4. A step with wrong samples, moments or learning rate is off by more than 0.1 (10 steps in all)."""


def checkpoint(config: Path, step: int = STEPS) -> Path:
    return Path(load(config).run.dir) / "checkpoints" / f"step_{step:08d}"


def digests(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (manifest.WEIGHTS, manifest.TRAINING)
    }


def relative_difference(found: Path, wanted: Path, config: TrainConfig) -> float:
    """Distance of two trained policies over the way that the second has gone from its random start.

    Not by tensor: a key projection's bias has gradient zero but for rounding, and Adam makes full steps of rounding.
    (Tensor by tensor is test_engines.py.)
    """
    begin = build_policy(config.model, config.run.seed).state_dict()
    a, b = load_file(found / manifest.WEIGHTS), load_file(wanted / manifest.WEIGHTS)
    assert a.keys() == b.keys() == begin.keys()
    apart = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    gone = sum(float((b[name] - begin[name]).double().square().sum()) for name in a)
    return math.sqrt(apart / gone)


def metrics(config: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(load(config).run.dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def straight(place, shards) -> Path:
    """Two ranks, with dropout, from step 0 to the end."""
    config = write_config(place, shards, "straight")
    ended = train(2, config, "model.dropout=0.2")
    assert ended.codes == (0, 0), ended.stderr
    return config


def test_killed_and_resumed_across_the_switch_of_stages_equals_straight(straight, place, shards):
    """Killed while saving step 4, resumed from step 2, stage 2 begins after step 5: every byte is the same."""
    config = write_config(place, shards, "killed")
    ended = train_killed(2, 4, config, "model.dropout=0.2")
    assert ended.codes[0] == -signal.SIGKILL
    assert ended.codes[1] == 2 and "error: rank 1 lost its peer" in ended.stderr and "Traceback" not in ended.stderr
    assert checkpoint(config, 4).with_suffix(".tmp").is_dir()
    assert manifest.newest(Path(load(config).run.dir)) == checkpoint(config, 2)
    ended = train(2, config, "model.dropout=0.2")
    assert ended.codes == (0, 0), ended.stderr
    assert "resume: exact" in ended.stdout
    assert not list(checkpoint(config).parent.glob("*.tmp"))
    assert digests(checkpoint(config)) == digests(checkpoint(straight))
    assert [row["step"] for row in metrics(config)] == list(range(1, STEPS + 1))
    for mine, theirs in zip(metrics(config), metrics(straight), strict=True):
        for key in (
            "stage",
            "stage_step",
            "loss",
            "loss/la",
            "loss/vla",
            "grad_norm",
            "lr",
            "samples/la",
            "samples/vla",
        ):
            assert mine.get(key) == theirs.get(key), (mine["step"], key)


def test_two_ranks_then_one_then_two_equals_one(alone, place, shards):
    """Killed while saving step 4; again, inside the second stage, while saving step 8; then to the end."""
    config = write_config(place, shards, "elastic")
    assert train_killed(2, 4, config).codes[0] == -signal.SIGKILL
    ended = train_killed(1, 8, config)
    assert ended.codes == (-signal.SIGKILL,)
    assert "the same samples on 1 instead of 2 ranks" in ended.stdout
    ended = train(2, config)
    assert ended.codes == (0, 0), ended.stderr
    difference = relative_difference(checkpoint(config), checkpoint(alone), load(alone))
    print(f"\n2, 1, 2 ranks against one: {difference:.1e} of the way")
    assert difference < RELATIVE
    assert [row["lr"] for row in metrics(config)] == [row["lr"] for row in metrics(alone)]
    assert metrics(config)[-1]["loss"] == pytest.approx(metrics(alone)[-1]["loss"], rel=1e-4)


def test_four_ranks_equal_one_and_the_lr_is_the_same_on_any_number(straight, alone, place, shards):
    config = write_config(place, shards, "four")
    ended = train(4, config)
    assert ended.codes == (0,) * 4, ended.stderr
    for step in (4, STEPS):  # in the mixed stage and at the end
        difference = relative_difference(checkpoint(config, step), checkpoint(alone, step), load(alone))
        print(f"\n4 ranks against one at step {step}: {difference:.1e} of the way")
        assert difference < RELATIVE
    one, two, four = ([row["lr"] for row in metrics(run)] for run in (alone, straight, config))
    assert one == two == four and len(set(one)) > 4


@pytest.mark.thorough
def test_killed_at_a_moment_of_no_save_and_resumed_equals_straight(alone, place, shards):
    """At a seeded time after step 2 was saved: in a forward, an update, a log line, or the beginning of a stage."""
    config = write_config(place, shards, "anytime")
    seconds = np.random.Generator(np.random.Philox(11)).uniform(0.0, 0.1)
    ended = train_killed_between(2, seconds, config)
    assert ended.codes == (-signal.SIGKILL,), ended.stderr
    assert 2 <= step_saved(config) < STEPS
    assert not list(checkpoint(config).parent.glob("*.tmp")), "it was saving"
    ended = train(1, config)
    assert ended.codes == (0,), ended.stderr
    assert "resume: exact" in ended.stdout
    assert digests(checkpoint(config)) == digests(checkpoint(alone))
    assert [row["loss"] for row in metrics(config)] == [row["loss"] for row in metrics(alone)]


@pytest.mark.thorough
def test_deepspeed_zero_3_on_the_real_policy_equals_plain(alone, place, shards, cases):
    """Validated on the way: ZeRO-3 gathers parameters call by call, so a rank that validated alone would hang, and
    parameters that stayed gathered would be trained on."""
    config = write_config(place, shards, "zero3")
    engine = ("engine.name=deepspeed", "engine.zero_stage=3", "engine.gradient_checkpointing=true")
    ended = train(2, config, *engine, f"validate.cases={cases}", "validate.every_steps=4", "flow.steps=2")
    assert ended.codes == (0, 0), ended.stderr
    assert [row["step"] for row in metrics(config) if "val/loss/full" in row] == [4, 8]
    difference = relative_difference(checkpoint(config), checkpoint(alone), load(alone))
    print(f"\nZeRO-3 on two ranks with checkpointing against plain on one: {difference:.1e} of the way")
    assert difference < RELATIVE


def test_frozen_parts_keep_their_bytes_and_all_others_move(straight):
    """On the saved weights: what an optimizer holds is not what a checkpoint says."""
    config = load(straight)
    policy = build_policy(config.model, config.run.seed)
    groups = group_parameters(policy)
    begin = {name: value.clone() for name, value in policy.state_dict().items()}
    middle, end = (load_file(checkpoint(straight, step) / manifest.WEIGHTS) for step in (5, STEPS))
    for group, parameters in groups.items():
        for name in parameters:
            assert not torch.equal(begin[name], middle[name]), f"{name} did not train in the first stage"
            assert torch.equal(middle[name], end[name]) == (group not in ("llm", "head")), name


def step_saved(config: Path) -> int:
    saved = manifest.newest(Path(load(config).run.dir))
    assert saved is not None
    return manifest.read(saved).step


def test_a_signal_saves_and_ends_well(place, shards):
    """SIGINT to all ranks, as a terminal sends it; then, resumed from what they saved, SIGTERM to torchrun."""
    config = write_config(place, shards, "stopped")
    far = ["stages.pretrain.steps=4000", "checkpoint.every_steps=4000"]
    processes = start(2, "-m", "la4vla.train", str(config), *far)
    until_logged(processes[0], config, 3)
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # torchrun's, behind the terminal's
    ended = wait(processes)
    assert ended.codes == (0, 0), ended.stderr
    stopped = step_saved(config)
    assert stopped == metrics(config)[-1]["step"] >= 3
    assert "start again to resume" in ended.stdout

    agent = start_torchrun(2, str(config), *far)
    until_logged(agent, config, stopped + 3)
    agent.send_signal(signal.SIGTERM)
    # Its own status is not 0, it was told to die; it passes the signal on and waits for the ranks, which save.
    ended = wait([agent])
    assert "resume: exact" in ended.stdout and "start again to resume" in ended.stdout, ended.stderr
    assert step_saved(config) == metrics(config)[-1]["step"] >= stopped + 3
    assert not list(checkpoint(config).parent.glob("*.tmp"))


def test_a_second_ctrl_c_some_seconds_later_ends_at_once():
    code = (
        "import os, signal, time; from la4vla.train import health; health.INSIST_S = 0.5; stop = health.StopSignal()\n"
        "for pause in (0, 0, 1):\n    time.sleep(pause)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(pause, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == -signal.SIGINT and done.stdout.split() == ["0", "0"] and not done.stderr


def test_a_finished_run_has_nothing_to_do(alone, in_process):
    before = digests(checkpoint(alone))
    ended = in_process(str(alone))
    assert ended.codes == (0,) and "nothing to do" in ended.stdout
    assert digests(checkpoint(alone)) == before


def test_micro_batches_change_no_result(alone, place, shards, in_process):
    """Nor does their number: 8 samples of a step in pieces of 2, or of 5, which cuts them unevenly."""
    config = write_config(place, shards, "pieces")
    ended = in_process(str(config), "stages.pretrain.micro_batch=5", "stages.finetune.micro_batch=8")
    assert ended.codes == (0,), ended.stderr
    assert relative_difference(checkpoint(config), checkpoint(alone), load(config)) < RELATIVE
    for mine, theirs in zip(metrics(config), metrics(alone), strict=True):
        assert mine["samples/la"] == theirs["samples/la"]
        for key in ("loss", "loss/la", "loss/vla", "grad_norm"):
            found, wanted = (
                [row[key]] if row[key] is not None else [] for row in (mine, theirs)
            )  # none: no such sample
            assert found == pytest.approx(wanted, rel=1e-3), (mine["step"], key)


def test_init_from_takes_weights_and_statistics_and_starts_at_step_0(alone, place, shards, in_process):
    """With a learning rate of 0 the weights at the end are those of the other run, exactly."""
    config = write_config(place, shards, "initialised")
    still = ["stages.pretrain.lr=0", "stages.pretrain.steps=1", "stages.finetune.lr=0", "stages.finetune.steps=1"]
    ended = in_process(str(config), f"run.init_from={load(alone).run.dir}", *still)
    assert ended.codes == (0,), ended.stderr
    assert "step and optimizer start fresh" in ended.stdout
    assert digests(checkpoint(config, 2))[manifest.WEIGHTS] == digests(checkpoint(alone))[manifest.WEIGHTS]
    assert manifest.read(checkpoint(config, 2)).robots == manifest.read(checkpoint(alone)).robots


def test_init_from_takes_the_tokenizer_too_and_refuses_another(alone, place, shards, in_process, tmp_path):
    """Its embeddings are those of its own tokens, not of whichever tokenizer ships."""
    begun, source = tmp_path / "begun", checkpoint(alone)
    shutil.copytree(source, begun)
    file = begun / manifest.TOKENIZER / "tokenizer.json"
    swapped = json.loads(file.read_text())
    vocab = swapped["model"]["vocab"]
    first, second = sorted(word for word in vocab if word.isalpha() and len(word) == 1)[:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(swapped))
    written = manifest.read(begun)
    replace(written, tokenizer_sha256={**written.tokenizer_sha256, file.name: sha256(file)}).write(begun)
    short = ["stages.pretrain.steps=1", "stages.finetune.steps=1", f"run.init_from={begun}"]
    config = write_config(place, shards, "own_words")
    other = in_process(str(config), *short, f"model.tokenizer={source / manifest.TOKENIZER}")
    assert other.codes == (2,) and "was trained with another; leave it empty" in other.stderr
    ended = in_process(str(config), *short)
    assert ended.codes == (0,), ended.stderr
    kept = json.loads((checkpoint(config, 2) / manifest.TOKENIZER / "tokenizer.json").read_text())
    assert kept["model"]["vocab"] == vocab
