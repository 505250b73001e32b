"""Why: Table 1 compares arms that must have been asked the same moments with the same noise, in the words that each was
trained with, and a missing number must stay an empty cell."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.hierarchy import report, table, texts, words
from benchmarks.hierarchy.moments import moments
from la4vla.data.shards.index import read_index
from la4vla.data.shards.writer import View
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey, Said
from la4vla.types import UserError
from tests.fixtures import ARM, make_clip, write_shards
from tests.hand_checkpoint import write_checkpoint, write_vlm_checkpoint

VIEWS = {"front": View(16, 16)}
TASK = "put the red cube into the bowl"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips of two episodes, an image at every second frame."""
    folder = tmp_path_factory.mktemp("words") / "vla"
    made = [replace(make_clip(number, 9, ARM, VIEWS, 2), task=TASK) for number in range(6)]
    write_shards(folder, made, shards=2, views=VIEWS, frame_stride=2)
    return folder


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("low") / "step", ARM, ("front",), size=(16, 16))


class Speaking:
    """A policy that writes a sentence by the task and hands it down."""

    def __init__(self, low, say):
        self.low, self._say, self.asked, self.opened = low, say, [], []

    def open(self, episode):
        self.opened.append(episode)

    def infer(self, observations, noise_keys):
        self.asked += [one.instruction for one in observations]
        self._said = [(Said("next", "", self._say(one), ""),) for one in observations]
        told = [replace(one, instruction=said[0].text) for one, said in zip(observations, self._said, strict=True)]
        return self.low.infer(told, noise_keys)

    def said(self):
        return self._said


def test_moments_have_images_and_end_with_their_clip(clips):
    found = moments(read_index(clips), ["front"], horizon=4, every=3)
    assert [moment.frame for moment in found[:3]] == [0, 4, 8]  # the next frame with an image
    assert [len(moment.chunk) for moment in found[:3]] == [4, 4, 1]
    assert len({moment.key for moment in found}) == 18
    assert [one.key for one in moments(read_index(clips), ["front"], 4, 3, most=2)] == [found[0].key, found[-1].key]
    with pytest.raises(UserError, match="has no view wrist"):
        moments(read_index(clips), ["wrist"], 4, 3)


def test_the_arms_are_told_what_they_should_be_and_share_their_noise(clips, low):
    policy, chosen = ServedPolicy.load(low), moments(read_index(clips), ["front"], 8, 8)
    speaking = Speaking(policy, lambda seen: "Move the gripper left.")
    said = words.answer_all(words.hierarchical(speaking), chosen, seed=3)
    assert set(speaking.asked) == {TASK} and len(speaking.opened) == len(chosen)
    assert {answer.said for answer in said} == {"Move the gripper left."}
    oracle = words.answer_all(words.told_by_people(policy, "low", words.ORACLE), chosen, seed=3)
    same = [one.instruction == "Move the gripper left." for one in chosen]
    assert 0 < sum(same) < len(same)
    for equal, one, other in zip(same, oracle, said, strict=True):
        assert np.allclose(one.chunk, other.chunk, atol=1e-5) == equal
    flat = words.answer_all(words.told_by_people(policy, "both", words.FLAT), chosen[:1], seed=3)
    seen, key = chosen[0].seen(TASK), NoiseKey(3, chosen[0].key, 0, 0)
    assert np.allclose(flat[0].chunk, policy.infer([seen], [key])[0], atol=1e-5)


def test_a_policy_that_writes_nothing_is_no_hierarchical_one(clips, low):
    silent = ServedPolicy.load(low)
    with pytest.raises(UserError, match="wrote no sentence"):
        words.hierarchical(silent)(moments(read_index(clips), ["front"], 8, 8)[:1], 0)


class Judge:
    """Likes long sentences."""

    name = "length"

    def scores(self, deeds):
        return np.array([len(deed.sentence) for deed in deeds], np.float32)


def test_a_hierarchical_policy_out_of_its_folders(clips, low, tmp_path):
    high = write_vlm_checkpoint(tmp_path / "high", ARM, {}, questions=("next",))
    (tmp_path / "high.yaml").write_text(
        f"schema: hierarchical\nhigh: {high}\nviews: [front]\nnext: {{max_tokens: 4}}\n"
    )
    asked = ["words", str(low), str(clips), "--high", str(tmp_path / "high.yaml"), "--rows", "2"]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    numbers, rows = words.read(tmp_path / "out")
    assert numbers["arm"] == words.HIERARCHICAL and len(rows) == 2
    assert {texts.BLEU, "MSE (raw)", "unknown per 100"} <= set(numbers["metrics"])


