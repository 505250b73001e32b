"""Why: `oracle` instructions are the upper arm of the hierarchical policy, so they must be right, in words that a
policy that learned clips knows, and held as long as a clip's are. The expert itself is watched: what it is said to do
must be what the labeller says of the episode that it makes."""

from contextlib import closing

import numpy as np
import pytest

from benchmarks.rollouts.privileged import SETTLED, TrueInstruction
from la4vla.config import KeyframeConfig, ProposeConfig
from la4vla.construct.propose.intention import instruction_of
from la4vla.construct.propose.keyframes import detect
from la4vla.construct.propose.kinematic import propose
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.construct.vocabulary import lint, named_direction
from la4vla.sim.expert import Intent
from la4vla.sim.libero import EMBODIMENT as PANDA
from la4vla.sim.libero import LiberoEnv
from la4vla.sim.libero_expert import LiberoExpert
from la4vla.sim.metaworld import EMBODIMENT as SAWYER
from la4vla.sim.registry import SIMULATORS

HAND = (0.0, 0.6, 0.2)


class Draw:
    """A generator that always takes the first phrasing."""

    def random(self, size):
        return np.zeros(size)


def said(state, target, opening, grasps=False, still=True, embodiment=SAWYER):
    robot = Robot(embodiment, robot_frame(embodiment.name))
    state, target = np.array(state, np.float32), np.array(target, np.float32)
    return instruction_of(state, target, opening, grasps, still, robot, ProposeConfig(), Draw())


@pytest.mark.parametrize(
    ("gripper", "target", "opening", "grasps", "still", "words"),
    [
        (1.0, (-0.2, 0.6, 0.2), 1.0, False, True, "move the open gripper left"),
        (1.0, (0.0, 0.6, 0.1), 1.0, False, True, "move the open gripper down"),
        (1.0, (0.0, 0.63, 0.2), 1.0, False, True, "move the open gripper slightly forward"),
        (0.3, (0.2, 0.6, 0.2), 0.0, False, True, "move the closed gripper right"),
        (1.0, HAND, 1.0, False, True, ""),  # a wait
        (1.0, HAND, 0.0, True, True, "close the gripper to grasp the object"),
        (1.0, (0.2, 0.6, 0.2), 0.0, False, True, "move right while closing the gripper"),
        (0.5, (0.2, 0.6, 0.2), 0.0, False, False, "move right while closing the gripper"),  # on its way, holds nothing
        (0.4, (0.0, 0.6, 0.4), 0.0, True, True, "lift the object up while holding it"),
        (0.4, (0.0, 0.8, 0.2), None, True, True, "move the gripper forward"),  # no command to close, nothing held
        (0.4, HAND, 1.0, True, True, "open the gripper to release the object"),
        (0.4, HAND, 1.0, False, True, ""),  # an empty one opens
    ],
)
def test_an_intention_is_called_what_the_labeller_would_call_it(gripper, target, opening, grasps, still, words):
    assert said((*HAND, gripper), target, opening, grasps, still) == words


def test_a_hand_that_turns_and_another_frame_are_understood():
    state = (0.0, 0.0, 1.0, 3.14, 0.0, 0.0, 1.0)
    assert said(state, (0.2, 0.0, 1.0), 1.0, embodiment=PANDA) == "move the open gripper forward"
    assert said(state, (0.0, 0.0, 1.0), 0.0, True, embodiment=PANDA) == "close the gripper to grasp the object"


class Walk:
    """An env, and what its expert is about at every step."""

    embodiment = SAWYER

    def __init__(self, intents):
        self.intents = iter(intents)

    def intent(self, env):
        phase, target = next(self.intents)
        return Intent((phase,), np.array(target, np.float32), 1.0, False)


def texts(intents, places):
    walk = Walk(intents)
    teller = TrueInstruction(walk, walk, 0)
    found = []
    for number, place in enumerate(places):
        state = np.array([*place, 1.0], np.float32)
        teller.begin("t", 0, state) if number == 0 else teller.stepped(state)
        found.append(named_direction(teller.now()).tolist())
    return found


