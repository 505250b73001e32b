"""Why: questions about scenes take their answers from `things`; a wrong name or a mirrored axis would train and grade a
model on lies."""

from contextlib import closing

import numpy as np
import pytest

from la4vla.sim.env import SceneChange
from la4vla.sim.libero import LiberoEnv
from la4vla.sim.metaworld import MetaWorldEnv

pytestmark = pytest.mark.sim

RGB = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "purple": (1, 0, 1)}


def states(env):
    return {thing.name: thing.state for thing in env.things() if thing.states}


def conforms(env, task, episode, view):
    """As many toys as asked for, in different colours, which the images show."""
    plain = env.reset(task, episode).views[view].astype(int)
    assert not [thing for thing in env.things() if thing.colour]
    shown = 0
    for count in (1, 4):
        image = env.reset(task, episode, SceneChange("toys", count, 3)).views[view].astype(int)
        toys = [thing for thing in env.things(view) if thing.colour]
        assert len(toys) == count == len({toy.colour for toy in toys})
        changed = np.abs(image - plain).max(axis=2) > 8
        assert 0.5 * sum(toy.pixels for toy in toys) <= changed.sum()
        colours = image[changed] / image[changed].max(axis=1, keepdims=True)
        for toy in toys:
            if toy.colour in RGB and toy.pixels > 30:
                near = np.abs(colours - RGB[toy.colour]).max(axis=1) < 0.45
                assert near.sum() > 0.3 * toy.pixels, toy
                shown += 1
        assert all(toy.place[axis] > 0 for toy in toys for axis in [forward(env)]), "in front of the base"
    assert shown
    assert (env.reset(task, episode).views[view] == plain).all(), "toys are taken away again"


def forward(env):
    return 1 if isinstance(env, MetaWorldEnv) else 0


@pytest.mark.parametrize(
    ("task", "name", "before", "after"),
    [
        ("window-close-v3", "window", "open", "closed"),
        ("door-unlock-v3", "lock", "locked", "unlocked"),
        ("door-open-v3", "door", "closed", "open"),
        ("drawer-open-v3", "drawer", "closed", "open"),
        ("button-press-topdown-v3", "button", "released", "pressed"),
        ("handle-pull-v3", "handle", "down", "up"),
    ],
)
def test_parts_of_metaworld_open_and_close(task, name, before, after):
    with closing(MetaWorldEnv((), 64, 300, True)) as env:
        env.reset(task, 3)
        assert states(env) == {name: before}
        while not (step := env.step(env.expert_action())).success and not step.truncated:
            pass
        for _ in range(5):
            env.step(env.expert_action())
        assert states(env) == {name: after}


def test_toys_of_metaworld():
    with closing(MetaWorldEnv(("corner4",), 112, 100, True)) as env:
        conforms(env, "plate-slide-v3", 3, "corner4")


def test_toys_and_parts_of_libero(libero):
    with closing(LiberoEnv(("agentview",), 112, 100, True)) as env:
        conforms(env, "libero_spatial_00", 3, "agentview")
        env.reset("libero_10_03", 3)
        drawers = {"top": "closed", "middle": "closed", "bottom": "open"}
        assert states(env) == {f"{name} drawer of the cabinet": state for name, state in drawers.items()}
        env.reset("libero_10_09", 3)
        assert states(env) == {"microwave": "open"}
