"""Why: the detector is the paper's (FACTS 1.3.1) but for numbers it lost; these tables say what each step must do to a
signal whose keyframes are known, and that the cases that break such filters (one frame, short, constant, wrapped
angles) do not."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from la4vla.config import KeyframeConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.propose.keyframe_plot import draw
from la4vla.construct.propose.keyframes import (
    Keyframe,
    detect,
    gripper_events,
    motion,
    prompt_lines,
    runs,
    static_frames,
    threshold,
)
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.types import Embodiment, VectorSpec

CONFIG = KeyframeConfig()
ARM = VectorSpec(names=("x", "y", "z", "gripper"), reference="absolute")
EULER = VectorSpec(names=("x", "y", "z", "rx", "ry", "rz", "gripper"), reference="absolute", rotation="euler_xyz")
AXIS_ANGLE = VectorSpec(names=EULER.names, reference="absolute", rotation="axis_angle")


def arm(*columns):
    """State [T, 4] from x and, if given, gripper."""
    frames = len(columns[0])
    state = np.zeros((frames, 4))
    state[:, 0] = columns[0]
    state[:, 3] = columns[1] if len(columns) > 1 else 1.0
    return state


def go_pause_go(pause_at, pause, frames=100):
    """x moves 1 cm a frame, but for a pause."""
    speed = np.full(frames - 1, 0.01)
    speed[pause_at : pause_at + pause] = 0.0
    return np.concatenate([[0.0], np.cumsum(speed)])


@pytest.mark.parametrize(("pause_at", "pause"), [(30, 20), (50, 30), (20, 15)])
def test_a_pause_is_one_static_keyframe_at_its_middle(pause_at, pause):
    keyframes = detect(arm(go_pause_go(pause_at, pause)), ARM, CONFIG)
    assert [item.kind for item in keyframes] == ["static"]
    assert abs(keyframes[0].frame - (pause_at + pause / 2)) <= 2


def test_a_pause_shorter_than_the_window_is_none():
    assert not detect(arm(go_pause_go(40, 2)), ARM, CONFIG)


def test_two_pauses_are_two_and_in_order():
    x = np.concatenate([go_pause_go(30, 20), 1 + go_pause_go(40, 20)])
    frames = [item.frame for item in detect(arm(x), ARM, CONFIG)]
    assert len(frames) == 2
    assert frames == sorted(frames)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 12])
def test_short_episodes_pass(frames):
    state = arm(np.linspace(0, 0.1, frames), np.linspace(1, 0, frames))
    assert motion(state, ARM, CONFIG).shape == (frames - 1,)
    assert all(0 <= item.frame < frames for item in detect(state, ARM, CONFIG))


def test_an_episode_that_never_moves_has_no_keyframes():
    assert not detect(arm(np.full(50, 0.3)), ARM, CONFIG)


def test_constant_and_almost_constant_channels_do_not_count():
    """Per-dim scaling alone would blow micrometre noise up to full motion and hide the pause."""
    state = arm(go_pause_go(40, 20))
    state[:, 1] = 0.7
    state[:, 2] = 1e-6 * np.sin(np.arange(100) * 2.1)
    assert [item.kind for item in detect(state, ARM, CONFIG)] == ["static"]


@pytest.mark.parametrize("kind", ["euler", "axis_angle"])
def test_a_steady_turn_across_the_wrap_is_steady_motion(kind):
    """rz runs from 170 to 250 degrees, stored as -110: a wrap taken for motion would dwarf everything else."""
    angle = np.linspace(np.radians(170), np.radians(250), 80)
    state = np.zeros((80, 7))
    wrapped = Rotation.from_rotvec(angle[:, None] * np.array([0.0, 0.0, 1.0]))
    state[:, 3:6] = wrapped.as_euler("xyz") if kind == "euler" else wrapped.as_rotvec()
    assert np.abs(np.diff(state[:, 5])).max() > 6
    moved = motion(state, EULER if kind == "euler" else AXIS_ANGLE, CONFIG)
    assert moved.std() < 1e-6
    assert moved.mean() > 0.05


def test_rotation_weighs_less_than_translation():
    x, turn = np.zeros((60, 7)), np.zeros((60, 7))
    x[:, 0] = np.linspace(0, 0.5, 60)
    turn[:, 5] = np.linspace(0, 0.5, 60)
    assert motion(turn, EULER, CONFIG).mean() == pytest.approx(0.5 * motion(x, EULER, CONFIG).mean())


@pytest.mark.parametrize("open_value", [1.0, 0.0, -1.0, 0.08])
def test_gripper_events_follow_the_convention_of_the_robot(open_value):
    closed_value = 1.0 if open_value in (0.0, -1.0) else 0.0
    spec = VectorSpec(names=ARM.names, reference="absolute", gripper_open=open_value, gripper_closed=closed_value)
    open_T = np.ones(90)
    open_T[30:60] = 0.4
    state = arm(np.linspace(0, 1, 90), closed_value + (open_value - closed_value) * open_T)
    assert gripper_events(state, spec, CONFIG) == [Keyframe(30, "gripper_close"), Keyframe(60, "gripper_open")]


@pytest.mark.parametrize(
    ("gripper", "expected"),
    [
        (
            np.r_[np.ones(30), np.linspace(1, 0, 20), np.zeros(30)],
            [(40, "gripper_close")],
        ),  # slow: one event, its middle
        (np.r_[np.ones(30), np.zeros(2), np.ones(30)], []),  # a blip shorter than half a window
        (np.r_[np.ones(30), np.zeros(6), np.ones(30)], [(30, "gripper_close")]),  # the reopening is too close to it
        (np.r_[np.ones(40), np.full(40, 0.9)], []),  # drift of a tenth of the span
        (np.full(50, 0.2), []),
    ],
)
def test_gripper_table(gripper, expected):
    events = gripper_events(arm(np.zeros(len(gripper)), gripper), ARM, CONFIG)
    assert [event.kind for event in events] == [kind for _, kind in expected]
    for event, (frame, _) in zip(events, expected, strict=True):
        assert abs(event.frame - frame) <= 1


def test_a_robot_without_a_gripper_has_no_events():
    assert not gripper_events(np.zeros((20, 3)), VectorSpec(("x", "y", "z"), "absolute"), CONFIG)


def test_static_needs_a_share_of_its_window():
    low = np.tile([0.0, 1.0], 25)
    assert not static_frames(low, CONFIG)
    assert static_frames(np.r_[np.ones(20), np.zeros(9), np.ones(20)], CONFIG) == [24]


def test_the_threshold_is_a_share_of_the_mean_or_a_quantile():
    motion_T = np.r_[np.full(30, 0.1), np.full(70, 0.9)]
    assert threshold(motion_T, KeyframeConfig(threshold=0.5)) == pytest.approx(0.5 * 0.66)
    assert threshold(motion_T, KeyframeConfig(rule="quantile", quantile=0.5)) == pytest.approx(0.9)
    assert static_frames(motion_T, KeyframeConfig()) == [14]
    assert static_frames(motion_T, KeyframeConfig(rule="quantile", quantile=0.5)) == [14]
    assert static_frames(np.linspace(1, 2, 100), KeyframeConfig(rule="quantile", quantile=0.2)) == [9]
    assert not static_frames(np.linspace(1, 2, 100), KeyframeConfig())
    for rule in ("mean", "quantile"):
        assert not static_frames(np.zeros(0), KeyframeConfig(rule=rule))


@pytest.mark.parametrize("rule", ["mean", "quantile"])
@pytest.mark.parametrize("frames", [1, 2, 5, 60])
def test_an_episode_whose_every_channel_is_constant_has_no_keyframes(rule, frames):
    state = np.tile(np.array([0.3, -1.0, 0.2, 3.1, 0.0, -3.1, 0.5]), (frames, 1))
    for spec in (EULER, AXIS_ANGLE):
        assert not detect(state, spec, KeyframeConfig(rule=rule))


def test_a_contact_flag_is_no_motion():
    spec = VectorSpec(names=(*ARM.names, "contact"), reference="absolute")
    state = arm(go_pause_go(40, 20))
    flickers = np.concatenate([state, (np.arange(100) % 2)[:, None]], axis=1)
    assert detect(flickers, spec, CONFIG) == detect(state, ARM, CONFIG) != []


@pytest.mark.parametrize("frames", [1, 2, 100])
def test_a_plot_is_drawn_of_any_length(tmp_path, frames):
    robot = Robot(Embodiment("metaworld_sawyer", 80.0, ARM, ARM), robot_frame("metaworld_sawyer"))
    state = arm(go_pause_go(40, 20), np.r_[np.ones(60), np.zeros(40)])[:frames]
    nothing = {"views": (), "frame_stride": 1, "frames": lambda view, numbers: {}}
    draw(Episode("made-up", "", 0, "", robot, 80.0, state, state, **nothing), CONFIG, tmp_path / "plots" / "one.png")
    assert (tmp_path / "plots" / "one.png").read_bytes()[1:4] == b"PNG"


def test_runs():
    assert runs(np.array([1, 1, 0, 0, 1, 0, 1], bool)) == [(0, 1), (4, 4), (6, 6)]
    assert runs(np.zeros(3, bool)) == []


def test_prompt_lines_are_the_papers():
    keyframes = [Keyframe(18, "static"), Keyframe(27, "gripper_close"), Keyframe(51, "gripper_open")]
    assert prompt_lines(keyframes, 15) == ["- 1.20s: static", "- 1.80s: gripper_close", "- 3.40s: gripper_open"]
