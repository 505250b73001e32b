"""Why: what goes wrong on one rank must neither hang the others nor be said eight times, and a run of NaNs must stop
and name the samples (FACTS 5.2 B12: it never stopped). Real processes under torchrun."""

import shutil
import subprocess
import sys

import pytest

from la4vla import manifest
from la4vla.config import load
from tests.train.launch import ROOT, TIMEOUT_S, Ended, environment, write_config

pytestmark = pytest.mark.slow


def torchrun(*arguments: str) -> Ended:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "la4vla.train", *arguments],
        env=environment(0, 1, 0),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ended((done.returncode,), done.stdout, done.stderr)


def errors(ended: Ended) -> list[str]:
    return [line for line in ended.stderr.splitlines() if line.lstrip().startswith("error:")]


def test_steps_that_are_not_finite_stop_the_run_with_their_samples(tmp_path, shards):
    config = write_config(tmp_path, shards, "nan")
    ended = torchrun(
        str(config),
        "stages.pretrain.lr=1.0e38",
        "stages.pretrain.warmup_steps=0",
        "stages.pretrain.steps=50",
        "engine.max_skipped_steps=3",
        "checkpoint.every_steps=2",
    )
    assert ended.codes != (0,)
    (said,) = errors(ended)
    assert "3 steps in a row had no finite gradient" in said
    assert (
        "last one step 4; look at its samples la/clip-" in said or "last one step 4; look at its samples vla/" in said
    )
    saved = manifest.newest(load(config).run.dir)
    assert saved is not None and manifest.read(saved).step in (2, 4)
    assert "Traceback" not in ended.stderr.split("error:")[0]


def test_a_bad_shard_on_one_rank_ends_all_with_one_sentence(tmp_path, shards):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    shard = copy / "la" / "shard-000001.tar"  # stream 1: rank 1's
    shard.write_bytes(shard.read_bytes()[:2000])
    config = write_config(tmp_path, copy, "bad")
    ended = torchrun(str(config))
    assert ended.codes != (0,)
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
