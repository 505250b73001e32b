"""Why: partial credit says how far a policy that fails has come. The scripted experts, which succeed, must pass every
milestone of their task in its order, and a hand that does not move none."""

from contextlib import closing

import numpy as np
import pytest

from la4vla.sim.libero import LiberoEnv
from la4vla.sim.metaworld import MetaWorldEnv

pytestmark = pytest.mark.sim


def reached(env, task, episode, act, steps):
    """Milestone -> the step at which it held first."""
    env.reset(task, episode)
    first: dict[str, int] = {}
    for step in range(1, steps + 1):
        done = env.step(act())
        first = {**dict.fromkeys(env.milestones(), step), **first}
        if done.success or done.truncated:
            break
    return first


@pytest.mark.parametrize(
    ("task", "passed"),
    [
        ("pick-place-v3", ("contact", "grasp", "move", "lift", "place")),
        ("button-press-topdown-v3", ("contact", "move", "place")),
        ("window-open-v3", ("contact", "move", "place")),
        ("door-unlock-v3", ("contact", "move", "place")),
        ("plate-slide-v3", ("contact", "move", "place")),
        ("drawer-open-v3", ("contact", "move", "place")),
    ],
)
def test_metaworlds_experts_pass_the_milestones_of_their_task(task, passed, episode=3):
    with closing(MetaWorldEnv((), 64, 400, True)) as env:
        first = reached(env, task, episode, env.expert_action, 400)
        assert set(passed) <= set(first), first
        steps = [first[name] for name in passed]
        assert steps == sorted(steps), first
        assert steps[0] > 0 and ("lift" in first) == ("lift" in passed)
        assert reached(env, task, episode, lambda: np.zeros(4), 60) == {}


def test_a_touch_that_was_there_before_the_first_step_is_none():
    """In these layouts of handle-press the open gripper begins inside the handle, which pushes itself free."""
    with closing(MetaWorldEnv((), 64, 400, True)) as env:
        for episode in (3, 5):
            assert reached(env, "handle-press-v3", episode, lambda: np.zeros(4), 40) == {}
        assert "place" in reached(env, "handle-press-v3", 3, env.expert_action, 400)
        first = reached(env, "handle-press-v3", 4, env.expert_action, 400)
        assert 0 < first["contact"] <= first["move"] <= first["place"]


@pytest.mark.usefixtures("libero")
def test_liberos_expert_passes_them_too():
    with closing(LiberoEnv((), 64, 400, True)) as env:
        first = reached(env, "libero_object_03", 0, env.expert_action, 400)
        order = ("contact", "grasp", "lift", "place")
        assert set(order) | {"move"} == set(first), first
        assert [first[name] for name in order] == sorted(first[name] for name in order)
        assert reached(env, "libero_object_03", 0, lambda: np.zeros(7), 40) == {}
        env.reset("libero_goal_00", 0)  # a drawer: what the goal speaks of first is the cabinet
        assert [env._model.body(number).name for number in env._targets()] == ["wooden_cabinet_1_main"]
