"""Why: the filter decides what is trained on. People's scores must count as the paper says (mean of at least 2), moved
boundaries must stay usable, unreviewed candidates must not slip in, and a new score must reach the clips."""

from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from la4vla.config import ConstructConfig, FilterConfig, ProposeConfig, ReadConfig
from la4vla.construct import steps
from la4vla.construct.filter import by_people, fitting
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.scores import REVIEWS, Reviews, Score, episode_digests, proposal_digest
from la4vla.types import UserError

FRAMES, STRIDE, SHORTEST = 100, 4, 8


def candidate(start, end, score=2.0):
    return Candidate(start, end, "move", "EMPTY", "move left", (0.0, 0.1, 0.0), score, ())


FIRST = (candidate(0, 20), candidate(20, 60, 3.0), candidate(60, 100, 1.0))
SECOND = (candidate(0, 40),)


class Stub:
    """A source that knows names and image stride, which is all a filter needs."""

    keys = ("one", "two")

    def read(self, key):
        return SimpleNamespace(frame_stride=STRIDE)


class Place:
    """An out_dir with candidates and, once some are given, reviews."""

    def __init__(self, folder: Path):
        self.folder = folder
        with Ledger(folder / steps.READ) as read, Ledger(folder / steps.CANDIDATES) as proposed:
            for key, items in (("one", FIRST), ("two", SECOND)):
                read.put(key, "r", {"task": "t", "frames": FRAMES, "faults": []})
                proposed.put(key, "c", {"candidates": [item.to_dict() for item in items]})

    def score(self, annotator, quality, episode, start, span=None, of=""):
        item = next(item for item in FIRST + SECOND if item.start == start)
        begin, end = span or (item.start, item.end)
        with closing(Reviews.open(self.folder / REVIEWS, episode_digests(Ledger(self.folder / steps.READ)))) as reviews:
            reviews.put(Score(candidate_key(episode, start), annotator, quality, 2, begin, end, "", of))

    def rows(self, by="human", min_quality=2.0, primitives=()):
        config = ConstructConfig(
            out_dir=str(self.folder),
            read=ReadConfig(path=""),
            propose=ProposeConfig(min_clip_frames=SHORTEST),
            filter=FilterConfig(by, min_quality, list(primitives)),
        )
        ledger = steps.filter_candidates(config, Stub(), Ledger(self.folder / steps.CANDIDATES))
        return {row["key"]: row for row in ledger}

    def spans(self, key="one"):
        return [(item["start"], item["end"]) for item in self.rows()[key]["kept"]]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.mark.parametrize(("least", "spans"), [(0.0, 3), (1.5, 2), (2.0, 2), (2.5, 1)])
def test_the_judge_alone(place, least, spans):
    row = place.rows("automatic", least)["one"]
    assert [(item["start"], item["end"]) for item in row["kept"]] == [
        (item.start, item.end) for item in FIRST if item.score >= least
    ]
    assert row["dropped"].get("low", 0) == 3 - spans
    assert [item["scores"] for item in row["kept"]] == [[]] * spans


def test_an_episode_that_is_no_longer_proposed_is_no_longer_kept(place):
    assert list(place.rows("automatic")) == ["one", "two"]
    (place.folder / steps.CANDIDATES).unlink()
    with Ledger(place.folder / steps.CANDIDATES) as proposed:
        proposed.put("two", "c", {"candidates": [item.to_dict() for item in SECOND]})
    assert list(place.rows("automatic")) == ["two"]


def test_people_decide_by_their_mean(place):
    place.score("ann", 3, "one", 60)  # the judge had 1
    place.score("bob", 1, "one", 60)  # mean 2: kept
    place.score("ann", 2, "one", 20)
    place.score("bob", 1, "one", 20)  # mean 1.5: not, although the judge had 3
    row = place.rows()["one"]
    assert [(item["start"], item["quality"], item["scores"]) for item in row["kept"]] == [(60, 2.0, [3, 1])]
    assert row["dropped"] == {"unreviewed": 1, "low": 1}
    assert place.rows()["two"] == {**place.rows()["two"], "kept": [], "dropped": {"unreviewed": 1}}


def test_direction_clips_name_one_direction_and_go_along_it():
    def said(instruction, moved, primitive="move"):
        return Candidate(0, 20, primitive, "EMPTY", instruction, moved, 3.0, ())

    pure, lifted = said("move left", (0.01, 0.1, 0.0)), said("lift it", (0.0, 0.0, 0.1), "lift")
    others = [
        said("move left and up", (0.0, 0.1, 0.1)),
        said("move left", (0.08, 0.1, 0.0)),
        said("move left", (0.0, -0.1, 0.0)),
        said("rotate the gripper clockwise", (0.0, 0.0, 0.0)),
    ]
    assert fitting([pure, lifted, *others], [], 0.9) == [pure, lifted]
    assert fitting([pure, lifted, *others], ["move"], 0.9) == [pure]
    assert fitting([pure, lifted, *others], ["lift"], 0.0) == [lifted]
    with pytest.raises(UserError, match="`hop` does not exist"):
        fitting([pure], ["hop"], 0.0)


