"""What a scene edit has to keep to, in any simulator; test_scene_*.py run it on theirs."""

import numpy as np

from benchmarks.perturb import PERTURBATIONS, SEVERITIES
from la4vla.sim.env import SceneChange

NAMES = [name for name, kind in PERTURBATIONS.items() if kind.kind == "scene"]
RISING = {"camera", "background"}
"""Their distance from the clean picture rises with the severity; bright pictures clamp light and colours."""


def change(name, severity, seed=0):
    return SceneChange(name, PERTURBATIONS[name].levels[severity - 1], seed)


def conforms(env, task, view, name):
    """Pictures change and nothing else does; back is the very clean picture."""
    clean, path = _episode(env, task, None)
    assert _episode(env, task, None)[1] == path
    pictures = []
    for severity in SEVERITIES:
        seen, changed_path = _episode(env, task, change(name, severity))
        assert changed_path == path, "physics, state or instruction changed"
        pictures.append(seen.views[view].astype(int))
    again = env.reset(task, 1, change(name, 5)).views[view]
    assert np.array_equal(again, pictures[-1]), "the same draw gives another picture"
    other_seed = env.reset(task, 1, change(name, 5, seed=1)).views[view]
    assert not np.array_equal(other_seed, again)
    assert np.array_equal(env.reset(task, 1).views[view], clean.views[view]), "something of the change stayed"
    distances = [np.abs(picture - clean.views[view]).mean() for picture in pictures]
    assert min(distances) > 0 and distances[-1] > distances[0]
    if name in RISING:
        assert (np.diff(distances) > 0).all(), distances
    return distances


def _episode(env, task, scene_change):
    """The first observation, and all of ten steps that must not change."""
    seen = env.reset(task, 1, scene_change) if scene_change else env.reset(task, 1)
    path = [env.physics_state().tobytes(), seen.state.tobytes(), seen.instruction]
    for action in np.random.default_rng(0).uniform(-1, 1, (10, len(env.embodiment.action.names))):
        path.append(env.step(action).state.tobytes())
    return seen, [*path, env.physics_state().tobytes()]
