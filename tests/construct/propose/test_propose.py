"""Why: the labeller's words are the only supervision of language-action training. Phases that are known by construction
must come out with the right cuts, primitives and directions, and on real experts every sentence must agree with what
was measured."""

import time
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from la4vla.config import KeyframeConfig, ProposeConfig
from la4vla.construct.propose.cutting import ArmSegment, _snap
from la4vla.construct.propose.keyframes import detect
from la4vla.construct.propose.kinematic import propose
from la4vla.construct.propose.track import bends, command_jumps
from la4vla.construct.robots.robot import Robot, RobotFrame, robot_frame
from la4vla.construct.vocabulary import contradictions, lint
from la4vla.directions import DIRECTION_SPELLINGS, WORD
from la4vla.sim.metaworld import EMBODIMENT, MetaWorldEnv
from la4vla.types import Embodiment, VectorSpec

CONFIG = ProposeConfig(min_clip_frames=8)
FORWARD, LEFT, UP = np.array([0, 1, 0]), np.array([-1, 0, 0]), np.array([0, 0, 1])
"""World axes of the Sawyer."""


SAWYER = Robot(EMBODIMENT, robot_frame(EMBODIMENT.name))


def label(state, action, robot=SAWYER, config=CONFIG, stride=1, seed=0):
    keyframes = detect(state, robot.embodiment.state, KeyframeConfig())
    return propose(state, action, robot, keyframes, config, stride, np.random.default_rng(seed))


def episode(*phases, open_start=1.0):
    """State and action [T, 4] from phases (displacement in m, frames, opening at the end, gripper command)."""
    position, opening = np.zeros(3), open_start
    states, actions = [], []
    for displacement, frames, opening_end, command in phases:
        for step in range(frames):
            done = step / frames
            states.append([*(position + done * np.asarray(displacement)), opening + done * (opening_end - opening)])
            actions.append([0, 0, 0, command])
        position, opening = position + np.asarray(displacement), opening_end
    return np.array(states, np.float32), np.array(actions, np.float32)


def direction_words(sentence):
    return {word for word in WORD.findall(sentence) if word in DIRECTION_SPELLINGS}


@pytest.mark.parametrize(
    ("axis", "word"),
    [(FORWARD, "forward"), (-FORWARD, "backward"), (LEFT, "left"), (-LEFT, "right"), (UP, "up"), (-UP, "down")],
)
def test_a_straight_free_motion_is_one_move_in_its_direction(axis, word):
    (clip,) = label(*episode((0.2 * axis, 40, 1.0, -1.0)))
    assert (clip.primitive, clip.status, clip.start, clip.end) == ("move", "EMPTY", 0, 40)
    assert direction_words(clip.instruction) == {word}


def test_a_bend_is_a_cut():
    clips = label(*episode((0.2 * FORWARD, 30, 1.0, -1.0), (-0.2 * UP, 30, 1.0, -1.0)))
    assert [direction_words(clip.instruction) for clip in clips] == [{"forward"}, {"down"}]
    assert abs(clips[0].end - 30) <= 2


PICK = (
    (0.2 * FORWARD, 30, 1.0, -1.0),
    (-0.15 * UP, 25, 1.0, -1.0),
    (0.0 * UP, 15, 0.45, 1.0),  # closes and rests on something
    (0.15 * UP, 25, 0.45, 1.0),
    (0.2 * LEFT, 30, 0.45, 1.0),
    (-0.1 * UP, 20, 0.45, 1.0),
    (0.0 * UP, 12, 1.0, -1.0),
    (0.1 * UP, 20, 1.0, -1.0),
)


PICK_LABELS = ["move", "move", "grasp", "lift", "transport", "lower", "place", "move"]


