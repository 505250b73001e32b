"""Why: the paper's own dataset is cut already. Its clips must arrive whole, with the sentence people reviewed, and
none may vanish because its sentence is unusual."""

import json

import pytest

from la4vla.config import load
from la4vla.construct.__main__ import run
from la4vla.construct.propose.whole_episode import label
from la4vla.construct.vocabulary import PHRASINGS, VERB_LABELS, VERBS
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import read_index
from tests.construct.datasets import LENGTHS, config_of, write_lerobot_v2


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("lift the object upward while holding it", ("lift", "HOLDING")),
        ("Move the open gripper to the left.", ("move", "EMPTY")),
        ("move the held object left", ("transport", "HOLDING")),
        ("rotate the gripper clockwise", ("rotate_free", "EMPTY")),
        ("rotate the held object clockwise", ("wrist_rotate", "HOLDING")),
        ("reorient the gripper", ("reorient_free", "EMPTY")),
        ("close the gripper to grasp the object", ("grasp", "HOLDING")),
        ("open the gripper to release the held object", ("place", "EMPTY")),
        ("push forward", ("push", "EMPTY")),
        ("push the block while holding it", ("push", "HOLDING")),
        ("make a sandwich", ("", "EMPTY")),
    ],
)
def test_the_label_is_what_the_first_verb_means(sentence, expected):
    assert label(sentence) == expected


def test_our_own_sentences_get_their_own_labels():
    fields = {"way": "left", "grip": "open ", "turn": "clockwise", "acting": "closing"}
    other = {"move_acting": "move", "grasp_moving": "grasp", "place_moving": "place"}
    moving_first = (
        "move {way} and",
        "align with",
        "move {way} pushing",
        "move {way} pulling",
        "change the orientation",
    )
    for template, sentences in PHRASINGS.items():
        for sentence in sentences:
            if not sentence.startswith(moving_first):
                found = label(sentence.format(**fields))
                assert found[0] == other.get(template, template), sentence
    assert VERB_LABELS.keys() <= VERBS


def test_each_episode_becomes_one_clip_with_its_sentence(tmp_path):
    root = write_lerobot_v2(tmp_path / "set")
    spoken = ["move the gripper left", "make a sandwich"]
    (root / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": number, "task": text}) + "\n" for number, text in enumerate(spoken))
    )
    config = config_of(root, "lerobot", "droid_franka")
    config.proposer, config.filter.min_quality = "episode", 0.0
    run(config, "shards")
    for folder in ("la", "vla"):
        index = read_index(tmp_path / "out" / folder)
        views = tuple(index.views)
        found = sorted(
            (clip for number in range(len(index.shards)) for clip in read_shard(index, number, views)),
            key=lambda clip: clip.key,
        )
        assert [len(clip) for clip in found] == list(LENGTHS)
        assert [clip.instruction for clip in found] == [spoken[0], spoken[1], spoken[0]]
        assert [clip.primitive for clip in found] == ["move", "", "move"]


def test_the_recipe_for_la_33k_filters_nothing():
    config = load("configs/construct/la33k.yaml")
    assert (config.proposer, config.filter.min_quality, config.filter.by) == ("episode", 0.0, "automatic")
