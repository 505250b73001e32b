"""Shard folders that the training tests share, written once a session."""

from pathlib import Path

import pytest

from tests.fixtures import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder / "la", 24, 4)
    write_shards(folder / "vla", 24, 4, views=["front"])
    return folder
