"""Why: a sentence that does not say which arm moves, or says it of the wrong one, teaches both arms the wrong thing. So
real demonstrations of two arms (readers/aloha_sim) and a made one go through the whole construction, and every sentence
is held against what each arm does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.arm_words import arm_of, said_of, with_arm, with_both
from la4vla.construct.filter import fitting, purity
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose import judge, prompt
from la4vla.construct.propose.candidates import Candidate, Proposal
from la4vla.construct.propose.cutting import ArmCut, ArmSegment, cut_arm
from la4vla.construct.propose.keyframes import Keyframe, prompt_lines
from la4vla.construct.propose.parse_answer import read_answer
from la4vla.construct.propose.two_arms import _edges, _without_rests
from la4vla.construct.readers import open_dataset
from la4vla.construct.report import page
from la4vla.construct.review.session import signals
from la4vla.construct.robots.robot import robot_file
from la4vla.construct.texts.annotate import EpisodeMotion
from la4vla.construct.vocabulary import lint, named_direction
from la4vla.data.shards.writer import read_index
from la4vla.types import UserError
from tests.construct.datasets import config_of
from tests.construct.readers.test_kinematics import HANDOVER
from tests.construct.readers.test_robot_files import write_lerobot

TASK = "hand the cube over"


def constructed(config):
    lines = Path(config.out_dir, "candidates.jsonl").read_text().splitlines()
    return [Candidate.from_dict(item) for line in lines for item in json.loads(line)["candidates"]]


@pytest.fixture(scope="module")
def aloha(tmp_path_factory):
    """The config of gym-aloha's three demonstrations in LeRobot's layout, run to its shards and report."""
    with np.load(HANDOVER) as file:
        lengths, states, actions = file["frames"], file["states"], file["actions"]
    cut = [[values[number, :length] for number, length in enumerate(lengths)] for values in (states, actions)]
    root = tmp_path_factory.mktemp("aloha") / "set"
    config = config_of(write_lerobot(root, *cut, 50, TASK), "lerobot", "aloha", shards=1)
    config.keyframes.gripper_threshold = 0.75  # the cube keeps the fingers 0.6 open
    run(config, "shards")
    page.write(config, open_dataset(config))
    return config


def test_a_hand_over_is_told_arm_by_arm(aloha):
    rows = [json.loads(line) for line in Path(aloha.out_dir, "candidates.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        told = [(item["arm"], item["primitive"]) for item in row["candidates"]]
        wanted = [("right", "move"), ("right", "grasp"), ("right", "lift"), ("left", "move"), ("right", "place")]
        places = [told.index(item) for item in wanted]
        assert places == sorted(places), "the right arm fetches the cube, the left one comes, the right one lets go"
        last = row["candidates"][-1]
        assert (last["arm"], last["primitive"]) == ("both", "both_arms"), "and both leave at once"
        assert (
            last["instruction"].startswith("with the left arm, ")
            and ", and with the right arm, " in last["instruction"]
        )
        assert [part["arm"] for part in last["parts"]] == ["left", "right"]
        assert [part["status"] for part in last["parts"]] == ["HOLDING", "EMPTY"], "the cube has changed hands"
        assert all(arm_of(item["instruction"]) == item["arm"] for item in row["candidates"])
    good = [item for row in rows for item in row["candidates"] if item["score"] == 3]
    assert len(good) >= 0.8 * sum(len(row["candidates"]) for row in rows)


def test_shards_report_and_review_have_both_arms(aloha):
    index = read_index(Path(aloha.out_dir, "la"))
    assert index.clips > 20 and index.embodiment.state.names[:7] == robot_file("aloha").state.spec.names[:7]
    numbers = json.loads(Path(aloha.out_dir, page.NUMBERS).read_text())
    assert not {"undescribed", "state_gripper_range", "gripper_inverted"} & {note["kind"] for note in numbers["notes"]}
    assert "right arm up" in Path(aloha.out_dir, page.REPORT).read_text()
    dataset = open_dataset(aloha)
    titles = [plot["title"] for plot in signals(dataset.read(dataset.keys[0]), 0, 50, 0)]
    assert titles.count("left arm, position change (m)") == titles.count("right arm, position change (m)") == 1
    with pytest.raises(UserError, match="has two arms; describe one of them"):
        EpisodeMotion.of(dataset.read(dataset.keys[0]))


def test_the_filter_knows_which_arm_moved(aloha):
    aloha.filter.arms = ["left"]
    try:
        run(aloha, "filter")
        kept = [item for row in Ledger(Path(aloha.out_dir, steps.KEPT)) for item in row["kept"]]
    finally:
        aloha.filter.arms = []
    assert kept and all(arm_of(item["instruction"]) == "left" for item in kept)
    found = constructed(aloha)
    assert len(fitting(found, (), 0.0, ["both"])) == sum(item.arm == "both" for item in found) > 0
    pure = fitting(found, ["move"], 0.9)
    assert pure and all(purity(item) >= 0.9 for item in pure), "the arm's name is no direction"
    moved = {item.start: np.array(item.displacement) for item in pure}
    assert all(named_direction(item.instruction) @ moved[item.start] > 0 for item in pure)


BOTH = """
frame: {forward: +x, left: +y, up: +z, closed_on_nothing: 0.0, hold_margin: 0.05, open_from: 0.8}
control_hz: 10
state:
  names: [left_x, left_y, left_z, left_gripper, right_x, right_y, right_z, right_gripper, base_x]
  reference: absolute
