"""Why: texts are trained on displacements that were merged and played as commands that were cut. The rule of merging is
the paper's only where its own example comes out; and a robot whose units, axes or gripper are misread is told in fluent
text to go the wrong way."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from la4vla.action_text.action_text import ActionText
from la4vla.action_text.config import ActionTextConfig, MergeConfig, PlayConfig
from la4vla.action_text.merge import merge
from la4vla.action_text.motion import Motion
from la4vla.sim import libero, metaworld
from la4vla.types import Embodiment, UserError, VectorSpec

SAWYER = {"forward": "+y", "left": "-x", "up": "+z"}  # metaworld_sawyer.yaml

PEPPER = [  # the paper's appendix B.2, `Grasp the Yellow Pepper`
    [0.000, 0.000, 0.000, 1.0],
    [-0.002, 0.000, -0.007, 1.0],
    [0.000, -0.004, -0.016, 1.0],
    [0.002, -0.002, -0.014, 1.0],
    [0.003, 0.000, -0.008, 1.0],
    [0.002, 0.000, -0.011, 1.0],
    [0.000, 0.000, -0.005, 1.0],
    [0.000, 0.000, -0.007, 1.0],
    [0.000, 0.000, -0.006, 1.0],
    [0.001, -0.003, -0.003, 0.0],
]
MERGED = (
    "[[-0.002, -0.004, -0.023, 1.0], [0.007, -0.002, -0.045, 1.0], [0.0, 0.0, -0.006, 1.0], "
    "[0.001, -0.003, -0.003, 0.0]]"
)

WIDOWX = Embodiment(
    "widowx",
    5.0,
    VectorSpec(("x", "y", "z", "gripper"), "absolute", metres_per_unit=1.0),
    VectorSpec(("x", "y", "z", "gripper"), "delta", metres_per_unit=1.0),
)


def test_the_papers_example_comes_out():
    written = ActionText.open(ActionTextConfig(), WIDOWX).write(np.zeros((10, 4)), np.array(PEPPER))
    assert written.text == MERGED and not written.dropped
    stopping = ActionTextConfig(merge=MergeConfig(stop_at=0.025))
    assert ActionText.open(stopping, WIDOWX).write(np.zeros((10, 4)), np.array(PEPPER)).text != MERGED


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-0.04, 0.04)] * 3, st.sampled_from([0.0, 1.0])), min_size=1, max_size=40))
def test_merging_loses_nothing_and_keeps_its_rule(steps):
    steps = Motion.of([step[:3] for step in steps], [step[3] for step in steps])
    rows = merge(steps, MergeConfig())
    np.testing.assert_allclose(rows.move_R3.sum(0), steps.move_R3.sum(0), atol=1e-9)
    assert np.abs(rows.move_R3).max() <= 0.05 + 1e-6
    changes = [steps.open_R[0], *steps.open_R[1:][np.diff(steps.open_R) != 0]]
    assert [rows.open_R[0], *rows.open_R[1:][np.diff(rows.open_R) != 0]] == changes


def test_directions_are_the_robots_own():
    """MetaWorld's robot faces +y, and +x is to its right."""
    action = ActionText.open(ActionTextConfig(codec="sentence", **SAWYER), metaworld.EMBODIMENT)
    commands = np.array([[1.0, 0, 0, -1]] * 2 + [[0, 1.0, 0, -1]] * 3 + [[0, 0, -1.0, 1]] * 4, np.float32)
    written = action.write(np.zeros((9, 4)), commands)
    assert written.text == "move forward 3 cm, move right 2 cm, open gripper; move down 4 cm, close gripper"
    raw = action.play(action.read(written.text).motion, np.array([0, 0.6, 0.2, 1.0], np.float32), None)
    # whole steps of 1 cm, the gripper last and with steps of its own
    np.testing.assert_allclose(raw.sum(0)[:3], [2, 3, -4], atol=1e-5)
    assert (raw[:7, 3] == -1).all() and (raw[7:, 3] == 1).all() and len(raw) == 7 + 10
    assert not raw[7:, :3].any() and raw.dtype == np.float32


def test_reached_motion_is_that_of_the_states():
    config = ActionTextConfig(motion="reached", **SAWYER)
    action = ActionText.open(config, metaworld.EMBODIMENT)
    states = np.zeros((4, 4), np.float32)
    states[:, 1] = [0.5, 0.51, 0.515, 0.55]
    commands = np.tile(np.array([0, 1.0, 0, 1.0], np.float32), (3, 1))
    assert action.write(states, commands).text == "[[0.05, 0.0, 0.0, 0.0]]"
    assert action.write(states[:3], commands).text == "[[0.015, 0.0, 0.0, 0.0]]"  # nothing is known of the last step
    commanded = ActionText.open(replace(config, motion="commanded"), metaworld.EMBODIMENT)
    assert commanded.write(states, commands).text == "[[0.03, 0.0, 0.0, 0.0]]"


