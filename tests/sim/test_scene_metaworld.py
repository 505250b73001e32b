"""Why: a scene edit that reaches physics, survives its episode or never reaches the GL context gives a success rate of
something else. All edits are run on a MetaWorld scene with a solid object and a goal mark; colours on a textured one
as well."""

from contextlib import closing

import pytest

from la4vla.sim.metaworld import MetaWorldEnv
from tests.sim.scene_cases import NAMES, change, conforms

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    with closing(MetaWorldEnv(("corner4", "gripperPOV"), 64, 100, True)) as env:
        yield env


@pytest.mark.parametrize(("task", "name"), [*(("pick-place-v3", name) for name in NAMES), ("door-open-v3", NAMES[-1])])
def test_looks_change_and_nothing_else(env, task, name):
    conforms(env, task, "corner4", name)


def test_a_hand_camera_stays_where_the_camera_is_moved(env):
    clean = env.reset("push-v3", 0).views["gripperPOV"]
    assert (env.reset("push-v3", 0, change("camera", 5)).views["gripperPOV"] == clean).all()
