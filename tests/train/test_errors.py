"""Why: what goes wrong on one rank must neither hang the others nor be said eight times, and a run of NaNs must stop
and name the samples (FACTS 5.2 B12: it never stopped). Real processes under torchrun."""

import os
import re
import shutil
from types import SimpleNamespace

import pytest

from la4vla import manifest
from la4vla.config import load
from la4vla.train import __main__ as command
from la4vla.train import dist, run
from la4vla.types import UserError
from tests.fixtures import write_shards
from tests.train.launch import HERE, Ended, start, start_torchrun, train, wait, write_config

pytestmark = pytest.mark.slow


SHORT = ("stages.pretrain.steps=1", "stages.finetune.steps=1")


def torchrun(*arguments: str) -> Ended:
    return wait([start_torchrun(2, *arguments)])


def errors(ended: Ended) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.lstrip().startswith("error:")]


def test_steps_that_are_not_finite_stop_the_run_with_their_samples(tmp_path, shards, in_process):
    config = write_config(tmp_path, shards, "nan")
    ended = train(
        2,
        config,
        "stages.pretrain.lr=1.0e38",
        "stages.pretrain.warmup_steps=0",
        "stages.pretrain.steps=50",
        "engine.max_skipped_steps=3",
        "checkpoint.every_steps=2",
    )
    assert ended.codes == (2, 2)
    (said,) = errors(ended)
    assert "3 steps in a row had no finite gradient" in said
    assert (
        "last one step 4; look at its samples la/clip-" in said or "last one step 4; look at its samples vla/" in said
    )
    saved = manifest.newest(load(config).run.dir)
    assert saved is not None and manifest.read(saved).step in (2, 4)
    assert "Traceback" not in ended.stderr.split("error:")[0]
    assert "start a new run.dir without those that are bad or with a lower lr" in said
    new = in_process(str(config), *SHORT, f"run.dir={tmp_path}/new", "stages.pretrain.lr=1.0e-3")
    assert new.codes == (0,), new.stderr


def test_a_bad_shard_on_one_rank_ends_all_with_one_sentence(tmp_path, shards):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    shard = copy / "la" / "shard-000001.tar"  # stream 1: rank 1's
    shard.write_bytes(shard.read_bytes()[:2000])
    config = write_config(tmp_path, copy, "bad")
    ended = train(2, config)
    assert ended.codes == (2, 2)
    (said,) = errors(ended)
    assert "shard-000001.tar" in said


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stages.pretrain.learning_rate=1", "unknown key `stages.pretrain.learning_rate`"),
        ("data.sources.la.path=/nowhere", "/nowhere"),
        ("data.streams=8", "4 shards but data.streams=8"),
        ("run.init_from=/nowhere", "/nowhere: no such checkpoint folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path, shards, in_process, override, sentence):
    ended = in_process(str(write_config(tmp_path, shards, "input")), override)
    assert ended.codes == (2,)
    assert len(errors(ended)) == 1 and sentence in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ((*SHORT, "data.streams=8"), r"or set (data.streams=4)\."),
        (("run.dir={run}", "stages.pretrain.lr=0.5"), r"start a new run.dir \((run.init_from) takes over the weights"),
        (("run.dir={run}", "run.resume=never"), r"or set (run.resume=auto)\."),
        ((*SHORT, "run.init_from={run}", "model.preset=small"), r"set (model.preset=tiny), with which it was trained"),
        ((*SHORT, "run.init_from={run}", "model.readout=flatten"), r"set (model.readout=per_token), with which it was"),
        ((*SHORT, "run.init_from={run}", "model.action_dim=40"), r"have a row for each .*; set (model.action_dim=8),"),
    ],
    ids=["streams", "resume", "never", "preset", "readout", "sizes"],
)
def test_what_a_refusal_says_to_do_works(alone, shards, in_process, tmp_path, wrong, cure):
    """run: a finished run of the same config. What is done is what stands in the sentence."""
    config, run = write_config(tmp_path, shards, "cured"), load(alone).run.dir
    given = [item.format(run=run) for item in wrong]
    ended = in_process(str(config), *given)
    found = re.search(cure, ended.stderr)
    assert ended.codes == (2,) and found is not None, ended.stderr
    if found[1] == "run.init_from":
        given = [*SHORT, given[1], f"run.init_from={run}"]
    else:
        given = [item for item in given if not item.startswith("model.")] + [found[1]] * bool(found[1])
    again = in_process(str(config), *given)
    assert again.codes == (0,), again.stderr