action:
  names: [left_x, left_y, left_z, left_gripper, right_x, right_y, right_z, right_gripper, base_x]
  reference: absolute
arms: {left: {}, right: {}}
mobile_base: [base_x]
"""
FRAMES = 120
AT = [0, 30, 60, 90, FRAMES - 1]


def path(*corners):
    return np.stack([np.interp(np.arange(FRAMES), AT, axis) for axis in np.array(corners).T], axis=1)


LEFT = path([0.4, 0.2, 0.3], [0.4, 0.2, 0.5], [0.4, 0.2, 0.5], [0.4, 0.2, 0.3], [0.4, 0.2, 0.3])
RIGHT = path([0.3, -0.2, 0.4], [0.3, -0.2, 0.4], [0.5, -0.2, 0.4], [0.5, -0.2, 0.2], [0.5, -0.2, 0.2])


def made(tmp_path, text=BOTH, base=0.0, left=LEFT, right=RIGHT):
    """The left arm goes up, then the right one forward, then both down, then nothing; the base rolls last."""
    rolls = np.interp(np.arange(FRAMES), AT, [0, 0, base, base, base])[:, None]
    state = np.concatenate([left, np.ones((FRAMES, 1)), right, np.ones((FRAMES, 1)), rolls], axis=1)
    (tmp_path / "set").mkdir()
    action = np.concatenate([state[1:], state[-1:]])
    np.savez(tmp_path / "set/0.npz", state=state, action=action, instruction="tidy up")
    (tmp_path / "two.yaml").write_text(text)
    return config_of(tmp_path / "set", "npz", str(tmp_path / "two.yaml"), shards=1)


def told(config):
    run(config, "propose")
    return [(item.arm, item.primitive, named_direction(item.instruction).tolist()) for item in constructed(config)]


def test_one_arm_the_other_and_both_alike(tmp_path):
    config = made(tmp_path)
    up, forward, down = [0, 0, 1], [1, 0, 0], [0, 0, -1]
    assert told(config) == [("left", "move", up), ("right", "move", forward), ("both", "move", down)]
    found = constructed(config)
    assert found[2].instruction.startswith("with both arms, "), "the same of both is said once"
    assert np.allclose(found[2].displacement, [0, 0, -0.2], atol=0.02)
    assert [item.score for item in found] == [3, 3, 3]


def test_where_an_arm_rests_its_moments_of_rest_cut_nothing(tmp_path):
    """The right arm comes to rest early; the rest's middle is a keyframe of it, amid one motion of the left arm."""
    late, early = (np.clip((np.arange(FRAMES) - begin) / 40, 0, 1) for begin in (55, 0))
    smooth = [share**3 * (10 - 15 * share + 6 * share**2) for share in (late, early)]
    left, right = (np.array([0.4, 0.0, 0.3]) + share[:, None] * [0, 0, 0.2] for share in smooth)
    config = made(tmp_path, left=left, right=right)
    assert told(config) == [("right", "move", [0, 0, 1]), ("left", "move", [0, 0, 1])]
    (row,) = Ledger(Path(config.out_dir, steps.KEYFRAMES))
    frames = [frame for frame, _, arm in row["keyframes"] if arm == "right"]
    moving = constructed(config)[1]
    assert any(moving.start + 5 < frame < moving.end - 5 for frame in frames)
    dataset = open_dataset(config)
    _, view = dataset.read(dataset.keys[0]).arms
    rests = [Keyframe(frame, "static") for frame in (60, 80, 100)]
    cut = cut_arm(view.state, view.action, view.robot, rests, config.propose, 4)
    assert [item.end for item in cut.segments] == [60, 80, 100, 120]
    assert [item.end for item in _without_rests(cut, config.propose, 4)] == [36, 120], "its stop, at a multiple of 4"


