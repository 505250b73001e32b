"""Why: the paper tells of sentences like `push the yellow hexagon into your hand`, which no metric of overlap sees; a
count is worth something only where it misses none of them and blames no sentence of the data itself."""

import json

import pytest

from benchmarks.hierarchy.failures import FAILURES, failures, known_words, read_scenes
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Embodiment, UserError, VectorSpec

PLANE = VectorSpec(("x", "y"), "delta")
TABLE = Embodiment("table", 10.0, VectorSpec(("x", "y"), "absolute"), PLANE)
SENTENCES = [
    "put all the blocks in a horizontal line on the bottom of the board",
    "move the red and the blue blocks towards the top left",
    "slide the blue moon to the bottom side of the red pentagon",
    "push the yellow star into the green star",
    "put the yellow heart to the star",
]
SCENES = {"e": ["red pentagon", "blue moon", "yellow star"]}


@pytest.fixture(scope="module")
def known():
    return known_words(SENTENCES, TABLE)


@pytest.mark.parametrize(
    ("sentence", "failure", "words"),
    [
        ("move towards towards the red pentagon", "repeated", ["towards"]),
        ("push the star to the star to the board", "repeated", ["star to the", "the star to"]),
        ("push the red pentagon into your hand", "impossible", ["into your hand"]),
        ("pick up the blue moon", "impossible", ["pick", "pick up"]),
        ("put the yellow hexagon to the red moon", "absent", ["yellow hexagon", "red moon"]),
        ("move towards the triangle", "absent", ["triangle"]),
        ("move towards the blue moon swiftly", "unknown", ["swiftly"]),
    ],
)
def test_what_the_paper_tells_of_is_seen(known, sentence, failure, words):
    assert sorted(failures(sentence, known)[failure]) == sorted(words)


def test_the_datas_own_sentences_are_sound(known):
    assert all(failures(sentence, known) == {name: [] for name in FAILURES} for sentence in SENTENCES)


def test_a_scene_says_what_is_there():
    known = known_words(SENTENCES, TABLE, SCENES)

    def absent(sentence, episode="e"):
        return failures(sentence, known, episode)["absent"]

    assert absent("slide the blue moon to the red pentagon") == []
    assert absent("push the yellow star into the green star") == ["green star"]
    assert absent("move the red and the blue blocks") == [] and absent("move the green blocks") == ["green block"]
    assert absent("push the yellow star into the green star", "not listed") == []


def test_a_robot_with_hand_and_height_may_do_all():
    arm = known_words(["pick the object up"], EMBODIMENT)
    assert failures("grasp and lift the object", arm)["impossible"] == []
    assert failures("rotate the object", arm)["impossible"] == ["rotate"]  # its hand does not turn


def test_scenes_of_another_form_are_refused(tmp_path):
    file = tmp_path / "scenes.json"
    file.write_text(json.dumps(SCENES))
    assert read_scenes(file) == SCENES
    file.write_text("[1]")
    with pytest.raises(UserError, match="no scenes"):
        read_scenes(file)
