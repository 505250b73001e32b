"""Why: models wrap their JSON in whatever they like, and one odd segment must cost that segment, not the episode; a
segment whose words and frames do not belong together would teach a wrong motion."""

import json
from dataclasses import replace

import pytest

from la4vla.chat.json_answer import last_list
from la4vla.config import ConstructConfig, ReadConfig
from la4vla.construct.propose.judge import judge
from la4vla.construct.propose.parse_answer import read_answer
from la4vla.types import VectorSpec
from tests.construct.recorded import FRAMES, STRIDE, episode

EPISODE = episode(1000)  # 80 Hz: forward until frame 25, down until 50, left until 83
MOVES = [
    {"subaction": "move", "status": "EMPTY", "instruction": "move the gripper forward.", "start": 0.0, "end": 0.3},
    {"subaction": "move", "status": "EMPTY", "instruction": "move  down", "start": 0.3, "end": 0.6},
    {"subaction": "move", "status": "EMPTY", "instruction": "move left", "start": 0.6, "end": 1.04},
]
LIST = json.dumps(MOVES)


def read(items):
    return read_answer(items if isinstance(items, str) else json.dumps(items), EPISODE, 5, 3)


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        json.dumps({"segments": MOVES}),
        json.dumps({"result": {"segments": MOVES}}),
        json.dumps({"uncertain": [], "segments": MOVES}),
        json.dumps({"uncertain": [], "result": {"segments": MOVES}}),
        json.dumps([[], MOVES]),
        f"[] {LIST} []",
        f"```json\n{LIST}\n```",
        f"Here you are [as asked]:\n```\n{LIST}\n```\nThat is {{all}}.",
        f'<think>perhaps [{{"subaction": "lift"}}]?</think>{LIST}',
        f'so [{{"subaction": "lift"}}] it is</think>\n{LIST}',
        f'First I thought [{{"subaction": "lift"}}], but: {LIST}',
    ],
)
def test_json_is_found_in_whatever_is_around_it(text):
    proposals, problems = read(text)
    assert problems == []
    assert [(item.start, item.end, item.instruction) for item in proposals] == [
        (0, 24, "move the gripper forward"),
        (24, 48, "move down"),
        (48, FRAMES, "move left"),
    ]


@pytest.mark.parametrize(
    "text", ["", "I cannot see a robot.", LIST[:-1], LIST[:60], "[1, 2]", '{"start": 0}', "[" * 5000]
)
def test_no_complete_list_is_said_so_and_never_completed(text):
    assert last_list(text) is None
    proposals, problems = read(text)
    assert proposals == []
    assert "no complete JSON" in problems[0]


def test_an_empty_list_is_a_problem():
    for text in ("[]", '{"segments": []}', "[] and []", '{"segments": [], "doubts": [1]}'):
        assert read(text) == ([], ["the list is empty."])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subaction": "juggle"}, "juggle"),
        ({"subaction": None}, "segment 2 has no `subaction`"),
        ({"instruction": " "}, "segment 2 has no `instruction`"),
        ({"instruction": ["move"]}, "segment 2 has no `instruction`"),
        ({"status": "FULL"}, "FULL"),
        ({"status": ["EMPTY"]}, "EMPTY"),
        ({"start": "soon"}, "segment 2"),
        ({"start": None}, "segment 2"),
        ({"start": float("nan")}, "segment 2"),
        ({"start": True, "end": 2.0}, "segment 2"),
        ({"start": 0.6, "end": 0.3}, "segment 2"),
        ({"start": 7.0, "end": 8.0}, "outside"),
        ({"start": -2.0}, "outside"),
        ({"end": 1e308}, "segment 2"),
        ({"end": 10**400}, "segment 2"),
        ({"end": 1e5}, "outside"),
        ({"start": 0.3, "end": 0.33}, "fewer than 5"),
        ({"start": 0.1, "end": 0.6}, "overlaps"),
    ],
)
def test_one_bad_segment_costs_that_segment(change, words):
    proposals, problems = read([MOVES[0], {**MOVES[1], **change}, MOVES[2]])
    assert [item.instruction for item in proposals] == ["move the gripper forward", "move left"]
    assert len(problems) == 1
    assert words in problems[0]


def test_seconds_may_be_text_with_a_unit():
    assert read([{**MOVES[0], "start": "0.00s", "end": " 0.3 "}]) == read(MOVES[:1])


def test_starts_have_a_image_and_the_last_end_is_the_episodes():
    proposals, _ = read([{**MOVES[0], "start": 0.02, "end": 0.31}, {**MOVES[2], "start": 0.33, "end": 1.03}])
    assert [(item.start % STRIDE, item.end) for item in proposals] == [(0, 24), (0, FRAMES)]


def test_states_without_a_position_are_read_too():
    spec = VectorSpec(("j1", "j2", "j3", "gripper"), "absolute")
    jointed = replace(EPISODE, robot=replace(EPISODE.robot, embodiment=replace(EPISODE.embodiment, state=spec)))
    assert read_answer(LIST, jointed, 5, 3) == read(LIST)
    judged = judge(read(LIST)[0], jointed, ConstructConfig(out_dir="", read=ReadConfig(path="")))
    assert {item.score for item in judged} == {2.0}


@pytest.mark.parametrize(
    ("labels", "statuses", "primitives"),
    [
        (["move", "grasp", "lift"], ["EMPTY", "HOLDING", "HOLDING"], ["move", "grasp", "lift"]),
        (["grasp", "Rotate", "release"], ["HOLDING", "HOLDING", "EMPTY"], ["grasp", "wrist_rotate", "place"]),
        (["grasp", "reorient", "push"], ["HOLDING", "HOLDING", "HOLDING"], ["grasp", "reorient", "push"]),
        (["reorient", "rotate", "wait"], ["EMPTY", "EMPTY", "EMPTY"], ["reorient_free", "rotate_free", "wait"]),
    ],
)
def test_a_missing_status_follows_from_the_labels(labels, statuses, primitives):
    items = [{**move, "subaction": label} for move, label in zip(MOVES, labels, strict=True)]
    for item in items:
        del item["status"]
    proposals, problems = read(items)
    assert problems == []
    assert [item.status for item in proposals] == statuses
    assert [item.primitive for item in proposals] == primitives


def test_frames_follow_the_episodes_rate():
    slow = replace(EPISODE, fps=8.0)
    proposals, _ = read_answer(json.dumps([{**MOVES[0], "start": 3.0, "end": 6.0}]), slow, 5, 3)
    assert (proposals[0].start, proposals[0].end) == (24, 48)
