"""Why: these numbers decide which scorer teaches. A spoiled pair that still is true, a synonym that counts as an error,
or an interval that takes clips of one episode for independent would crown the wrong one."""

import json

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.grounding.corrupt import CORRUPTIONS, corrupted
from benchmarks.grounding.deeds import ClipDeed, meaning, read_deeds
from benchmarks.grounding.estimates import among_first, area
from la4vla.data.shards.index import read_index
from la4vla.types import Deed, UserError
from tests.fixtures import ARM, POSE, write_shards


def deeds(*sentences: str) -> list[ClipDeed]:
    picture = np.zeros((4, 4, 3), np.uint8)
    return [
        ClipDeed(Deed(str(number), sentence, picture, np.full((2, 4), number, np.float32)), f"episode-{number}")
        for number, sentence in enumerate(sentences)
    ]


SAID = (
    "push the red star to the left of the blue cube",
    "slide the green moon to the top right corner",
    "lift the object up while holding it",
    "wait for the bell",
)


def changed(name: str) -> list[str | None]:
    return [None if one is None else one.sentence for one in corrupted(deeds(*SAID), name, ARM, 0)]


def test_one_word_of_a_sentence_is_spoiled_and_no_other():
    assert changed("reversed_word") == [
        "push the red star to the right of the blue cube",
        "slide the green moon to the bottom left corner",
        "lower the object down while holding it",
        None,
    ]
    colours, objects, verbs = (changed(name) for name in ("other_colour", "other_object", "other_primitive"))
    for found, at, allowed in (
        (colours, 2, {"green"}),
        (objects, 3, {"moon"}),
        (verbs, 0, {"slide", "lift", "wait"}),
    ):
        before, after = SAID[0].split(), found[0].split()
        assert [place for place in range(11) if before[place] != after[place]] == [at] and after[at] in allowed
    assert colours[2:] == [None, None] and objects[2:] == [None, None]
    assert all(one.split()[0] != said.split()[0] for one, said in zip(verbs, SAID, strict=True))


def test_a_spoiled_motion_is_not_the_own_one():
    whole = deeds(*SAID)
    for one, item in zip(corrupted(whole, "shuffled_actions", ARM, 0), whole, strict=True):
        assert (one.actions != item.deed.actions).any() and one.sentence == item.deed.sentence
    twice = corrupted(deeds("go left", "go leftward", "go up"), "shuffled_actions", ARM, 0)
    assert (twice[0].actions == 2).all() and (twice[1].actions == 2).all(), "the motion of a synonym is no wrong one"
    assert corrupted(deeds("go left", "go leftward"), "shuffled_actions", ARM, 0) == [None, None]
    commands = Deed("a", "go left", whole[0].deed.image, np.array([[1, 2, 3, 1], [4, 5, 6, 0]], np.float32))
    (negated,) = corrupted([ClipDeed(commands, "e")], "negated_actions", ARM, 0)
    assert negated.actions.tolist() == [[-1, -2, -3, 1], [-4, -5, -6, 0]]
    poses = Deed("a", "go left", commands.image, np.array([[1, 2, 3, 0, 0, 0, 1], [2, 2, 2, 0, 0, 0, 1]], np.float32))
    (mirrored,) = corrupted([ClipDeed(poses, "e")], "negated_actions", POSE, 0)
    assert mirrored.actions[:, :3].tolist() == [[1, 2, 3], [0, 2, 4]]


def test_synonyms_mean_the_same_and_others_do_not():
    same = ("move the gripper left", "Bring the open gripper leftward.", "move left with the gripper")
    assert len({meaning(sentence) for sentence in same}) == 1
    others = ("move right with the gripper", "push the gripper left", "move the red gripper left", "move the gripper")
    assert len({meaning(sentence) for sentence in (same[0], *others)}) == 5
    assert meaning("put the red cube by the blue one") != meaning("put the blue cube by the red one")