def test_pick_and_place_comes_out_phase_by_phase():
    clips = label(*episode(*PICK))
    assert [clip.primitive for clip in clips] == PICK_LABELS
    assert [clip.status for clip in clips] == ["EMPTY"] * 2 + ["HOLDING"] * 4 + ["EMPTY"] * 2
    edges = np.cumsum([0, *(frames for _, frames, _, _ in PICK)])
    assert np.abs(np.array([clip.start for clip in clips]) - edges[:-1]).max() <= 4
    assert direction_words(clips[4].instruction) == {"left"}


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_gripper_that_closes_at_once_still_grasps_and_places(frames, stride):
    """As binary grippers do, and all of them at 5 frames a second."""
    quick = [(0.0 * UP, frames, *phase[2:]) if phase[1] in (12, 15) else phase for phase in PICK]
    clips = label(*episode(*quick), config=ProposeConfig(), stride=stride)
    assert [clip.primitive for clip in clips] == PICK_LABELS
    assert all(one.end == other.start for one, other in pairwise(clips))


def test_a_hand_that_leaves_before_its_fingers_rest_ends_the_grasp():
    state, action = episode(
        (-0.1 * UP, 20, 1.0, -1.0), (-0.03 * UP, 12, 0.6, 1.0), (0.1 * UP, 8, 0.45, 1.0), *PICK[3:5]
    )
    move, grasp, lift, *_ = label(state, action)
    assert [move.primitive, grasp.primitive, lift.primitive] == ["move", "grasp", "lift"]
    assert abs(grasp.start - 20) <= 2
    assert abs(lift.start - 32) <= 3


def test_closing_on_nothing_is_no_grasp():
    clips = label(*episode((0.3 * FORWARD, 15, 0.3, 1.0), (0.3 * FORWARD, 15, 0.3, 1.0), (-0.1 * UP, 20, 0.3, 1.0)))
    assert {clip.primitive for clip in clips} == {"move"}
    assert {clip.status for clip in clips} == {"EMPTY"}
    assert "closing" in clips[0].instruction
    assert "closed" in clips[-1].instruction


def test_where_the_state_repeats_the_command_closed_is_held():
    """Robots without a measured gripper: closed_on_nothing below any opening."""
    state, action = episode(*((moved, frames, 1.0 if sign < 0 else 0.0, sign) for moved, frames, _, sign in PICK))
    state[:, 3] = action[:, 3] < 0
    assert "HOLDING" not in {clip.status for clip in label(state, action)}
    clips = label(state, action, replace(SAWYER, frame=replace(SAWYER.frame, closed_on_nothing=-1.0)))
    assert [clip.status for clip in clips if clip.primitive in ("lift", "transport", "lower")] == ["HOLDING"] * 3


def test_a_lost_object_ends_the_holding():
    clips = label(
        *episode(*PICK[:4], (0.2 * LEFT, 20, 0.45, 1.0), (0.001 * LEFT, 6, 0.3, 1.0), (0.2 * LEFT, 30, 0.3, 1.0))
    )
    assert [clip.status for clip in clips][-1] == "EMPTY"
    assert clips[-1].primitive == "move"
    assert "transport" in {clip.primitive for clip in clips}


def test_a_wait_is_left_out():
    clips = label(*episode((0.2 * FORWARD, 30, 1.0, -1.0), (0.0 * UP, 60, 1.0, -1.0), (0.2 * LEFT, 30, 1.0, -1.0)))
    assert sum(clip.end - clip.start for clip in clips) < 100
    assert [direction_words(clip.instruction) for clip in (clips[0], clips[-1])] == [{"forward"}, {"left"}]


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_starts_have_a_image_and_spans_do_not_overlap(stride):
    state, action = episode(*PICK)
    clips = label(state, action, stride=stride)
    assert all(clip.start % stride == 0 for clip in clips)
    assert all(one.end <= two.start for one, two in pairwise(clips))
    assert all(clip.end - clip.start >= CONFIG.min_clip_frames for clip in clips)
    assert clips[-1].end <= len(state)


def test_words_vary_with_the_generator_and_nothing_else_does():
    state, action = episode(*PICK)
    drawn = [label(state, action, seed=seed) for seed in range(6)]
    assert label(state, action, seed=3) == drawn[3]
    assert len({tuple(clip.instruction for clip in clips) for clips in drawn}) > 3
    assert len({tuple((clip.start, clip.end, clip.primitive) for clip in clips) for clips in drawn}) == 1