def test_cuts_of_one_arm_give_way_to_a_grasp_of_the_other():
    def cut(*spans):
        return ArmCut(None, None, tuple(ArmSegment(*span) for span in spans))

    moves, grasps = cut((0, 36), (36, 60)), cut((0, 30), (30, 42, "grasp"), (42, 60))
    assert _edges([moves, grasps], 5) == [0, 30, 42, 60], "36 lies inside the grasp"
    assert _edges([cut((0, 28), (28, 60)), grasps], 5) == [0, 30, 42, 60], "28 lies too near it"
    assert _edges([cut((0, 20), (20, 58), (58, 60)), cut((0, 60))], 5) == [0, 20, 60], "the last would be too short"
    assert _edges([cut((0, 3), (3, 60)), cut((0, 60))], 5) == [0, 60], "and so would the first"


def test_arms_that_are_swapped_in_the_file_are_swapped_in_the_words(tmp_path):
    text = BOTH.replace("left_", "?_").replace("right_", "left_").replace("?_", "right_")
    assert [arm for arm, *_ in told(made(tmp_path, text))] == ["right", "left", "both"]


def test_an_arm_may_have_axes_of_its_own(tmp_path):
    own = "frame: {forward: -x, left: -y, up: +z, closed_on_nothing: 0, hold_margin: 0.1, open_from: 0.8}"
    config = made(tmp_path, BOTH.replace("right: {}", f"right: {{{own}}}"))
    assert told(config)[1] == ("right", "move", [-1, 0, 0]), "it faces the other way"


def test_a_mobile_base_is_left_out_by_name(tmp_path):
    config = made(tmp_path, base=0.5)
    run(config, "propose")
    found = constructed(config)
    assert [item.score for item in found] == [3, 0, 3]
    assert found[1].reasons[0] == "The mobile base's `state base_x` moves, and no instruction describes it."
    wrong = tmp_path / "two.yaml"
    wrong.write_text(BOTH.replace("mobile_base: [base_x]", "mobile_base: [wheels]"))
    with pytest.raises(UserError, match=r"mobile_base is \['wheels'\]; list names .* of base_x, left_"):
        run(config, "propose")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("arms: {left: {}, right: {}}", "arms: {left: {}}", "arms must hold left and right"),
        ("right: {}", "right: {joints: 6}", "arms.right is .*; it may hold kinematics and a frame"),
        ("right_x, right_y, right_z, right_gripper", "a, b, c, d", "no column begins with `right_`"),
        ("mobile_base", "kinematics: {model: a, site: b, joints: [c]}\nmobile_base", "kinematics stands beside arms"),
    ],
)
def test_what_is_wrong_with_the_arms_is_one_sentence(tmp_path, old, new, said):
    config = made(tmp_path, BOTH.replace(old, new))
    with pytest.raises(UserError, match=said):
        open_dataset(config)


def judged(config, sentence, primitive="move", status="EMPTY", span=(0, 30), **more):
    dataset = open_dataset(config)
    item = Proposal(*span, primitive, status, sentence, (0.0, 0.0, 0.0), **more)
    (found,) = judge.judge([item], dataset.read(dataset.keys[0]), config)
    return found.score, " ".join(found.reasons)