def test_more_processes_than_gpus_is_one_sentence(tmp_path, shards, monkeypatch, capfd):
    """On every rank of the machine, or one would wait for ever; said by one of them. (No GPU is needed: torch is told
    that there is one.)"""
    config = write_config(tmp_path, shards, "gpus")
    monkeypatch.setattr(dist.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    store = dist.dist.HashStore()
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(store, int(os.environ["RANK"]), 2)]))
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert command.main([str(config)]) == 2
    said = capfd.readouterr().err
    assert said.count("error:") == 1 and "which has 1 GPUs; start as many processes" in said


def test_a_wrong_config_is_said_once_under_torchrun(tmp_path, shards):
    ended = torchrun(str(write_config(tmp_path, shards, "typo")), "run.sede=1")
    assert ended.codes != (0,)
    (said,) = errors(ended)
    assert "unknown key `run.sede`" in said


def test_ranks_that_were_given_different_shards_do_not_train_together(tmp_path, shards):
    """Their paths may differ."""
    write_shards(tmp_path / "la", 25, 4)
    config = write_config(tmp_path, shards, "different")
    paths = [f"data.sources.la.path={folder}/la" for folder in (shards, tmp_path)]
    ended = wait(start(2, str(HERE / "one_rank_differs.py"), str(config), *paths))
    assert ended.codes == (2, 2)
    (said,) = errors(ended)
    assert "rank 1 has another shards than rank 0; start all ranks with the same" in said


def test_ranks_that_were_given_different_configs_do_not_train_together(tmp_path, shards, monkeypatch):
    """The same comparison with what the second of three ranks says of itself."""
    path, learner = write_config(tmp_path, shards, "different"), SimpleNamespace(shared_by_ranks=lambda: {})
    said: list[dict[str, str]] = []
    monkeypatch.setattr(run, "gathered", lambda mine: said.append(mine) or [mine])
    for other in ("data.sources.la.path=elsewhere", "stages.pretrain.lr=2.0e-3"):
        run.check_ranks_agree(load(path, [other]), learner)
    moved, changed = said
    monkeypatch.setattr(run, "gathered", lambda mine: [mine, moved, mine])
    run.check_ranks_agree(load(path), learner)
    monkeypatch.setattr(run, "gathered", lambda mine: [mine, changed, mine])
    with pytest.raises(UserError, match="rank 1 has another config than rank 0; start all ranks with the same"):
        run.check_ranks_agree(load(path), learner)


def test_a_run_folder_that_cannot_be_written_is_one_sentence(tmp_path, shards):
    (tmp_path / "taken").write_text("a file")
    ended = wait(start(2, "-m", "la4vla.train", str(write_config(tmp_path, shards, "x")), f"run.dir={tmp_path}/taken"))
    assert ended.codes == (2, 2)
    (said,) = errors(ended)
    assert "taken" in said and "choose another run.dir" in said and "Traceback" not in ended.stderr


def test_other_data_in_the_same_folder_is_one_sentence(tmp_path, shards, in_process):
    """Resumed where the folder holds something else; where it has only moved it resumes (and is finished)."""
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    config = write_config(tmp_path, copy, "swapped")
    short = ["stages.pretrain.steps=1", "stages.finetune.steps=1"]
    assert in_process(str(config), *short).codes == (0,)
    shutil.rmtree(manifest.newest(load(config).run.dir))
    moved = in_process(str(config), *short, f"data.sources.la.path={shards}/la")
    assert moved.codes == (0,) and "resume: exact" in moved.stdout
    shutil.rmtree(manifest.newest(load(config).run.dir))
    write_shards(copy / "other", 25, 4)
    ended = in_process(str(config), *short, f"data.sources.la.path={copy}/other")
    assert ended.codes == (2,)
    assert "data.sources.la holds other data than" in ended.stderr and len(errors(ended)) == 1
