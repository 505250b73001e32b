"""Why: a hand at work points down, half a turn from the base frame, which is just where rotation vectors and Euler
angles jump. A state whose three numbers change sign with a hair's tilt is two clouds to a policy (measured in LIBERO:
six times an episode)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from la4vla.data.rotation import on_side, rotation_vectors, wrapped
from la4vla.types import VectorSpec

DOWN = (math.pi, 0.0, 0.0)
ANGLES = st.floats(-1.2, 1.2)


def test_a_tilt_of_a_hair_is_a_hair_of_numbers():
    """By hand: 1e-3 beyond half a turn and before it."""
    vectors = np.array([[math.pi - 1e-3, 0, 0], [math.pi + 1e-3, 0, 0]])
    turns = Rotation.from_rotvec(vectors)
    np.testing.assert_allclose(rotation_vectors(turns, DOWN), vectors, atol=1e-9)
    np.testing.assert_allclose(rotation_vectors(turns)[:, 0], [math.pi - 1e-3, 1e-3 - math.pi], atol=1e-9)
    np.testing.assert_allclose(rotation_vectors(turns[1], DOWN), vectors[1], atol=1e-9)


@given(ANGLES, ANGLES, ANGLES)
def test_numbers_of_neighbours_are_neighbours_on_the_side_that_is_named(x, y, z):
    """Up to 1.2 rad about each axis from the pose, a hair more is not a jump; and the turn is the same."""
    pose = Rotation.from_rotvec(DOWN)
    turn = Rotation.from_euler("xyz", [x, y, z]) * pose
    other = Rotation.from_rotvec([1e-3, -1e-3, 1e-3]) * turn
    numbers, moved = rotation_vectors(turn, DOWN), rotation_vectors(other, DOWN)
    assert np.abs(numbers - moved).max() < 0.01
    assert (Rotation.from_rotvec(numbers) * turn.inv()).magnitude() < 1e-6


@given(ANGLES, ANGLES, ANGLES)
def test_beside_no_rotation_they_are_the_usual_ones(x, y, z):
    turn = Rotation.from_rotvec([x, y, z])
    np.testing.assert_allclose(rotation_vectors(turn), turn.as_rotvec(), atol=1e-9)


def test_no_turn_is_zeros():
    np.testing.assert_array_equal(rotation_vectors(Rotation.identity()), np.zeros(3))
    assert np.isfinite(rotation_vectors(Rotation.identity(), DOWN)).all()


@pytest.mark.parametrize(
    ("angle", "near", "expected"),
    [(math.pi - 0.1, 0.0, math.pi - 0.1), (math.pi + 0.1, 0.0, 0.1 - math.pi), (-3.0, math.pi, 2 * math.pi - 3.0)],
)
def test_angles_lie_around_what_they_are_near(angle, near, expected):
    assert wrapped(np.array(angle), near) == pytest.approx(expected)


@pytest.mark.parametrize("rotation", ["axis_angle", "euler_xyz"])
def test_a_state_from_another_side_is_brought_over_and_others_stay(rotation):
    """By hand: -3 rad about x are 2 pi - 3. A driver that counts to pi would otherwise show a policy nonsense."""
    spec = VectorSpec(("x", "rx", "ry", "rz"), "absolute", rotation=rotation, rotation_near=(3.1416, 0.0, 0.0))
    state = np.array([0.5, -3.0, 0.0, 0.0], np.float32)
    np.testing.assert_allclose(on_side(state, spec), [0.5, 2 * math.pi - 3, 0, 0], atol=1e-6)
    there = np.array([0.5, 3.1, 0.02, -0.01], np.float32)
    assert on_side(there, spec) is there
    lost = np.array([0.5, np.nan, 0.0, 0.0], np.float32)
    assert on_side(lost, spec) is lost
    assert on_side(state, VectorSpec(("x", "rx", "ry", "rz"), "delta", rotation=rotation)) is state