def test_the_filter_counts_what_it_was_not_for(place):
    row = place.rows("automatic", primitives=["lift"])["one"]
    assert (row["kept"], row["dropped"]) == ([], {"other": 3})


def test_a_new_score_makes_a_new_row_of_its_episode_only(place):
    place.score("ann", 3, "one", 0)
    before = place.rows()
    assert place.rows() == before
    place.score("bob", 0, "one", 0)
    after = place.rows()
    assert after["one"]["of"] != before["one"]["of"] and after["two"] == before["two"]
    assert after["one"]["kept"] == []
    place.score("bob", 1, "one", 0)
    assert [item["quality"] for item in place.rows()["one"]["kept"]] == [2.0], "the newest answer of each counts"


@pytest.mark.parametrize(
    ("wanted", "span"),
    [
        ([(20, 60)], (20, 60)),
        ([(27, 61)], (28, 60)),  # to the nearest image
        ([(24, 60), (20, 60), (28, 60)], (24, 60)),  # the median, not the mean
        ([(20, 60), (28, 60)], (24, 60)),
        ([(44, 51)], (44, 52)),
        ([(48, 52)], None),  # too short for a clip
        ([(-8, 130)], (0, 100)),
    ],
)
def test_moved_boundaries(place, wanted, span):
    for number, moved in enumerate(wanted):
        place.score(f"annotator {number}", 3, "one", 20, moved)
    assert place.spans() == ([span] if span else [])
    assert place.rows()["one"]["dropped"].get("short", 0) == (span is None)


@pytest.mark.parametrize(
    ("moves", "spans"),
    [
        ({0: (0, 28)}, [(0, 24), (24, 60)]),  # one is longer: they meet in the middle
        ({0: (0, 28), 20: (28, 60)}, [(0, 28), (28, 60)]),  # both agree
        ({0: (0, 60)}, [(0, 40), (40, 60)]),
        ({0: (0, 80)}, [(0, 40), (40, 60)]),
        ({0: (0, 96), 20: (20, 22)}, [(0, 96)]),  # nothing would be left of the other
        ({20: (0, 60)}, [(0, 8), (8, 60)]),
    ],
)
def test_clips_do_not_share_frames(place, moves, spans):
    for start in (0, 20):
        place.score("ann", 3, "one", start, moves.get(start))
    assert place.spans() == spans


def test_no_answers_whatever_make_clips_share_frames():
    draws = np.random.default_rng(0)
    for _ in range(300):
        cuts = np.unique(draws.integers(0, FRAMES, 6))
        items = [candidate(int(start), int(end)) for start, end in pairwise(cuts)]
        scores = {}
        for item in items:
            start, end = sorted(int(edge) for edge in draws.integers(-10, FRAMES + 10, 2))
            key = candidate_key("one", item.start)
            scores[key] = [Score(key, "ann", 3, 2, start, end)]
        kept = by_people(items, scores, "one", FRAMES, STRIDE, 2.0, SHORTEST)["kept"]
        frames = [frame for item in kept for frame in range(item["start"], item["end"])]
        assert frames == sorted(set(frames))
        assert all(item["start"] % STRIDE == 0 and item["end"] - item["start"] >= SHORTEST for item in kept)
        assert not frames or (frames[0] >= 0 and frames[-1] < FRAMES)


def test_nothing_reviewed_is_an_error_with_a_cure(place):
    with pytest.raises(UserError, match="--serve"):
        place.rows()
    place.score("ann", 3, "one", 0, of=proposal_digest(candidate(0, 30)))
    with pytest.raises(UserError, match="nobody has scored any of these"):
        place.rows()  # what was scored is no longer proposed


def test_reviews_of_another_dataset_are_refused(place, tmp_path):
    place.score("ann", 3, "one", 0)
    with Ledger(tmp_path / steps.READ) as read:
        read.put("one", "r", {"task": "t", "frames": FRAMES + 1, "faults": []})
    with pytest.raises(UserError, match="another dataset"):
        place.rows()


def test_the_count_of_the_unreviewed_is_printed(place, capsys):
    place.score("ann", 3, "one", 0)
    place.rows()
    assert "3 candidates are left out" in capsys.readouterr().out
