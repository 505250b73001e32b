"""Why: LIBERO's scenes have cube textures, coloured fixtures and a renderer of our own over robosuite's model; the same
scene edits must keep to the same promises there."""

import importlib.util
from contextlib import closing

import pytest

from la4vla.sim.libero import ASSETS_VARIABLE, LiberoEnv
from tests.sim.scene_cases import NAMES, conforms

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason='needs pip install "la4vla[libero]"'),
]


@pytest.fixture(autouse=True)
def environment(libero_assets, tmp_path, monkeypatch):
    monkeypatch.setenv(ASSETS_VARIABLE, str(libero_assets))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)


@pytest.mark.parametrize("task", ["libero_spatial_00", "libero_object_00"])
def test_looks_change_and_nothing_else(task):
    with closing(LiberoEnv(("agentview",), 64, 100, True)) as env:
        for name in NAMES:
            conforms(env, task, "agentview", name)
