"""One random checkpoint in the released layout, bf16 as DeepSpeed writes it, and runs that are imported from it."""

from pathlib import Path

import pytest
import torch

from la4vla.released.evo1 import ImportRequest, import_evo1
from tests.released.folder import random_state, write_folder


@pytest.fixture(scope="session")
def released(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("released") / "evo1", random_state(0, torch.bfloat16))


@pytest.fixture(scope="session")
def imported(released, tmp_path_factory):
    """(release, context) -> the run, each imported once."""
    runs: dict[tuple[str, str], Path] = {}

    def run(release: str = "evo1", context: str = "flash") -> Path:
        if (release, context) not in runs:
            out = tmp_path_factory.mktemp("runs") / f"{release}-{context}"
            import_evo1(ImportRequest(released, out, release=release, context=context, preset="tiny"))
            runs[release, context] = out
        return runs[release, context]

    return run
