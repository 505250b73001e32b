"""Fixtures that several folders of tests share."""

import gc
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from la4vla.sim.libero import ASSETS_VARIABLE

# Mesa's software renderer and triton each bring an LLVM: loaded after the first picture, triton's crashes the process.
if importlib.util.find_spec("triton"):
    importlib.import_module("triton")

# The log of absl, which rouge-score brings, closes the stream that it began with when another library (submitit) sets
# its own up: here that would be what pytest reads the output of tests from.
if importlib.util.find_spec("absl"):
    importlib.import_module("absl.logging").get_absl_handler().python_handler.stream = sys.__stderr__

# The same examples every time, and no folder of them beside the code.
settings.register_profile("house", derandomize=True, database=None, deadline=None)
settings.load_profile("house")

# A proxy that the machine has is not for servers that tests start.
for name in ("NO_PROXY", "no_proxy"):
    os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))


def pytest_collection_finish() -> None:
    """What the imports have made stays: every closed simulator collects garbage, which would go through all of it."""
    gc.freeze()


ARCHIVE = Path(__file__).parents[2] / "shared" / "libero-assets.tar.zst"


@pytest.fixture(scope="session")
def libero_assets(tmp_path_factory) -> Path:
    """LIBERO's assets: the folder that LA4VLA_LIBERO_ASSETS names, or the archive of stand-ins."""
    if importlib.util.find_spec("libero") is None:
        pytest.skip('needs pip install "la4vla[libero]"')
    if folder := os.environ.get(ASSETS_VARIABLE):
        return Path(folder)
    if not ARCHIVE.is_file() or shutil.which("zstd") is None:
        pytest.skip(f"LIBERO's assets (or zstd to unpack them) are not here; set {ASSETS_VARIABLE}")
    folder = tmp_path_factory.mktemp("assets")
    subprocess.run(["tar", "--zstd", "-xf", ARCHIVE, "-C", folder], check=True)
    return folder / "libero-assets"


@pytest.fixture
def libero(libero_assets, tmp_path, monkeypatch) -> None:
    """LIBERO with its assets and a config folder of its own; skips where it is not there."""
    monkeypatch.setenv(ASSETS_VARIABLE, str(libero_assets))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
