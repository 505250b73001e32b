"""Why: a second judge decides what is trained on, so it must be asked about the very motion and scene of a clip, be
heard by the filter, the page and the report, and be asked again only where its answer may be another."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import candidates_of
from la4vla.construct.readers import open_dataset
from la4vla.construct.report import page
from la4vla.construct.review.session import ReviewSession
from la4vla.construct.second_judge import SecondJudge
from la4vla.types import UserError
from tests.construct.recorded import STRIDE, recorded


class ByMotion:
    """Scores by the last number of the actions, which grows with the frame; keeps what it was asked."""

    name = "by motion"

    def __init__(self):
        self.asked = []

    def scores(self, deeds):
        self.asked += deeds
        return np.array([deed.actions[0, 3] for deed in deeds], np.float32)


@pytest.fixture
def scorer(monkeypatch):
    made = ByMotion()
    monkeypatch.setattr(SecondJudge, "scorer", made)
    return made


@pytest.fixture
def config(tmp_path):
    made = recorded(tmp_path)
    made.grounding.scorer = str(tmp_path / "scorer")
    made.grounding.windows = 2
    return made


def kept(config):
    return {(row["key"], item["start"]) for row in Ledger(Path(config.out_dir) / steps.KEPT) for item in row["kept"]}


def proposed(config):
    rows = Ledger(Path(config.out_dir) / steps.CANDIDATES)
    return {key: (row["key"], item) for row in rows for key, item in candidates_of(row).items()}


def test_it_is_asked_about_the_clips_own_scene_and_motion(config, scorer):
    run(config, "ground")
    dataset, items = open_dataset(config), proposed(config)
    scores = steps.grounding_scores(config)
    assert scores.keys() == items.keys() and len(items) > 8
    for deed in scorer.asked:
        key, _, start = deed.key.rpartition("/")
        episode, item = items[key]
        start = int(start)
        shown = start // STRIDE * STRIDE
        assert item.start <= start < item.end and deed.sentence == item.instruction
        assert abs(int(deed.image.mean()) - 2 * shown) <= 2  # an image's grey says its frame
        assert np.array_equal(deed.actions, dataset.read(episode).action[start : min(start + 8, item.end)])
    windows = [deed for deed in scorer.asked if deed.key.startswith(f"{next(iter(items))}/")]
    assert 1 <= len(windows) <= 2
    assert scores[next(iter(items))] == pytest.approx(np.mean([deed.actions[0, 3] for deed in windows]))


def test_the_filter_hears_it(config, scorer):
    run(config, "filter")
    by_rules = kept(config)
    scores, items = steps.grounding_scores(config), proposed(config)
    config.filter.min_grounding = float(np.median(list(scores.values())))
    config.filter.by = "grounding"
    run(config, "filter")
    fit = {
        (items[key][0], items[key][1].start) for key, score in scores.items() if score >= config.filter.min_grounding
    }
    assert kept(config) == fit and fit < {(key, item.start) for key, item in items.values()}
    config.filter.by, config.filter.min_quality = "both", 2.5
    run(config, "filter")
    good = {(key, item.start) for key, item in items.values() if item.score >= 2.5}
    assert kept(config) == fit & good
    assert by_rules == {(key, item.start) for key, item in items.values() if item.score >= 2.0}


def test_page_and_report_show_both_judges(config, scorer):
    run(config, "filter")
    dataset, scores = open_dataset(config), steps.grounding_scores(config)
    best = max(scores, key=scores.get)
    with closing(ReviewSession(config, dataset)) as session:
        shown = session.clip(best, "ann")
    assert shown["scores"] == {"rules": proposed(config)[best][1].score, "grounding": scores[best]}
    assert shown["grounded_below"] == pytest.approx(np.mean([score < scores[best] for score in scores.values()]))
    page.write(config, dataset)
    told = json.loads((Path(config.out_dir) / page.NUMBERS).read_text())["grounding"]
    assert told["scorer"] == "by motion" and sum(row["candidates"] for row in told["by_rules"]) == len(scores)
    assert "Grounding score of the candidates" in (Path(config.out_dir) / page.REPORT).read_text()


def test_it_is_asked_again_only_where_its_answer_may_be_another(config, scorer):
    run(config, "ground")
    first = len(scorer.asked)
    run(config, "ground")
    assert len(scorer.asked) == first
    Path(config.grounding.scorer).mkdir()
    (Path(config.grounding.scorer) / "model.safetensors").write_bytes(b"another model in the same place")
    run(config, "ground")
    assert len(scorer.asked) == 2 * first
    config.grounding.scorer = ""
    run(config, "filter")
    assert steps.grounding_scores(config) == {}


def test_without_a_second_judge_nothing_asks_for_one(config):
    config.grounding.scorer = ""
    with pytest.raises(UserError, match=r"no second judge to ask; set grounding\.scorer"):
        run(config, "ground")