def test_a_sentence_must_name_every_arm_that_acts_and_no_other(tmp_path):
    config = made(tmp_path)
    assert judged(config, "with the left arm, move the gripper up") == (3, "")
    assert judged(config, "move the gripper up with the left arm") == (3, "")
    assert judged(config, "move the gripper up")[0] == 1
    score, why = judged(config, "with the right arm, move the gripper up")
    assert score == 0 and "The left arm acts as well (20.0 cm)" in why and "Of the right arm: `up`, but" in why
    assert judged(config, "with both arms, move the gripper up")[0] == 1
    score, why = judged(config, "with the left arm, move the gripper down", span=(60, 90))
    assert score == 0 and "The right arm acts as well" in why
    each = "with the left arm, move the gripper down, and with the right arm, bring the gripper {}"
    assert judged(config, each.format("down"), "both_arms", span=(60, 90)) == (3, "")
    score, why = judged(config, each.format("up"), "both_arms", span=(60, 90))
    assert score == 1 and "Of the right arm: `up`" in why and "left arm" not in why


def test_an_arms_name_is_no_direction_and_part_of_the_vocabulary():
    sentence = with_both("move the gripper up", "move the gripper forward")
    assert named_direction(with_arm("left", "move the gripper right")).tolist() == [0, -1, 0]
    assert not lint(sentence) and not lint(with_both("move up", "move up"))
    assert lint("with the third arm, move up")
    assert named_direction(sentence).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("sentence", "parts"),
    [
        ("move the gripper left", {}),
        ("with the left arm, move right", {"left": "with the left arm, move right"}),
        ("move right using its left arm", {"left": "move right using its left arm"}),
        ("With both arms, lift the object", dict.fromkeys(("left", "right"), "With both arms, lift the object")),
        (
            "with the left arm, move up, and with the right arm, hold",
            ("with the left arm, move up, and", "with the right arm, hold"),
        ),
        (
            "move up with the right arm and move down with the left arm",
            ("and move down with the left arm", "move up with the right arm"),
        ),
    ],
)
def test_what_a_sentence_says_of_each_arm(sentence, parts):
    wanted = parts if isinstance(parts, dict) else dict(zip(("left", "right"), parts, strict=True))
    assert said_of(sentence) == wanted


def test_a_vision_language_model_is_told_of_the_arms_and_its_answers_are_read(tmp_path):
    config = made(tmp_path)
    dataset = open_dataset(config)
    episode = dataset.read(dataset.keys[0])
    assert prompt_lines([Keyframe(10, "static", "left"), Keyframe(5, "static")], 10) == [
        "- 1.00s: static (left arm)",
        "- 0.50s: static",
    ]
    shown = replace(episode, views=("front",), frames=lambda view, numbers: dict.fromkeys(numbers, JPEG))
    asked = json.dumps(prompt.messages(shown, [], config.vlm))
    assert "The robot has two arms" in asked and "with both arms" in asked
    segment = {"subaction": "move", "status": "EMPTY", "start": 0, "end": 3}
    first = {**segment, "instruction": "with the left arm, move the gripper up"}
    second = {**segment, "start": 6, "end": 9}
    second["instruction"] = "with the left arm, move down, and with the right arm, move down slightly"
    proposals, problems = read_answer(json.dumps([first, second]), episode, 5, 0)
    assert not problems
    assert [(item.arm, item.primitive) for item in proposals] == [("left", "move"), ("both", "both_arms")]
    scores = [item.score for item in judge.judge(proposals, episode, config)]
    assert scores == [3, 3]


JPEG = simplejpeg.encode_jpeg(np.zeros((16, 24, 3), np.uint8))


def test_arms_are_for_robots_that_have_two(tmp_path):
    text = BOTH.replace("left_", "").replace(
        "arms: {left: {}, right: {}}", "same_arm: [right_x, right_y, right_z, right_gripper]"
    )
    config = made(tmp_path, text)
    config.filter.arms = ["left"]
    with pytest.raises(UserError, match="chooses among two arms, and this robot has one"):
        run(config, "filter")