def test_an_area_is_the_share_of_pairs_that_are_in_order():
    true, spoiled = [0.9, 0.5, 0.4], [0.1, 0.5, 0.6]
    found = area(true, spoiled, ["a", "a", "b"])
    assert found.value == pytest.approx((3 + 0.5 + 1 + 1) / 9) and found.paired == pytest.approx(1.5 / 3)
    assert found.low <= found.value <= found.high and (found.deeds, found.episodes) == (3, 2)
    assert area([1.0], [0.0], ["a"]).low is None
    draw = np.random.default_rng(0)
    many = draw.normal(0.3, 1, 60).tolist(), draw.normal(0, 1, 60).tolist()
    alone, four = (area(*many, [str(number // size) for number in range(60)]) for size in (1, 4))
    copies = area(*(np.repeat(part[::4], 4).tolist() for part in many), [str(number // 4) for number in range(60)])
    assert 0 < alone.high - alone.low < copies.high - copies.low, "copies within an episode are no more evidence"
    assert four.value == alone.value


def test_ties_are_put_in_any_order():
    scores, right = np.array([3.0, 2.0, 2.0, 2.0, 1.0]), np.array([False, True, False, False, True])
    assert among_first(scores, right, 1) == 0
    assert among_first(scores, right, 2) == pytest.approx(1 / 3) and among_first(scores, right, 4) == 1
    assert among_first(np.zeros(5), right, 2) == pytest.approx(1 - 3 / 10)


def test_the_command_writes_numbers_a_table_and_a_picture(pairs, run, blind_run, tmp_path, capsys):
    """Of trained models: the seeing one knows colours, the blind one cannot, and rules know directions alone."""
    robot = tmp_path / "robot.yaml"
    robot.write_text("frame: {forward: +x, left: +y, up: +z, closed_on_nothing: 0, hold_margin: 0, open_from: 0.5}")
    given = [str(pairs / "held_out"), "--out", str(tmp_path / "out"), "--robot", str(robot), "--device", "cpu"]
    scorers = ["--scorer", str(run), "--scorer", f"blind=action_only:{blind_run}", "--scorer", "rules"]
    assert main(["grounding", *given, *scorers]) == 0
    numbers = json.loads((tmp_path / "out" / "grounding.json").read_text())
    assert list(numbers["scorers"]) == ["grounding", "blind", "rules"]
    assert (numbers["deeds"], numbers["episodes"], numbers["sentences"], numbers["horizon"]) == (24, 6, 24, 4)
    areas = {
        label: {name: found and found["value"] for name, found in one["corruptions"].items()}
        for label, one in numbers["scorers"].items()
    }
    assert areas["rules"]["reversed_word"] > 0.95 and areas["rules"]["other_colour"] == 0.5
    assert all(areas[label][name] > 0.85 for label in areas for name in ("reversed_word", "negated_actions"))
    assert areas["grounding"]["other_colour"] > areas["blind"]["other_colour"] + 0.15
    assert areas["grounding"]["other_object"] is None, "there is one object"
    found = numbers["scorers"]["grounding"]["retrieval"]["motion -> sentence"]
    assert found["R@5"]["value"] >= found["R@1"]["value"] > 3 * numbers["chance"]["motion -> sentence"]["R@1"]["value"]
    assert numbers["chance"]["motion -> sentence"]["R@1"]["value"] == pytest.approx(1 / 24)
    printed = capsys.readouterr().out
    assert "| rules |" in printed and (tmp_path / "out" / "grounding.md").read_text() in printed
    picture = (tmp_path / "out" / "grounding.svg").read_text()
    assert picture.startswith("<?xml") and set(CORRUPTIONS) <= numbers["scorers"]["rules"]["corruptions"].keys()


def test_what_does_not_fit_is_one_sentence(pairs, run, tmp_path):
    write_shards(tmp_path / "other", 4, 2, ["front", "wrist"])
    write_shards(tmp_path / "pose", 4, 2, ["front"], embodiment=POSE)
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--scorer", str(run)]
    for arguments, said in (
        ([str(pairs / "held_out"), *out, "--scorer", str(run)], "two scorers are called grounding"),
        ([str(pairs / "held_out"), *out, "--scorer", "rules"], "no robot file"),
        ([str(pairs / "held_out"), *out, "--view", "wrist"], "has no view `wrist`"),
        ([str(tmp_path / "other"), *out], r"has 2 views \(front, wrist\); give --view"),
        ([str(tmp_path / "pose"), *out], "judges motions of `test_arm`"),
    ):
        with pytest.raises(UserError, match=said):
            main(["grounding", *arguments])


def test_deeds_are_spread_over_the_folder(pairs):
    index = read_index(pairs / "clips")
    every, some = (read_deeds(index, "front", 3, most) for most in (0, 5))
    assert len(every) == 48 and len(some) == 5
    keys = [item.deed.key for item in every]
    assert [keys.index(item.deed.key) for item in some] == [0, 12, 24, 35, 47]
    assert all(item.deed.actions.shape == (3, 4) for item in some)