def test_a_sentence_that_the_scorer_refuses_has_no_score(clips):
    class Strict(Judge):
        def scores(self, deeds):
            if any(len(deed.sentence) > 30 for deed in deeds):
                raise UserError("too long")
            return super().scores(deeds)

    moment = moments(read_index(clips), ["front"], 4, 8)[0]
    deeds = [moment.deed("a" * length, moment.chunk) for length in (5, 40, 7, 31, 9)]
    assert words.scored(Strict(), deeds) == [5.0, None, 7.0, None, 9.0]


def test_table_1_has_the_published_rows_beside_ours(clips, low, tmp_path):
    assert main(["words", str(low), str(clips), "--oracle", "--out", str(tmp_path / "oracle")]) == 0
    oracle = json.loads((tmp_path / "oracle" / words.NUMBERS).read_text())
    assert oracle["arm"] == "oracle" and oracle["rows"] == 12 and oracle["episodes"] == 2
    assert not set(texts.open_metrics().names) & set(oracle["metrics"])  # it writes nothing
    index, metrics = read_index(clips), texts.open_metrics()
    policy = ServedPolicy.load(low)
    chosen = moments(index, ["front"], policy.horizon, 8)
    by = words.judges(index, metrics, scorer=Judge())
    about = {name: oracle[name] for name in ("clips", "views", "every", "units", "arm")}
    for seed, say in ((0, "Move the gripper left."), (1, "grasp grasp the green duck")):
        speaking = Speaking(policy, lambda seen, say=say: say)
        answers = words.answer_all(words.hierarchical(speaking), chosen, seed)
        words.write(tmp_path / f"high_{seed}", words.measured(chosen, answers, by, True), about, metrics)
    named = [("low only", "oracle"), ("ours", "high_0"), ("ours", "high_1")]
    report.write([(name, tmp_path / folder) for name, folder in named], tmp_path / "out", examples=3)
    shown = dict(zip(table.COLUMNS, cells(tmp_path, "Supervised (published)"), strict=True))
    assert (shown["BLEU"], shown["METEOR"], shown["MSE (normalised)"]) == (
        "0.111 ± 0.05",
        "0.313 ± 0.12",
        "0.046 ± 0.02",
    )
    assert shown[texts.NO_SYNONYMS] == ""
    assert cells(tmp_path, "low only")[:5] == [""] * 5 and "[" in cells(tmp_path, "low only")[5]
    ours = dict(zip(table.COLUMNS, cells(tmp_path, "ours"), strict=True))
    assert ours["METEOR"] == ours["BERTScore"] == "" and "[" in ours[texts.NO_SYNONYMS]
    beside = cells(tmp_path, "ours", 1)  # of the two seeds, one repeats itself and sees a duck that is not there
    per_100 = dict(zip(beside_head(tmp_path), beside, strict=True))
    assert per_100["repeated per 100"].startswith("50.0 ") and per_100["absent per 100"].startswith("50.0 ")
    assert per_100["impossible per 100"].startswith("0.0 ")  # the arm has a gripper
    page = (tmp_path / "out" / report.PAGE).read_text()
    assert page.count("data:image/jpeg;base64") == 3 and TASK in page and "Move the gripper left." in page
    assert "BERTScore is empty" in page and "http" not in page.replace("http://www.w3.org", "")


def lines_of(folder, row):
    found = [line for line in (folder / "out" / report.MARKDOWN).read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in found if line.split("|")[1].strip() == row]


def cells(folder, row, number=0):
    return lines_of(folder, row)[number]


def beside_head(folder):
    return lines_of(folder, "")[1]


def test_arms_that_were_asked_other_moments_are_not_compared(clips, low, tmp_path):
    for name, every in (("a", "8"), ("b", "4")):
        main(["words", str(low), str(clips), "--flat", "--every", every, "--out", str(tmp_path / name)])
    with pytest.raises(UserError, match="b was asked about other moments than a"):
        report.write([("a", tmp_path / "a"), ("b", tmp_path / "b")], tmp_path / "out", 0)