def test_random_paths_never_contradict_themselves():
    generator = np.random.default_rng(0)
    for _ in range(30):
        phases = [
            (generator.normal(0, 0.1, 3), int(generator.integers(3, 40)), generator.choice([1.0, 0.45, 0.3]), sign)
            for sign in generator.choice([-1.0, 1.0], 6)
        ]
        state, action = episode(*phases)
        for clip in label(state, action, stride=2):
            moved = np.array(clip.displacement)
            assert not lint(clip.instruction) + contradictions(clip.instruction, moved)
            last = min(clip.end, len(state) - 1)
            world = state[last, :3].astype(float) - state[clip.start, :3]
            np.testing.assert_allclose(moved, [world @ FORWARD, world @ LEFT, world @ UP], atol=1e-6)
            if clip.primitive in ("lift", "lower", "transport"):
                assert clip.status == "HOLDING"


@pytest.mark.parametrize("lag", [0, 3, 6])
def test_cuts_follow_the_commands_when_the_arm_lags(lag):
    """A compliant arm: what is commanded now is seen `lag` frames later. Words must fit the commands of the clip."""
    state, action = episode((0.3 * FORWARD, 30, 1.0, -1.0), (-0.3 * UP, 40, 1.0, -1.0))
    action[:, :3] = np.diff(state[:, :3], axis=0, append=state[-1:, :3]) * 100
    state[:, :3] = np.concatenate([np.repeat(state[:1, :3], lag, axis=0), state[: len(state) - lag, :3]])
    first, second = label(state, action)
    assert abs(second.start - 30) <= 1
    assert [direction_words(clip.instruction) for clip in (first, second)] == [{"forward"}, {"down"}]


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_short_episodes_pass(frames):
    state, action = episode((0.1 * FORWARD, frames, 1.0, -1.0))
    assert len(label(state, action)) <= 1


def test_bends_follow_the_path_within_the_tolerance():
    corner = np.concatenate([np.linspace([0, 0, 0], [1, 0, 0], 50), np.linspace([1, 0, 0], [1, 1, 0], 50)])
    assert len(bends(corner, 0.02, 1.0)) in (1, 2)
    assert not bends(np.linspace([0, 0, 0], [1, 2, 3], 30), 1e-6, 1.0)
    assert not bends(np.zeros((5, 3)), 0.01, 1.0)
    assert bends(np.concatenate([corner, corner[::-1]]), 0.02, 1.0)


def test_a_blunt_bend_is_none():
    turn = np.concatenate([np.linspace([0, 0, 0], [1, 0, 0], 50), np.linspace([1, 0, 0], [1.7, 0.7, 0], 50)])
    assert bends(turn, 0.02, angle=np.radians(30))
    assert not bends(turn, 0.02, angle=np.radians(60))


def steered(*targets, frames=25, gain=0.15):
    """Commands [T, 3] of who steers at one target after the other, each for `frames`."""
    position, commands = np.zeros(3), []
    for target in targets:
        for _ in range(frames):
            commands.append(np.clip(gain * (np.asarray(target) - position), -1, 1))
            position = position + commands[-1]
    return np.array(commands)


def test_commands_jump_where_the_target_changes_and_nowhere_else():
    commands = steered((8, 0, 0), (8, 6, 0), (8, 9, 3))
    assert command_jumps(commands, 0.3) == [25, 50]
    noise = np.random.default_rng(0).normal(0, 0.02, commands.shape)
    assert command_jumps(commands + noise, 0.3) == [25, 50]
    assert command_jumps(1000 * commands, 0.3) == [25, 50], "whatever the unit"
    glitch = commands.copy()
    glitch[40] += 1
    assert command_jumps(glitch, 0.3) == [25, 50]
    restless = np.random.default_rng(0).normal(0, 1, (200, 3))
    assert not command_jumps(restless, 0.3)
    assert not command_jumps(np.zeros((30, 3)), 0.3)
    assert not command_jumps(commands[:1], 0.3)


