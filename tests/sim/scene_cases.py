"""What a change of the scene or of the robot's start has to keep to, in any simulator; test_scene_*.py run it on
theirs."""

import numpy as np

from benchmarks.perturb.perturb import PERTURBATIONS, SEVERITIES
from la4vla.sim.env import ROBOT_POSE, SceneChange

NAMES = [name for name, kind in PERTURBATIONS.items() if kind.kind == "scene"]
LEAST_STEP = 0.02
"""Every severity is this much further from the clean image than the one before, as a share of the strongest's distance;
the smallest step measured is 0.05 (light, LIBERO)."""


def change(name, severity, seed=0):
    return SceneChange(name, PERTURBATIONS[name].levels[severity - 1], seed)


def conforms(env, task, view, name):
    """Images change and nothing else does; back is the very clean image."""
    clean, path = _episode(env, task, None)
    assert _episode(env, task, None)[1] == path
    images = []
    for severity in SEVERITIES:
        seen, changed_path = _episode(env, task, change(name, severity))
        assert changed_path == path, "physics, state or instruction changed"
        images.append(seen.views[view].astype(int))
    again = env.reset(task, 1, change(name, 5)).views[view]
    assert np.array_equal(again, images[-1]), "the same draw gives another image"
    other_seed = env.reset(task, 1, change(name, 5, seed=1)).views[view]
    assert not np.array_equal(other_seed, again)
    assert np.array_equal(env.reset(task, 1).views[view], clean.views[view]), "something of the change stayed"
    distances = [np.abs(image - clean.views[view]).mean() for image in images]
    assert (np.diff([0, *distances]) > LEAST_STEP * distances[-1]).all(), distances


def starts_elsewhere(env, task):
    """The hand starts as far away as the level says and stays there, the objects stay where they were; the next clean
    episode is the very clean one."""
    clean, path = _episode(env, task, None)
    env.reset(task, 1)
    objects, moves_53 = _objects(env), []
    for severity in SEVERITIES:
        seen = env.reset(task, 1, change(ROBOT_POSE, severity))
        assert _objects(env) == objects, "an object moved, or does"
        assert seen.instruction == clean.instruction
        assert all((seen.views[view] != clean.views[view]).any() for view in seen.views)
        moves_53.append(seen.state[:3] - clean.state[:3])
        np.testing.assert_allclose(seen.state[3:], clean.state[3:], atol=1e-3)
    distances = np.linalg.norm(moves_53, axis=1)
    np.testing.assert_allclose(distances, PERTURBATIONS[ROBOT_POSE].levels, atol=1e-4)
    assert (np.array(moves_53) @ moves_53[0] / distances / distances[0] > 0.999).all(), "one direction, further"
    for _ in range(10):
        settled = env.step(np.zeros(len(env.embodiment.action.names))).state
    assert np.linalg.norm(settled[:3] - seen.state[:3]) < 0.01, "the controller drove it back"
    again, other = (env.reset(task, 1, change(ROBOT_POSE, 5, seed)).state for seed in (0, 1))
    assert again.tobytes() == seen.state.tobytes() and np.abs(other - again)[:3].max() > 0.01
    assert _episode(env, task, None)[1] == path, "something of the change stayed"


def looks(env):
    """Bytes of all that scene edits write, of an env without views."""
    model, solids = env._model, env._looks.solids
    written = [model.cam_pos, model.light_pos, model.light_diffuse, model.geom_rgba, model.tex_data]
    return b"".join(array.tobytes() for array in [*written, *(solid.centre_3 for solid in solids)])


def _objects(env):
    """Bytes of poses and velocities of all that is not the robot, nor what pulls its hand."""
    model, data = env._model, env._data
    robot = model.body_rootid[model.body(env.hand).id]
    others = (model.body_rootid != robot) & (model.body_mocapid < 0)
    moving = model.body_rootid[model.dof_bodyid] != robot
    return b"".join(part.tobytes() for part in (data.xpos[others], data.xquat[others], data.qvel[moving]))


def _episode(env, task, scene_change):
    """The first observation, and all of ten steps that must not change."""
    seen = env.reset(task, 1, scene_change) if scene_change else env.reset(task, 1)
    path = [env.physics_state().tobytes(), seen.state.tobytes(), seen.instruction]
    for action in np.random.default_rng(0).uniform(-1, 1, (10, len(env.embodiment.action.names))):
        path.append(env.step(action).state.tobytes())
    return seen, [*path, env.physics_state().tobytes()]
