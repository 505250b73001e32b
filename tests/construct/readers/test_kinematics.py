"""Why: where a dataset holds joints only, every cut and every direction word hangs on a pose that we compute. So it is
compared with the poses that simulators told in recorded episodes, and what is wrong with a block is said at once."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from la4vla.construct.robots.kinematics import kinematics_of
from la4vla.construct.robots.robot import robot_file
from la4vla.types import UserError

RECORDED = Path(__file__).parent / "joints"
HANDOVER = Path(__file__).parent / "aloha_sim" / "handover.npz"
COLUMNS = [f"j{number}" for number in range(7)]
SIMULATED = {
    "metaworld": {
        "model": "metaworld:assets/sawyer_xyz/sawyer_pick_place_v3.xml",
        "site": "hand",
        "joints": {f"right_j{number}": f"j{number}" for number in range(7)},
    },
    "libero": {
        "model": "robosuite:models/assets/robots/panda/robot.xml",
        "site": "right_hand",
        "joints": {f"joint{number + 1}": f"j{number}" for number in range(7)},
        "model_angles": "rad",
        "offset": {"xyz": [0, 0, 0.097]},
    },
}
RESTS_M = 5e-4  # from one recorded frame to the next: 13 mm/s in MetaWorld, 3 in LIBERO
AT_REST_MM = {"metaworld": 0.001, "libero": 0.1}
MOVING_MM = {"metaworld": 0.001, "libero": 1.8}
"""Largest distances. LIBERO tells poses from before the end of a step; MetaWorld from its end, where the joints are."""


def block(values, **changes):
    return kinematics_of({**values, **changes}, "arm.yaml", Path(__file__).parent)


@pytest.mark.parametrize("name", SIMULATED)
def test_the_pose_is_the_simulators_own(name):
    package = SIMULATED[name]["model"].partition(":")[0]
    if find_spec(package) is None:
        pytest.skip(f"needs the arm of {package}")
    with np.load(RECORDED / f"{name}.npz") as file:
        joints, state, base = file["joints"], file["state"].astype(np.float64), file["base"]
    kinematics = block(SIMULATED[name], base={"xyz": base[:3].tolist()})
    kinematics.check(COLUMNS)
    column = dict(zip(COLUMNS, joints.T, strict=True))
    assert not kinematics.fault(column)
    position, turn = kinematics.poses(column)
    apart_mm = 1e3 * np.linalg.norm(position - state[:, :3], axis=1)
    way = np.linalg.norm(np.diff(state[:, :3], axis=0), axis=1)
    rests = np.concatenate([[False], way < RESTS_M])
    assert rests.sum() >= 5 and way.max() > 0.03, "it rests, and it moves fast"
    assert apart_mm[rests].max() < AT_REST_MM[name]
    assert apart_mm.max() < MOVING_MM[name]
    if state.shape[1] == 7:
        assert (turn * Rotation.from_rotvec(state[:, 3:6]).inv()).magnitude().max() < 2e-3


@pytest.mark.parametrize("arm", ["left", "right"])
def test_alohas_hands_are_where_its_simulator_has_them(arm):
    with np.load(HANDOVER) as file:
        frames, states, poses = int(file["frames"][0]), file["states"][0], file[arm][0]
    robot = robot_file("aloha").robot
    (kinematics,) = [item.kinematics for item in robot.arms if item.name == arm]
    column = {name: states[:frames:5, robot.embodiment.state.names.index(name)] for name in kinematics.columns}
    position, turn = kinematics.poses(column)
    w, x, y, z = poses[: len(position), 3:].T
    told = Rotation.from_quat(np.stack([x, y, z, w], axis=1))
    assert (turn * told.inv()).magnitude().max() < 1e-4
    fingers = poses[: len(position), :3] + told.apply([0.125, 0, 0])
    assert np.abs(position - fingers).max() < 1e-6


URDF = """<robot name="pole"><link name="ground"/><link name="pole"><visual><geometry>
<mesh filename="package://nowhere/pole.dae"/></geometry></visual></link><link name="tip"/>
<joint name="lean" type="revolute"><parent link="ground"/><child link="pole"/><origin xyz="0 0 1"/><axis xyz="0 1 0"/>
<limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
<joint name="end" type="fixed"><parent link="pole"/><child link="tip"/><origin xyz="0 0 0.5"/></joint></robot>"""


@pytest.fixture(scope="module")
def pole(tmp_path_factory):
    """A block for a pole on a meter's height that leans forward, from a URDF whose meshes are not there."""
    path = tmp_path_factory.mktemp("urdf") / "pole.urdf"
    path.write_text(URDF)
    return {"model": str(path), "site": "tip", "joints": {"lean": "angle"}}


def at(values, angle, **changes):
    position, turn = block(values, **changes).poses({"angle": np.array([angle])})
    return position[0].round(6).tolist(), turn.as_rotvec()[0].round(6).tolist()


