"""Why: the loader is a process of its own, and that is where trainers hang: a child that dies, a parent that dies, a
Ctrl-C that reaches only one of them. Whatever happens, the trainer gets the steps or one sentence, within seconds."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from la4vla.config import TrainConfig
from la4vla.data import loader as loader_module
from la4vla.data.loader import Loader
from la4vla.data.reader import Reader
from la4vla.data.setup import prepare
from la4vla.types import UserError
from tests.data.test_data_reader import same
from tests.fixtures import SPEC, encode, train_config, write_shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    root = tmp_path_factory.mktemp("sources")
    write_shards(root / "la", clips=20, shards=5)
    write_shards(root / "vla", clips=12, shards=4, views=["front", "wrist"], frame_stride=2)
    return train_config({"la": (root / "la", "la"), "vla": (root / "vla", "vla")}, steps=12)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


LIMIT_S = 200.0
"""Ten times and more what anything here takes on a quiet machine; only a hang gets there."""


def gone(pid: int) -> bool:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_the_process_changes_nothing(config):
    """Also: it does not hear the signals that tell the trainer to save, and handed-out batches outlive it."""
    with Reader(config, prepare(config, SPEC, encode), 0, 2) as reader:
        here = list(reader.steps("first", 3))
    with Loader(config, prepare(config, SPEC, encode), 0, 2, ("first", 3)) as loader:
        pid = loader._process.pid
        assert pid is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        there = list(loader)
    assert gone(pid)
    assert [(step.stage_step, step.step) for step in there] == [(step, step) for step in range(3, 12)]
    assert all(same(one, two) for one, two in zip(here, there, strict=True))
    assert all(
        batch.images_NCHW is None or batch.images_NCHW[0].permute(1, 2, 0).is_contiguous() for batch in there[0].batches
    )


def test_how_long_the_trainer_waited_is_told(config):
    """For the first step, which takes the start of a process; not for one that was read ahead."""
    with Loader(config, prepare(config, SPEC, encode), 0, 1, ("first", 0)) as loader:
        steps = iter(loader)
        for _ in range(2):
            began = time.perf_counter()
            step = next(steps)
            passed = time.perf_counter() - began
            assert 0.5 * passed - 0.05 < step.wait_s <= passed
            assert loader._pipe.poll(LIMIT_S), "the next one is on its way"


def test_leaving_early_ends_the_process(config, monkeypatch):
    monkeypatch.setattr(loader_module, "CLOSE_S", LIMIT_S)
    with Loader(config, prepare(config, SPEC, encode), 0, 1, ("first", 0)) as loader:
        next(iter(loader))
    assert loader._process.exitcode == 0, "it ended by itself, before the patience of close() ran out"


def test_bad_data_is_the_same_sentence_in_the_trainer(config, tmp_path):
    write_shards(tmp_path / "la", clips=8, shards=4)
    shard = tmp_path / "la" / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    broken = train_config({"la": (tmp_path / "la", "la")})
    with (
        Loader(broken, prepare(broken, SPEC, encode), 0, 1, ("first", 0)) as loader,
        pytest.raises(UserError, match=r"shard-000002\.tar.*la4vla data verify"),
    ):
        list(loader)


def test_too_little_shared_memory_is_said_before_it_kills(config, monkeypatch):
    """Writing past the end of /dev/shm is a SIGBUS without a word; docker gives it 64 MiB."""
    with Reader(config, prepare(config, SPEC, encode), 0, 1) as reader:
        step = next(iter(reader.steps("first", 0)))
    usage = shutil.disk_usage("/dev/shm")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"--shm-size.*data\.read_ahead"):
        loader_module._packed(step)


def broken_encode(instruction: str, slots: tuple[int, ...]) -> list[int]:
    raise LookupError("no such word")


def test_a_bug_in_the_loader_arrives_with_its_traceback(config):
    with (
        Loader(config, prepare(config, SPEC, broken_encode), 0, 1, ("first", 0)) as loader,
        pytest.raises(RuntimeError, match=r"(?s)broken_encode.*no such word"),
    ):
        list(loader)


def test_a_killed_loader_is_an_error_not_a_hang(config):
    with Loader(config, prepare(config, SPEC, encode), 0, 1, ("first", 0)) as loader:
        steps = iter(loader)
        next(steps)
        assert loader._process.pid is not None
        os.kill(loader._process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"was killed, most likely for memory; .* the run resumes"):
            list(steps)


def test_bad_config_fails_before_a_process_starts(config):
    with pytest.raises(UserError, match="shared by 3 ranks"):
        Loader(config, prepare(config, SPEC, encode), 0, 3, ("first", 0))


TRAINER = """
import sys
from pathlib import Path
from la4vla.data.loader import Loader
from la4vla.data.setup import prepare
from tests.fixtures import SPEC, encode, train_config
if __name__ == "__main__":
    config = train_config({"la": (sys.argv[1], "la")}, steps=10**4)
    loader = Loader(config, prepare(config, SPEC, encode), 0, 1, ("first", 0))
    steps = iter(loader)
    next(steps)
    print(loader._process.pid, flush=True)
    if sys.argv[2] == "wait":
        for step in steps:
            sys.stdin.read()
    if sys.argv[2] == "crash":
        raise RuntimeError("the trainer has a bug")
"""


@pytest.mark.parametrize("end", ["wait", "crash", "leave"])
def test_the_loader_ends_with_its_trainer(config, tmp_path, end):
    """wait: the trainer is killed with SIGKILL. crash, leave: it ends without closing its loader."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    command = [sys.executable, str(script), config.data.sources["la"].path, end]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        if end == "wait":
            trainer.kill()
        trainer.wait(timeout=LIMIT_S)
        assert gone(pid)
        assert trainer.returncode == {"wait": -signal.SIGKILL, "crash": 1, "leave": 0}[end]