def test_a_sentence_holds_until_the_intention_changes_or_it_is_wrong():
    left, right, up = [0, 1, 0], [0, -1, 0], [0, 0, 1]
    going = [(-0.2 + 0.02 * step, 0.6, 0.2) for step in range(8)]
    # nearly there it is still a `right`, not a slight one; an edge of two steps is none
    edge = [(0, (0, 0.6, 0.2))] * 4 + [(1, (-0.2, 0.6, 0.5))] * (SETTLED - 1) + [(0, (0, 0.6, 0.2))] * 2
    assert texts(edge, going) == [right] * 8
    other = [(0, (0, 0.6, 0.2))] * 3 + [(1, (-0.15, 0.6, 0.5))] * 5
    assert texts(other, going) == [right] * (2 + SETTLED) + [up] * (6 - SETTLED)
    # gone 4 cm too far, and 1 cm, which is a wait
    assert texts([(0, (0, 0.6, 0.2))] * 3, [(-0.1, 0.6, 0.2), (0.01, 0.6, 0.2), (0.04, 0.6, 0.2)]) == [
        right, right, left,
    ]  # fmt: skip


def watched(simulator, env, task, episode, act):
    """(frames whose words name the clip's directions, that name an opposite one, all of them in clips, sentences)."""
    state = env.reset(task, episode).state
    for _ in range(simulator.wait_steps):
        state = env.step(np.array(simulator.wait, np.float32)).state
    teller = TrueInstruction(simulator, env, 0)
    teller.begin(task, episode, state)
    states, actions, told = [], [], []
    done = act(env)
    while len(states) < simulator.expert_steps:
        states.append(state)
        actions.append(done())
        told.append(teller.now())
        result = env.step(actions[-1])
        if result.success:
            break
        state = result.state
        teller.stepped(state)
    embodiment, robot = env.embodiment, Robot(env.embodiment, robot_frame(env.embodiment.name))
    state_TS, action_TA = np.stack(states), np.stack(actions)
    commanded_T = embodiment.action.opening(action_TA)
    keyframes = detect(state_TS, embodiment.state, KeyframeConfig(), commanded_T)
    clips = propose(state_TS, action_TA, robot, keyframes, ProposeConfig(min_clip_frames=8), 3, Draw())
    spans = [(clip, t) for clip in clips for t in range(clip.start, clip.end)]
    pairs = [(named_direction(clip.instruction), named_direction(told[t])) for clip, t in spans]
    same = sum(bool((one == two).all()) for one, two in pairs)
    return same, sum(bool((one * two < 0).any()) for one, two in pairs), len(pairs), list(dict.fromkeys(told))


@pytest.mark.sim
def test_what_metaworlds_experts_are_said_to_do_is_what_they_do():
    simulator = SIMULATORS["metaworld"]
    tasks = ("pick-place-v3", "drawer-open-v3", "button-press-topdown-v3")
    found = []
    with closing(simulator.make_env((), 32, 500, True)) as env:
        for task in tasks:
            found.append(watched(simulator, env, task, 1000, lambda env: lambda: simulator.expert(env)[0]))
    same, opposed, frames, _ = (np.array([row[column] for row in found]) if column < 3 else None for column in range(4))
    assert same.sum() > 0.8 * frames.sum() and opposed.sum() < 0.05 * frames.sum(), found
    sentences = [sentence for row in found for sentence in row[3]]
    assert not [problem for sentence in sentences for problem in lint(sentence)]
    assert any("grasp" in sentence for sentence in found[0][3]) and "held object" in found[0][3][-1]


@pytest.mark.sim
@pytest.mark.thorough
@pytest.mark.usefixtures("libero")
def test_what_liberos_expert_is_said_to_do_is_what_it_does():
    simulator = SIMULATORS["libero"]
    with closing(LiberoEnv((), 32, 500, True)) as env:
        same, opposed, frames, sentences = watched(
            simulator, env, "libero_object_00", 20, lambda env: LiberoExpert(env._scene).action
        )
    assert same > 0.6 * frames and opposed < 0.05 * frames, sentences
    words = " ".join(sentences)
    assert "grasp" in words and words.index("grasp") < words.index("held object") and not lint(words)
