"""Why: a scene edit that reaches physics, survives its episode or never reaches the GL context gives a success rate of
something else. All edits are run on a MetaWorld scene with a solid object and a goal mark; colours on a textured one
as well."""

from contextlib import closing

import pytest

from la4vla.sim.metaworld import MetaWorldEnv
from tests.sim.scene_cases import NAMES, change, conforms, looks, starts_elsewhere

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    with closing(MetaWorldEnv(("corner4", "gripperPOV"), 64, 100, True)) as env:
        yield env


@pytest.mark.parametrize(
    ("task", "name"), [*(("pick-place-v3", name) for name in NAMES), ("door-open-v3", "object_colour")]
)
def test_looks_change_and_nothing_else(env, task, name):
    conforms(env, task, "corner4", name)


@pytest.mark.parametrize("task", ["drawer-close-v3", "button-press-wall-v3"])
def test_the_robot_starts_elsewhere_and_objects_do_not(env, task):
    """The second starts at the edge of what actions reach; in the first, objects touch each other."""
    starts_elsewhere(env, task)


def test_another_episode_is_changed_otherwise():
    def written(episode, *changes):
        env.reset("pick-place-v3", episode, *changes)
        return looks(env)

    with closing(MetaWorldEnv((), 64, 100, True)) as env:
        clean = written(1)
        assert written(2) == clean
        for name in NAMES:
            assert len({clean, written(1, change(name, 5)), written(2, change(name, 5))}) == 3, name


def test_a_hand_camera_stays_where_the_camera_is_moved(env):
    clean = env.reset("push-v3", 0).views["gripperPOV"]
    assert (env.reset("push-v3", 0, change("camera", 5)).views["gripperPOV"] == clean).all()
