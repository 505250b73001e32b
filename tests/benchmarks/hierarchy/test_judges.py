"""Why: a second judge is worth its time only where it catches what the first one passes, at the same price in good
clips. The comparison must spoil what it says it spoils and give no judge a threshold that loses more than the other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hierarchy import judges
from benchmarks.hierarchy.judges import BOTH, GROUNDING, RULES, JudgedClip, caught, spoil, turned_around
from la4vla.config import ConstructConfig, ReadConfig
from la4vla.construct.propose.candidates import Candidate
from la4vla.construct.second_judge import SecondJudge
from la4vla.construct.vocabulary import named_direction
from tests.construct.recorded import recorded

CONFIG = ConstructConfig(out_dir="out", read=ReadConfig(path=""))
ITEM = Candidate(40, 60, "transport", "HOLDING", "carry the held object left and up", (0.0, 0.1, 0.06), 3.0, ())


def test_what_is_spoiled():
    turned = spoil(ITEM, "words", 100, CONFIG)
    assert turned.instruction == "carry the held object right and down"
    assert np.array_equal(named_direction(turned.instruction), -named_direction(ITEM.instruction))
    assert turned_around("push the star to the top left of the cube") == "push the star to the bottom right of the cube"
    assert spoil(replace(ITEM, instruction="grasp the object"), "words", 100, CONFIG) is None
    later, earlier = spoil(ITEM, "span", 100, CONFIG), spoil(ITEM, "span", 65, CONFIG)
    assert ((later.start, later.end), (earlier.start, earlier.end)) == ((50, 70), (30, 50))
    empty = spoil(ITEM, "status", 100, CONFIG)
    assert (empty.primitive, empty.status, empty.instruction) == ("move", "EMPTY", "move the gripper left and up")
    assert spoil(replace(ITEM, primitive="push", status=""), "status", 100, CONFIG) is None


def test_every_judge_loses_at_most_five_of_a_hundred_good_ones():
    # The rules give 3 good clips a 1 and the rest a 3; the second judge spreads its scores evenly.
    good = [JudgedClip(1.0 if number < 3 else 3.0, number / 100) for number in range(100)]
    spoiled = {"words": [JudgedClip(3.0, 0.04), JudgedClip(1.0, 0.9), JudgedClip(3.0, 0.9), JudgedClip(3.0, -1.0)]}
    found = caught(good, spoiled)
    assert {name: one["lost"]["successes"] for name, one in found.items()} == {RULES: 3, GROUNDING: 5, BOTH: 5}
    assert {name: one["caught"]["words"]["successes"] for name, one in found.items()} == {
        RULES: 1,
        GROUNDING: 2,
        BOTH: 3,
    }
    assert found[RULES]["rules"] == 2.5 and found[GROUNDING]["grounding"] == 0.05


class ByWords:
    """Knows that motions to the left are never called right, and nothing else."""

    name = "by words"

    def scores(self, deeds):
        return np.array([0.0 if "right" in deed.sentence else 1.0 for deed in deeds], np.float32)


@pytest.fixture
def config(tmp_path):
    return recorded(tmp_path)


def test_real_candidates_are_spoiled_and_judged(config, tmp_path, monkeypatch):
    alone = judges.measure(config)
    assert list(alone["judges"]) == [RULES] and alone["good"] > 4
    assert alone["judges"][RULES]["caught"]["words"]["value"] == 1.0  # the motion contradicts them
    monkeypatch.setattr(SecondJudge, "scorer", ByWords())
    config.grounding.scorer = "by_words"
    found = judges.measure(config, tmp_path / "judges.json")
    assert json.loads(Path(tmp_path / "judges.json").read_text()) == found and found["scorer"] == "by words"
    alone, second = found["judges"][RULES]["caught"]["words"], found["judges"][GROUNDING]["caught"]["words"]
    assert alone["value"] == 1.0 and 0 < second["value"] < 1
    assert found["judges"][BOTH]["caught"]["words"]["value"] == 1.0
    assert "words caught" in judges.table(found)
