"""What the training tests share: shard folders and a finished run, made once; the command without its own process."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from la4vla.train import dist
from la4vla.train.__main__ import main
from tests.fixtures import write_shards
from tests.train.launch import Ended, train, write_config


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "la", 24, 4)
    write_shards(folder / "vla", 24, 4, views=["front"])
    return folder


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The config of a run of one rank, without dropout (which is drawn per rank), from step 0 to its end. Copy it
    before you change it."""
    config = write_config(tmp_path_factory.mktemp("alone"), shards, "alone")
    ended = train(1, config)
    assert ended.codes == (0,), ended.stderr
    assert "8 = 4.8 la + 3.2 vla" in ended.stdout
    return config


@pytest.fixture
def in_process(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`python -m la4vla.train ARGUMENTS` in this process, which saves the seconds of importing; like the runs in their
    own processes on the CPU and in one thread, or their bytes would differ."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(1)

    def run(*arguments: str) -> Ended:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = main(arguments)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            dist.stop()
        return Ended((code,), *capfd.readouterr())

    return run
