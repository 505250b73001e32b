"""Why: a GL context belongs to a thread, not to an env, and ends when Python collects it. The simulators' own renderers
draw one env's image with another's context, or black, without an error, and at every step whether asked or not."""

import gc
from contextlib import closing

import numpy as np
import pytest

from la4vla.sim.libero import CAMERAS, LiberoEnv
from la4vla.sim.metaworld import MetaWorldEnv
from tests.sim.scene_cases import change

pytestmark = pytest.mark.sim


def make():
    return closing(MetaWorldEnv(("corner4",), 64, 400, True))


def test_two_live_envs_draw_their_own_images():
    """One env a process is the rule of the house; where it is broken, images stay right all the same. A changed
    background is in textures of the context, not of the model."""
    with make() as first, make() as second:
        clean = first.reset("button-press-v3", 0).views["corner4"]
        other = second.reset("drawer-open-v3", 0).views["corner4"]
        assert np.array_equal(first.observe().views["corner4"], clean)
        second.observe()
        changed = first.reset("button-press-v3", 0, change("background", 5)).views["corner4"]
        assert np.abs(changed.astype(int) - clean).mean() > 5
        assert np.array_equal(second.observe().views["corner4"], other)
        assert np.array_equal(first.reset("button-press-v3", 0).views["corner4"], clean)


def test_images_may_be_larger_than_mujocos_own_screen():
    with closing(MetaWorldEnv(("corner4",), 512, 400, True)) as env:
        assert env.reset("reach-v3", 0).views["corner4"].shape == (512, 512, 3)


def test_what_is_left_of_a_closed_env_does_not_black_out_the_next():
    with make() as first:
        first.reset("button-press-v3", 0)
        left = [first._renderer, first._scene]
    with make() as second:
        before = second.reset("drawer-open-v3", 0).views["corner4"]
        left.clear()
        gc.collect()
        assert np.array_equal(second.observe().views["corner4"], before)


def draws_when_asked(env, task, monkeypatch):
    import mujoco

    drawn = []
    for module in (mujoco, mujoco._render):  # robosuite draws by the first, mujoco.Renderer by the second
        draw = module.mjr_render

        def counting(*given, draw=draw, **named):
            drawn.append(1)
            draw(*given, **named)

        monkeypatch.setattr(module, "mjr_render", counting)
    env.reset(task, 0)
    first = len(drawn)
    for _ in range(10):
        env.step(np.zeros(len(env.embodiment.action.names)))
    after_steps = len(drawn)
    env.observe()
    return first, after_steps, len(drawn)


def test_metaworld_draws_only_when_asked(monkeypatch):
    with make() as env:
        assert draws_when_asked(env, "reach-v3", monkeypatch) == (1, 1, 2)


@pytest.mark.usefixtures("libero")
def test_libero_draws_only_when_asked(monkeypatch):
    with closing(LiberoEnv(CAMERAS, 64, 100, True)) as env:
        assert draws_when_asked(env, "libero_object_00", monkeypatch) == (2, 2, 4)