@pytest.mark.parametrize("reference", ["delta", "absolute"])
def test_a_jump_of_the_commands_is_a_cut_though_the_path_hardly_bends(reference):
    commands = steered((8, 0, 0), (13, 3, 0))
    state, action = np.ones((50, 4), np.float32), -np.ones((50, 4), np.float32)
    place = np.concatenate([np.zeros((1, 3)), np.cumsum(commands, axis=0)]) * 0.01
    state[:, :3] = place[:-1]
    action[:, :3] = commands if reference == "delta" else place[1:]
    robot = Robot(replace(EMBODIMENT, action=replace(EMBODIMENT.action, reference=reference)), SAWYER.frame)
    assert [clip.start for clip in label(state, action, robot)] == [0, 25]
    unaware = label(state, action, robot, ProposeConfig(min_clip_frames=8, command_jump=100.0))
    assert 25 not in {edge for clip in unaware for edge in (clip.start, clip.end)}


def test_snapped_segments_never_overlap():
    draws = np.random.default_rng(3)
    for _ in range(500):
        edges = np.cumsum(draws.integers(1, 9, draws.integers(1, 12)))
        segments = [ArmSegment(int(one), int(two)) for one, two in pairwise([0, *edges])]
        for stride in (1, 2, 5, 10):
            snapped = _snap(segments, stride, 5)
            assert all(one.end <= two.start for one, two in pairwise(snapped))
            assert all(item.start % stride == 0 for item in snapped)


def test_snapped_clips_stay_long_enough():
    state, action = episode((0.2 * FORWARD, 22, 1.0, -1.0), (0 * UP, 8, 0.45, 1.0), (0.2 * UP, 30, 0.45, 1.0))
    clips = label(state, action, stride=3)
    assert [clip.primitive for clip in clips] == ["move", "grasp", "lift"]
    assert all(clip.start % 3 == 0 for clip in clips)


@pytest.mark.parametrize(
    ("axis", "primitive"), [(FORWARD, "push"), (LEFT, "push"), (-FORWARD, "pull"), (-UP, "press"), (UP, "push")]
)
def test_contact_is_claimed_where_the_state_knows_of_it(axis, primitive):
    state, action = episode((0.2 * FORWARD, 30, 1.0, -1.0), (0.2 * axis, 30, 1.0, -1.0))
    spec = replace(EMBODIMENT.state, names=(*EMBODIMENT.state.names, "contact"))
    touched = np.concatenate([state, (np.arange(60) >= 30)[:, None]], axis=1).astype(np.float32)
    clips = label(touched, action, Robot(replace(EMBODIMENT, state=spec), SAWYER.frame))
    assert [clip.primitive for clip in clips] == ["move", primitive]
    assert clips[1].start == 30
    assert not lint(clips[1].instruction) + contradictions(clips[1].instruction, np.array(clips[1].displacement))
    assert {clip.primitive for clip in label(state, action)} == {"move"}


ARM6 = Embodiment(
    "arm6",
    15.0,
    VectorSpec(("x", "y", "z", "rx", "ry", "rz", "gripper"), "absolute", rotation="euler_xyz"),
    VectorSpec(("x", "y", "z", "rx", "ry", "rz", "gripper"), "delta", rotation="euler_xyz"),
)


@pytest.mark.parametrize(
    ("turn", "primitive", "word"),
    [
        ((0, 0, 1.2), "rotate_free", "counter-clockwise"),
        ((0, 0, -1.2), "rotate_free", "clockwise"),
        ((1.2, 0, 0), "reorient_free", ""),
    ],
)
def test_rotations_of_an_empty_gripper(turn, primitive, word):
    robot = Robot(ARM6, RobotFrame("+x", "+y", "+z", 0.0, 0.05, 0.8))
    state = np.zeros((40, 7), np.float32)
    state[:, 6] = 1.0
    state[:, 3:6] = Rotation.from_rotvec(np.linspace(0, 1, 40)[:, None] * np.array(turn)).as_euler("xyz")
    clips = label(state, np.ones((40, 7), np.float32), robot)
    assert {clip.primitive for clip in clips} == {primitive}
    assert all(word in clip.instruction.split() for clip in clips if word)