def test_turns_of_libero_go_there_and_back():
    action = ActionText.open(ActionTextConfig(codec="sentence"), libero.EMBODIMENT)
    motion = Motion.of([[0.05, 0, 0]], [1.0], [np.radians([20.0, 0.0, -30.0])])
    raw = action.play(motion, np.array([0, 0, 0, 3, 0, 0, 1], np.float32), None)
    assert len(raw) == 2 and np.abs(raw).max() <= 1.0  # 30 degrees are more than the 0.5 rad of one command
    assert (raw[:, 6] == -1).all()
    written = action.write(np.zeros((2, 7)), raw)
    assert written.text == "move forward 5 cm, tilt right 20 degrees, turn right 30 degrees, open gripper"


def test_a_robot_of_absolute_poses_is_led_from_where_it_is():
    spec = VectorSpec(
        ("x", "y", "z", "rx", "ry", "rz", "gripper"),
        "absolute",
        rotation="axis_angle",
        metres_per_unit=1.0,
        radians_per_unit=1.0,
    )
    robot = Embodiment("arm", 15.0, spec, spec)
    config = ActionTextConfig(codec="sentence", play=PlayConfig(step_m=0.02, step_rad=0.2))
    action = ActionText.open(config, robot)
    state = np.array([0.4, 0.1, 0.3, 3.0, 0, 0, 1.0], np.float32)
    raw = action.play(Motion.of([[0.04, 0, -0.03]], [1.0], [[0, 0, np.radians(30)]]), state, None)
    assert len(raw) == 3
    np.testing.assert_allclose(raw[-1, :3], [0.44, 0.1, 0.27], atol=1e-6)
    turned = Rotation.from_rotvec(raw[-1, 3:6]) * Rotation.from_rotvec(state[3:6]).inv()
    np.testing.assert_allclose(turned.as_rotvec(), [0, 0, np.radians(30)], atol=1e-5)
    said = action.write(np.stack([state] * 3), raw).text
    assert said == "move forward 4 cm, move down 3 cm, turn left 30 degrees, open gripper"
    with pytest.raises(UserError, match=r"arm's commands are metres.*set play.step_m"):
        ActionText.open(ActionTextConfig(), robot).play(action.read(said).motion, state, None)


def test_a_gripper_that_was_told_to_hold_stays_and_what_is_not_said_is_counted():
    action = ActionText.open(ActionTextConfig(), libero.EMBODIMENT)
    commands = np.zeros((3, 7), np.float32)
    commands[:, 6] = [1.0, 0.0, 0.6]  # closes, holds, closes with half the force
    commands[1, 4] = 0.2
    written = action.write(np.zeros((3, 7)), commands)
    assert written.text == "[[0.0, 0.0, 0.0, 0.0]]"
    assert written.dropped == {"gripper between open and closed": 2, "rotation": 1}


def test_the_last_order_to_the_gripper_counts_more_than_its_opening():
    """Fingers around a thing are measured half open; opening them on the way would drop it."""
    action = ActionText.open(ActionTextConfig(**SAWYER), metaworld.EMBODIMENT)
    lift, half_open = Motion.of([[0, 0, 0.02]], [0.0]), np.array([0, 0.6, 0.1, 0.7], np.float32)
    assert (action.play(lift, half_open, 0.0)[:, 3] == 1).all()
    assert action.play(lift, half_open, None)[0, 3] == -1
    first = replace(action.config, play=PlayConfig(gripper_order="first"))
    raw = ActionText.open(first, metaworld.EMBODIMENT).play(lift, half_open, None)
    assert (raw[:, 3] == 1).all() and not raw[:10, :3].any() and raw[10:, 2].any()


def test_a_robot_in_a_plane_without_a_gripper_speaks_too():
    table = Embodiment(
        "language_table",
        10.0,
        VectorSpec(("x", "y"), "absolute", metres_per_unit=1.0),
        VectorSpec(("x", "y"), "delta", metres_per_unit=1.0),
    )
    commands = np.array([[0.02, 0.0], [0.02, -0.01]])
    for name, text in (("decimals", "[[0.04, -0.01, 0.0]]"), ("sentence", "move forward 4 cm, move right 1 cm")):
        action = ActionText.open(ActionTextConfig(codec=name, play=PlayConfig(step_m=0.02)), table)
        assert action.write(np.zeros((2, 2)), commands).text == text
        raw = action.play(action.read(text).motion, np.zeros(2, np.float32), None)
        np.testing.assert_allclose(raw.sum(0), [0.04, -0.01], atol=1e-7)


@pytest.mark.parametrize(
    ("robot", "cure"),
    [
        (replace(WIDOWX, action=replace(WIDOWX.action, metres_per_unit=None)), "set metres_per_unit"),
        (replace(WIDOWX, action=replace(WIDOWX.action, frame="tool")), "commands are in the base frame"),
        (replace(WIDOWX, action=VectorSpec(("j1", "j2"), "delta")), "use a robot with a hand position"),
        (replace(libero.EMBODIMENT, action=replace(libero.EMBODIMENT.action, radians_per_unit=None)), "radians_per"),
    ],
)
def test_a_robot_that_cannot_be_spoken_of_is_refused_with_the_cure(robot, cure):
    with pytest.raises(UserError, match=cure):
        ActionText.open(ActionTextConfig(), robot)