def test_a_urdf_without_its_meshes_is_enough_and_its_fixed_links_stay(pole):
    assert at(pole, 0.0) == ([0, 0, 1.5], [0, 0, 0])
    assert at(pole, np.pi / 2) == ([0.5, 0, 1], [0, round(np.pi / 2, 6), 0])


def test_units_signs_zero_base_and_offset(pole):
    leaning = [0.5, 0, 1]
    assert at(pole, 90, unit="deg")[0] == leaning
    assert at(pole, -0.5, unit=-np.pi)[0] == leaning
    assert at(pole, 60, unit="deg", zero={"lean": 30})[0] == leaning
    assert at({**pole, "joints": {"lean": "-angle"}}, -90, unit="deg")[0] == leaning
    assert at({**pole, "joints": {"lean": "-angle"}}, -90, unit="deg", zero={"lean": -90})[0] == [0, 0, 1.5]
    low, middle = at(pole, -100, unit="range")[1][1], at(pole, 0, unit="range")[1][1]
    assert (low, middle) == (-1, 0), "the whole range of the joint"
    assert at(pole, 0, offset={"xyz": [0.1, 0, 0]})[0] == [0.1, 0, 1.5]
    assert at(pole, np.pi / 2, offset={"xyz": [0.1, 0, 0]})[0] == [0.5, 0, 0.9], "in the hand's own frame"
    turned = {"xyz": [0, 0, -1], "rpy": [0, 0, np.pi / 2]}
    assert at(pole, np.pi / 2, base=turned)[0] == [0, 0.5, 0], "first turned, then moved"
    assert at(pole, 0, base=turned, offset={"rpy": [0, 0, np.pi / 2]})[1] == [0, 0, round(np.pi, 6)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "nowhere.xml"}, "kinematics.model is .*nowhere.xml, which does not exist"),
        ({"model": "no_such_package:arm.xml"}, "there is no package no_such_package; install it"),
        ({"site": "thumb"}, "kinematics.site is `thumb`; .* has the sites and bodies ground, pole, tip"),
        ({"joints": {"elbow": "angle"}}, "kinematics.joints names `elbow`; .* has the joints lean"),
        ({"joints": {"lean": "knee"}}, "from the column `knee`, which the state lacks; it has angle, gripper"),
        ({"joints": []}, r"kinematics.joints is \[\]; write"),
        ({"unit": "turns"}, "kinematics.unit is turns; write rad, deg"),
        ({"zero": {"elbow": 1}}, "kinematics.zero names `elbow`"),
        ({"zero": {"lean": "half"}}, "`zero.lean` is half; it must be a number"),
        ({"base": [0, 0, 1]}, r"kinematics.base is \[0, 0, 1\]; write xyz in m and rpy in rad"),
        ({"offset": {"xyz": [0, 1]}}, r"kinematics.offset.xyz is \[0, 1\]; write three numbers"),
        ({"model_angles": "turns"}, "kinematics.model_angles is turns"),
        ({"links": 3}, "kinematics has no `links`; use some of base, joints, model"),
    ],
)
def test_what_is_wrong_with_a_block_is_one_sentence(pole, changes, said):
    with pytest.raises(UserError, match=said) as raised:
        block(pole, **changes).check(["angle", "gripper"])
    assert str(raised.value).startswith("arm.yaml") and "\n" not in str(raised.value)


def test_a_file_that_is_no_model_is_named(tmp_path, pole):
    (tmp_path / "arm.xml").write_text("<mujoco><worldbody>")
    with pytest.raises(UserError, match="is no MJCF or URDF that MuJoCo reads"):
        block(pole, model=str(tmp_path / "arm.xml")).check(["angle"])


def test_joints_beyond_their_range_are_a_fault_and_a_little_beyond_are_none(pole):
    kinematics = block(pole)
    assert not kinematics.fault({"angle": np.array([0, 1.05])})
    said = kinematics.fault({"angle": np.array([0, 1.05, 40])})
    assert "column angle puts joint lean at 40 in frame 2" in said and "from -1 to 1" in said and "unit: deg" in said
    assert not block(pole, unit="deg").fault({"angle": np.array([0, 40])})
    assert not block(pole, tolerance=50).fault({"angle": np.array([0, 40])})


def test_radians_that_are_called_degrees_are_doubted(pole):
    assert "stay within 0.9 degrees" in block(pole, unit="deg").doubt({"angle": np.array([0.1, 0.9])})
    assert not block(pole, unit="deg").doubt({"angle": np.array([0.1, 9])})
    assert not block(pole).doubt({"angle": np.array([0.1, 0.9])})


def test_a_change_of_the_model_is_noticed(tmp_path, pole):
    before = block(pole).fingerprint
    (tmp_path / "longer.urdf").write_text(URDF.replace("0 0 0.5", "0 0 0.6"))
    assert block(pole, model=str(tmp_path / "longer.urdf")).fingerprint != before