def test_a_turn_after_a_motion_is_a_clip_of_its_own():
    robot = Robot(ARM6, RobotFrame("+x", "+y", "+z", 0.0, 0.05, 0.8))
    state = np.zeros((80, 7), np.float32)
    state[:, 6] = 1.0
    state[:, 0] = np.r_[np.linspace(0, 0.3, 40), np.full(40, 0.3)]
    turn = np.r_[np.zeros(40), np.linspace(0, 1.5, 40)] + 2.5  # across the wrap at pi
    state[:, 3:6] = Rotation.from_rotvec(turn[:, None] * np.array([0, 0, 1])).as_euler("xyz")
    clips = label(state, np.zeros((80, 7), np.float32), robot)
    assert [clip.primitive for clip in clips] == ["move", "rotate_free"]
    assert abs(clips[1].start - 40) <= 2


@pytest.mark.parametrize("lag", [0, 3, 5])
def test_turns_follow_the_commands_when_the_arm_lags(lag):
    """Where a turn begins, a late arm still ends the one before: its words must be those of what is commanded."""
    robot = Robot(ARM6, RobotFrame("+x", "+y", "+z", 0.0, 0.05, 0.8))
    turns = (-0.8, 0.8, -0.8)
    pose, angle = np.zeros((60, 3)), np.zeros(60)
    pose[:30, 0] = np.linspace(0, 0.3, 30)
    pose[30:, 0] = 0.3
    angle[30:] = np.interp(np.arange(30), [0, 10, 20, 30], np.cumsum((0, *turns)))
    state, action = np.zeros((60, 7), np.float32), np.zeros((60, 7), np.float32)
    action[:-1, :3] = 100 * np.diff(pose, axis=0)
    late = np.maximum(np.arange(60) - lag, 0)
    state[:, :3], state[:, 5], state[:, 6] = pose[late], angle[late], 1.0
    action[:, 6] = 1.0
    move, *rotations = label(state, action, robot)
    assert move.primitive == "move" and abs(move.end - 30) <= 1
    assert [clip.primitive for clip in rotations] == ["rotate_free"] * 3
    assert np.abs(np.array([clip.start for clip in rotations]) - [30, 40, 50]).max() <= 1
    for clip, turn in zip(rotations, turns, strict=True):
        assert ("counter-clockwise" if turn > 0 else "clockwise") in clip.instruction.split()


EXPECTED = {
    "pick-place-v3": ({"move", "grasp"}, {"transport", "lift"}),
    "assembly-v3": ({"move", "grasp", "lift", "transport", "lower"}, set()),
    "sweep-v3": ({"move", "grasp", "transport", "place"}, set()),
    "button-press-topdown-v3": ({"move"}, set()),
    "window-close-v3": ({"move"}, set()),
    "drawer-open-v3": ({"move"}, set()),
}
"""Task -> (primitives that must occur, of which at least one must occur); nothing outside both and `lower` may."""

LAST_WORD = {"button-press-topdown-v3": "down", "window-close-v3": "left", "drawer-open-v3": "backward"}


@pytest.mark.sim
@pytest.mark.parametrize("task", EXPECTED)
def test_real_experts_get_the_labels_their_motion_earns(task):
    with closing(MetaWorldEnv((), 64, 400, False)) as env:
        observation = env.reset(task, 1000)
        state, states, actions, after = observation.state, [], [], 0
        while after < 5 and len(states) < 300:
            action = env.expert_action()
            states.append(state)
            actions.append(action)
            result = env.step(action)
            state, after = result.state, after + int(result.success or after > 0)
    state, action = np.stack(states), np.stack(actions)
    clips = label(state, action, stride=2)
    must, some = EXPECTED[task]
    found = {clip.primitive for clip in clips}
    assert must <= found <= must | some | {"lower", "lift"}
    assert not some or some & found
    assert sum(clip.end - clip.start for clip in clips) > 0.9 * len(state)
    for clip in clips:
        assert not lint(clip.instruction) + contradictions(clip.instruction, np.array(clip.displacement))
    if task in LAST_WORD:
        assert LAST_WORD[task] in direction_words(clips[-1].instruction)


def test_it_is_fast_enough_for_droid():
    """A tenth of DROID is 9,560 episodes of 288 frames, to be cut in two minutes on two cores: 25 ms an episode."""
    state, action = episode(*PICK, *PICK[:5])
    assert len(state) > 280
    label(state, action)
    begin = time.process_time()
    for _ in range(10):
        label(state, action)
    assert (time.process_time() - begin) / 10 < 0.025 * 4, "even on a core a quarter as fast"
