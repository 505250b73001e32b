"""Why: an instruction that names what only a camera can see, or a direction the arm did not take, teaches the wrong
thing and no loss shows it. The lint must catch such sentences and pass every sentence we can write."""

import itertools
import re

import numpy as np
import pytest

from la4vla.construct.robots.robot import robot_frame
from la4vla.construct.vocabulary import (
    ALIASES,
    DIRECTIONS,
    PHRASINGS,
    PRIMITIVES,
    canonical,
    contradictions,
    lint,
    phrase,
    way,
)
from la4vla.types import UserError

CENTIMETRE = 0.01


@pytest.mark.parametrize(
    ("label", "status", "means"),
    [
        ("rotate", "EMPTY", "rotate_free"),
        ("rotate", "HOLDING", "wrist_rotate"),
        ("reorient", "EMPTY", "reorient_free"),
        ("reorient", "HOLDING", "reorient"),
        ("release", "EMPTY", "place"),
        ("Place/Release ", "EMPTY", "place"),
        ("wait", "EMPTY", "wait"),
    ],
)
def test_aliases(label, status, means):
    assert canonical(label, status) == means
    assert set(ALIASES.values()) <= set(PRIMITIVES)


def test_an_unknown_label_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match="transport"):
        canonical("juggle", "EMPTY")


def test_every_sentence_we_can_write_is_clean():
    ways = [" and ".join(pair) for a, b in itertools.permutations(DIRECTIONS, 2) for pair in itertools.product(a, b)]
    ways += [f"slightly {word}" for end in DIRECTIONS for word in end]
    for name, options in PHRASINGS.items():
        for template, direction in itertools.product(options, ways):
            fields = {"way": direction, "grip": "closed ", "turn": "counter-clockwise", "acting": "closing"}
            sentence = template.format(**fields)
            assert not lint(sentence), (name, sentence)
            assert not re.search(r"  |\{|\s$", sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "transport the object left while keeping it upright",
        "transport the object horizontally to the left",
        "align with and grasp the object",
        "lift the object upward while holding it",
        "lower the object downward toward the target",
        "move upward to approach the target",
        "pull the grasped object backward toward the robot",
        "rotate the object 90 degrees counterclockwise about the vertical axis",
        "Adjust the held object's orientation, keeping it upright.",
    ],
)
def test_sentences_as_the_paper_and_its_prompt_have_them_are_clean(sentence):
    assert not lint(sentence)


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [
        ("pick up the mug", "mug"),
        ("move the red object left", "red"),
        ("push the wooden object forward", "wooden"),
        ("lift the object above the table", "table"),
        ("move left toward the drawer", "object or a place"),
        ("carry the held object to the caf\u00e9", "caf\u00e9"),
        ("move left to object 3 of the shelf", "shelf"),
        ("gripper moving left", "verb"),
        ("", "verb"),
        ("\u5411\u5de6\u79fb\u52d5", "outside"),
        ("the gripper", "verb"),
    ],
)
def test_what_only_a_camera_sees_is_caught(sentence, fault):
    assert any(fault in problem for problem in lint(sentence))


@pytest.mark.parametrize(
    ("sentence", "displacement", "clean"),
    [
        ("move forward and left", (0.1, 0.05, -0.01), True),
        ("move forward and left", (0.1, -0.05, 0.0), False),
        ("lift the object upward", (0.0, 0.0, 0.1), True),
        ("lift the object upward", (0.0, 0.0, -0.1), False),
        ("lower the held object", (0.0, 0.0, 0.1), False),
        ("close the gripper to grasp the object", (0.0, 0.0, 0.0), True),
        ("move backwards", (-0.1, 0.0, 0.0), True),
    ],
)
def test_directions_are_checked_against_the_motion(sentence, displacement, clean):
    assert (contradictions(sentence, np.array(displacement)) == []) == clean


@pytest.mark.parametrize(
    ("centimetres", "words"),
    [
        ((10, 0, 0), "forward"),
        ((-10, 4, 0), "backward"),
        ((-10, 6, 0), "backward and left"),
        ((3, -8, 5), "right and up"),
        ((0, 0, -2), "slightly down"),
    ],
)
def test_way_names_the_dominant_axes(centimetres, words):
    assert way(np.array(centimetres) * CENTIMETRE, second_axis=0.5, slight=0.04) == words


def test_the_sawyer_faces_plus_y():
    """World +x, +y, +z are the robot's right, forward and up."""
    world = np.eye(3)
    np.testing.assert_array_equal(robot_frame("metaworld_sawyer").from_base(world), [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    with pytest.raises(UserError, match="no robot file"):
        robot_frame("nobody's robot")


def test_wording_varies_with_the_draw_only():
    assert {phrase("move", draw, way="left", grip="") for draw in (0.0, 0.4, 0.99)} == {
        "move the gripper left",
        "move left with the gripper",
        "bring the gripper left",
    }
