"""What the training tests share: shard folders and a finished run, made once; the command without its own process."""

import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from la4vla.train import dist
from la4vla.train.__main__ import main
from tests.fixtures import write_shards
from tests.train.held_out import write_cases, write_clips
from tests.train.launch import Ended, forked_loaders, start_forks, write_config


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "la", 24, 4)
    write_shards(folder / "vla", 24, 4, views=["front"])
    return folder


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of six clips that no run trains on."""
    folder = tmp_path_factory.mktemp("held_out")
    write_clips(folder / "vla", range(100, 106))
    return write_cases(folder / "vla")


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The config of a run of one rank, without dropout (which is drawn per rank), from step 0 to its end. Copy its
    folder before you change it."""
    config = write_config(tmp_path_factory.mktemp("alone"), shards, "alone")
    assert run_here(str(config)) == 0
    return config


def run_here(*arguments: str) -> int:
    """`python -m la4vla.train ARGUMENTS` in this process, which saves the seconds of importing; like the runs in their
    own processes on the CPU and in one thread, or their bytes would differ. Its exit status."""
    torch.set_num_threads(1)
    start_forks()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with forked_loaders(), mock.patch.object(torch.cuda, "is_available", lambda: False):
            return main(arguments)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        dist.stop()


@pytest.fixture
def in_process(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`run_here`, with what it printed."""
    return lambda *arguments: Ended((run_here(*arguments),), *capfd.readouterr())
