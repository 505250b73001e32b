"""Shard folders that the training tests share, written once a session; and the command without a process of its own."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from la4vla.train import dist
from la4vla.train.__main__ import main
from tests.fixtures import write_shards
from tests.train.launch import Ended


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "la", 24, 4)
    write_shards(folder / "vla", 24, 4, views=["front"])
    return folder


@pytest.fixture
def in_process(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`python -m la4vla.train ARGUMENTS` in this process, which saves the seconds of importing; like the runs in their
    own processes on the CPU and in one thread, or their bytes would differ."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(1)

    def run(*arguments: str) -> Ended:
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = main(arguments)
        finally:
            signal.signal(signal.SIGTERM, before)
            dist.stop()
        return Ended((code,), *capfd.readouterr())

    return run
