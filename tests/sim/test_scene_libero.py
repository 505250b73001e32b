"""Why: LIBERO's scenes have cube textures, coloured fixtures and a renderer of our own over robosuite's model; the same
changes must keep to the same promises there. Its controller also remembers where the hand was."""

import importlib.util
from contextlib import closing

import pytest

from la4vla.sim.libero import ASSETS_VARIABLE, LiberoEnv
from tests.sim.scene_cases import NAMES, conforms, starts_elsewhere

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason='needs pip install "la4vla[libero]"'),
]


@pytest.fixture(autouse=True)
def environment(libero_assets, tmp_path, monkeypatch):
    monkeypatch.setenv(ASSETS_VARIABLE, str(libero_assets))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)


@pytest.mark.thorough  # the same conformance runs on MetaWorld
def test_looks_change_and_nothing_else():
    with closing(LiberoEnv(("agentview",), 64, 100, True)) as env:
        for name in NAMES:
            conforms(env, "libero_spatial_00", "agentview", name)
        for name in ("background", "object_colour", "distractors"):  # another table, other objects
            conforms(env, "libero_object_00", "agentview", name)


def test_the_robot_starts_elsewhere_and_objects_do_not():
    with closing(LiberoEnv(("agentview",), 64, 100, True)) as env:
        starts_elsewhere(env, "libero_spatial_00")
