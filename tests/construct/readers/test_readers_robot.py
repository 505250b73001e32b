"""Why: a flipped gripper or an Euler angle that jumps at pi teaches the wrong thing without any loss showing it, and it
differs from dataset to dataset. So the meaning of raw numbers is said in one file a robot, and its conversion is tested
on the datasets' own conventions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from la4vla.construct.robots.robot import robot_file
from la4vla.construct.robots.units import VectorUnits, convert
from la4vla.sim import libero, metaworld
from la4vla.types import NUMERIC_UNITS, Embodiment, UserError


def test_droid_and_la_33k_open_at_zero_and_ours_opens_at_one():
    file = robot_file("droid_franka")
    rows = np.array([[0.5, 0, 0.3, 3.0, 0, 0, 0.0], [0.5, 0, 0.3, 3.0, 0, 0, 1.0], [0.5, 0, 0.3, 3.0, 0, 0, 0.25]])
    for block in (file.state, file.action):
        values, spec = convert(rows, block)
        np.testing.assert_allclose(values[:, spec.names.index("gripper")], [1.0, 0.0, 0.75])
        assert (spec.gripper_open, spec.gripper_closed) == (1.0, 0.0)


def test_euler_angles_stay_in_one_turn():
    units = robot_file("droid_franka").state
    angles = np.array([math.pi + 0.1, -math.pi, -3.0, math.pi, 7.0])
    rows = np.zeros((5, 7))
    rows[:, 3] = angles
    values, _ = convert(rows, units)
    at_work = [math.pi + 0.1, math.pi, 2 * math.pi - 3.0, math.pi, 7.0 - 2 * math.pi]
    np.testing.assert_allclose(values[:, 3], at_work, atol=1e-6)
    before, after = Rotation.from_euler("xyz", rows[:, 3:6]), Rotation.from_euler("xyz", values[:, 3:6])
    np.testing.assert_allclose((before.inv() * after).magnitude(), 0.0, atol=1e-6)


def test_axis_angles_beyond_half_a_turn_are_the_same_turn_the_short_way():
    """robosuite's own go up to a whole turn, the simulator's proprioception to half of one."""
    rows = np.array([[3.5, 0, 0], [0, 0, -math.pi / 2]])
    values, _ = convert(rows, VectorUnits(("rx", "ry", "rz"), "absolute", rotation="axis_angle"))
    np.testing.assert_allclose(values, [[3.5 - 2 * math.pi, 0, 0], [0, 0, -math.pi / 2]], atol=1e-6)


def test_two_fingers_of_libero_are_one_opening():
    file = robot_file("libero_panda")
    fingers = np.array([[0.04, -0.04], [0.0, 0.0], [0.03, -0.01]])
    state, spec = convert(np.concatenate([np.zeros((3, 6)), fingers], axis=1), file.state)
    assert spec.names == ("x", "y", "z", "rx", "ry", "rz", "gripper")
    np.testing.assert_allclose(state[:, 6], [1.0, 0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "embodiment"), [("metaworld_sawyer", metaworld.EMBODIMENT), ("libero_panda", libero.EMBODIMENT)]
)
def test_demonstrations_are_handed_on_as_the_simulator_has_them(name, embodiment):
    """Or what was trained on them could not be evaluated."""
    file = robot_file(name)
    assert file.robot.embodiment == embodiment
    commands = np.random.default_rng(0).uniform(-1, 1, (5, len(file.action.names)))
    np.testing.assert_allclose(convert(commands, file.action)[0], commands, rtol=1e-6)


@pytest.mark.parametrize("order", [("qx", "qy", "qz", "qw"), ("qw", "qx", "qy", "qz")])
def test_quaternions_become_axis_angles_in_either_order(order):
    rotation = Rotation.from_rotvec([[0.1, 0.2, -0.3], [0, 0, 2.5]])
    named = dict(zip(("qx", "qy", "qz", "qw"), rotation.as_quat().T, strict=True))
    rows = np.stack([np.full(2, 0.7), *(named[name] for name in order)], axis=1)
    values, spec = convert(rows, VectorUnits(("z", *order), "absolute", rotation="quaternion"))
    assert spec.names == ("z", "rx", "ry", "rz") and spec.rotation == "axis_angle"
    np.testing.assert_allclose(values[:, 1:], rotation.as_rotvec(), atol=1e-6)


def test_units_signs_and_columns_to_drop():
    units = VectorUnits(("-x", "_", "y", "rz", "rx", "ry"), "delta", "tool", "euler_xyz", 0.001, "deg")
    values, spec = convert(np.array([[1000.0, 9, 500, 90, 0, -180]]), units)
    again, _ = convert(values, replace(units, names=spec.names, length_unit=1.0, angle_unit=0.5))
    np.testing.assert_allclose(again[0, 2], math.pi / 4, rtol=1e-6)
    assert (spec.names, spec.frame, spec.unit) == (("x", "y", "rz", "rx", "ry"), "tool", "m")
    assert (spec.metres_per_unit, spec.radians_per_unit) == (1.0, 1.0)
    np.testing.assert_allclose(values[0], [-1.0, 0.5, math.pi / 2, 0.0, math.pi], rtol=1e-6)
    assert values.dtype == np.float32


def test_a_unit_of_its_own_has_a_number_only_where_the_file_gives_one():
    units = VectorUnits(("x", "rx", "ry", "rz"), "delta", rotation="axis_angle", unit="5 cm and 0.5 rad")
    assert (units.spec.metres_per_unit, units.spec.radians_per_unit) == (None, None)
    known = replace(units, metres_per_unit=0.05, radians_per_unit=0.5).spec
    assert (known.metres_per_unit, known.radians_per_unit) == (0.05, 0.5)


def test_unknown_numbers_are_no_difference_and_known_ones_are():
    known = metaworld.EMBODIMENT
    stored = known.to_dict()
    for block in ("state", "action"):  # as in a folder that was written before the numbers existed
        for name in NUMERIC_UNITS:
            del stored[block][name]
    unknown = Embodiment.from_dict(stored)
    assert unknown.action.metres_per_unit is None
    assert known.difference(unknown) is None and unknown.difference(known) is None
    doubled = replace(known, action=replace(known.action, metres_per_unit=0.02))
    assert known.difference(doubled) == ("action.metres_per_unit", 0.01, 0.02)


GOOD = """
frame: {forward: +x, left: +y, up: +z, closed_on_nothing: 0, hold_margin: 0.1, open_from: 0.8}
control_hz: 10
state: {names: [x, y, z, gripper], reference: absolute}
action: {names: [x, y, z, gripper], reference: delta}
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("reference: delta", "reference: relative"), "reference is absolute or delta"),
        (("reference: delta", "reference: delta, gripper: up"), "`gripper` is no setting"),
        (("reference: delta", "reference: delta, rotation: euler_xyz"), "goes with the names rx ry rz"),
        (("reference: delta", "reference: delta, gripper_open: 0"), "are both 0"),
        (("reference: delta", "reference: delta, angle_unit: turns"), "angle_unit is `turns`"),
        (
            ("reference: absolute", "reference: absolute, rotation_near: 3.1"),
            "rotation_near is 3.1; give rx, ry and rz",
        ),
        (("reference: absolute", "reference: absolute, rotation_near: [3.1, 0, 0]"), "goes with absolute rotations"),
        (("names: [x, y, z, gripper], reference: delta", "reference: delta"), "`names` is missing"),
        (("control_hz: 10", ""), "`control_hz` is missing"),
        (("left: +y", "left: -x"), "three different axes"),
        (("up: +z, ", ""), "`frame` must hold exactly"),
        (("control_hz: 10", "control_hz: 10 Hz"), "`control_hz` is 10 Hz; it must be a number"),
        (("reference: delta", "reference: delta, length_unit: mm"), "`length_unit` is mm"),
        (("reference: delta", "reference: delta, metres_per_unit: 0.01"), "`metres_per_unit` is .* goes with `unit`"),
        (("reference: delta", "reference: delta, gripper_open: open"), "`gripper_open` is open"),
        (("hold_margin: 0.1", "hold_margin: some"), "`hold_margin` is some"),
        (("{names: [x, y, z, gripper], reference: absolute}", ""), "state is None"),
        ((", reference: delta", ""), "`reference` is missing"),
        (("frame:", "{frame:"), "not YAML"),
        (
            (
                "names: [x, y, z, gripper], reference: abs",
                "names: [x, y, z, gripper, x, y, z, gripper], reference: abs",
            ),
            "state: `x` is named twice",
        ),
        (
            ("[x, y, z, gripper], reference: del", "[x, y, z, gripper, left, gripper], reference: del"),
            "action: `gripper` is named twice.*side by side",
        ),
        (("[x, y, z, gripper], reference: del", "[x, -x, y, z, gripper], reference: del"), "`x` is named twice"),
        (("control_hz: 10", "control_hz: 10\nsame_arm: [elbow]"), r"same_arm is \['elbow'\].*leave it out"),
    ],
)
def test_a_robot_file_with_a_mistake_is_refused_with_the_place(tmp_path, change, said):
    path = tmp_path / "arm.yaml"
    path.write_text(GOOD)
    assert robot_file(str(path)).robot.embodiment.name == "arm"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(UserError, match=said) as caught:
        robot_file(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_robot_names_those_there_are():
    with pytest.raises(UserError, match="droid_franka, language_table, libero_panda, metaworld_sawyer"):
        robot_file("xarm9")
