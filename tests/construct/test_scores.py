"""Why: an annotator's hour is the dearest thing in the pipeline. An answer that was acknowledged must outlive a kill
and a colleague writing at the same moment, must never be counted for another dataset's episode, and everyone's share
must stay theirs when episodes are added."""

import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest

from la4vla.config import ReviewConfig
from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.review.assign import assigned, progress, queue, shares
from la4vla.construct.scores import (
    Reviews,
    Score,
    episode_digests,
    proposal_digest,
    read_scores,
    standing,
)
from la4vla.types import UserError

DATASET = {"reach-000001": "aa", "reach-000002": "bb"}
FORK = multiprocessing.get_context("fork")


def score(start=0, annotator="ada", quality=3, episode="reach-000001", **rest):
    return Score(f"{episode}-{start:05d}", annotator, quality, 1, start, start + 9, **rest)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / "reviews.sqlite"


@pytest.fixture
def reviews(path):
    opened = Reviews.open(path, DATASET)
    yield opened
    opened.close()


def test_nobody_has_reviewed_yet(path):
    assert read_scores(path) == []
    assert not path.exists()


def test_the_newest_answer_of_each_annotator_counts(reviews, path):
    first, other, second = score(quality=0), score(annotator="ben"), score(quality=2, comment="late")
    for item in (first, other, second):
        reviews.put(item)
    assert reviews.scores() == read_scores(path) == [other, second]


def test_undo_goes_back_step_by_step_and_what_was_replaced_counts_again(reviews):
    old, new, elsewhere, others = score(quality=0), score(quality=2), score(20), score(annotator="ben")
    for item in (old, others, new, elsewhere):
        reviews.put(item)
    assert reviews.undo("ada") == elsewhere
    assert reviews.undo("ada") == new
    assert reviews.scores() == [old, others]
    assert reviews.undo("ada") == old
    assert reviews.undo("ada") is None
    assert reviews.scores() == [others]


@pytest.mark.parametrize(
    "wrong, cure",
    [
        (score(quality=4), "0 .. 3"),
        (replace(score(), confidence=-1), "0 .. 2"),
        (score(annotator=""), "give a name"),
        (score(episode="reach-000009"), "no candidate of this dataset"),
    ],
)
def test_a_score_that_cannot_be_is_refused(reviews, wrong, cure):
    with pytest.raises(UserError, match=cure):
        reviews.put(wrong)
    assert reviews.scores() == []


@pytest.mark.parametrize("other", [{"reach-000001": "zz"}, {"push-000001": "aa"}, {}])
def test_a_database_of_another_dataset_is_refused_and_left_alone(reviews, path, other):
    reviews.put(score())
    with pytest.raises(UserError, match="another dataset"):
        Reviews.open(path, other)
    assert read_scores(path) == [score()]


def test_a_repaired_episode_loses_its_scores_and_no_other(reviews, path, capsys):
    kept, lost = score(), score(episode="reach-000002")
    reviews.put_all([kept, lost])
    with closing(Reviews.open(path, {**DATASET, "reach-000002": "of 300 frames now"})) as again:
        assert again.scores() == [kept]
        again.put(lost)
        assert again.scores() == [kept, lost]
    printed = capsys.readouterr().out
    assert "1 episodes have changed their task or length since they were scored (reach-000002)" in printed


def test_episodes_may_be_added_and_left_out(reviews, path):
    reviews.put(score())
    for dataset in ({**DATASET, "reach-000003": "cc"}, {"reach-000001": "aa"}):
        with closing(Reviews.open(path, dataset)) as again:
            assert again.scores() == [score()]


def test_another_recording_under_the_same_name_is_another_episode():
    row = {"key": "reach-000001", "task": "reach", "frames": 80, "faults": [], "of": "1"}
    assert episode_digests([row]) == episode_digests([{**row, "of": "2"}])
    assert episode_digests([row]) != episode_digests([{**row, "frames": 81}])
    assert episode_digests([{**row, "faults": ["torn"]}]) == {}
    assert episode_digests([{**row, "task": "", "frames": 0, "faults": ["a file that cannot be read"]}]) == {}


def test_files_of_somebody_else_are_not_touched(tmp_path):
    text, foreign = tmp_path / "text", tmp_path / "foreign"
    text.write_text("candidate,annotator\n" * 100)
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE tasks (id INTEGER)")
    for file in (text, foreign):
        before = file.read_bytes()
        for use in (read_scores, lambda file: Reviews.open(file, DATASET)):
            with pytest.raises(UserError, match="not a review database"):
                use(file)
        assert file.read_bytes() == before


def test_a_score_does_not_outlive_a_change_of_what_was_judged():
    proposal = Proposal(0, 9, "lift", "HOLDING", "lift it", (0.0, 0.0, 0.1))
    judged = score(of=proposal_digest(proposal))
    key = judged.candidate
    assert standing([judged], {key: proposal}) == [judged]
    assert standing([judged], {key: replace(proposal, instruction="lower it")}) == []
    assert standing([judged], {}) == []
    assert standing([score()], {key: proposal}) == [score()], "from a file that does not say what was judged"


# -- real processes


def write_forever(path, annotator, acknowledge):
    reviews = Reviews.open(path, DATASET)
    for number in range(1_000_000):
        reviews.put(score(number, annotator))
        os.write(acknowledge, b"%d\n" % number)
        time.sleep(0.001)  # SQLite's lock is not fair; the other one may write, too


def test_every_acknowledged_score_survives_kills_of_two_writers_at_once(path):
    """Five times, each with a writer of its own pair killed mid-write by SIGKILL."""
    acknowledged = Counter[str]()
    for turn in range(5):
        writers = []
        for name in ("ada", "ben"):
            read, write = os.pipe()
            writer = FORK.Process(target=write_forever, args=(path, f"{name}{turn}", write))
            writer.start()
            os.close(write)
            writers.append((f"{name}{turn}", writer, os.fdopen(read)))
        for name, _, lines in writers:
            for _ in range(7 + turn):
                lines.readline()
                acknowledged[name] += 1
        for name, writer, lines in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            acknowledged[name] += sum(line.endswith("\n") for line in lines)
    scores = read_scores(path)
    there = Counter(item.annotator for item in scores)
    assert len(acknowledged) == 10
    for name, count in acknowledged.items():
        assert count <= there[name] <= count + 1, "one may have been on its way"
    reviews = Reviews.open(path, DATASET)
    reviews.put(score(annotator="after"))
    assert len(reviews.scores()) == len(scores) + 1


def write_some(path, annotator, count, go):
    go.wait()
    reviews = Reviews.open(path, DATASET)
    for number in range(count):
        reviews.put(score(number, annotator))
        if number % 10 == 9:
            reviews.undo(annotator)


def test_four_annotators_open_and_write_a_new_file_at_once(path):
    path.parent.mkdir()
    go = FORK.Event()
    writers = [FORK.Process(target=write_some, args=(path, f"a{i}", 40, go)) for i in range(4)]
    for writer in writers:
        writer.start()
    go.set()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert Counter(item.annotator for item in read_scores(path)) == {f"a{i}": 36 for i in range(4)}


# -- who looks at what

CANDIDATES = [f"reach-{i // 5:06d}-{i % 5 * 20:05d}" for i in range(4000)]


def test_shares_are_even_cover_everything_and_overlap_as_asked():
    mine = shares(CANDIDATES, ReviewConfig(annotators=["ada", "ben", "cem"], overlap=0.1), 0)
    counts = Counter(candidate for share in mine.values() for candidate in share)
    assert set(counts) == set(CANDIDATES) and set(counts.values()) == {1, 2}
    assert 0.08 < sum(count == 2 for count in counts.values()) / len(CANDIDATES) < 0.12
    assert all(abs(len(share) / len(CANDIDATES) - 1.1 / 3) < 0.04 for share in mine.values())


@pytest.mark.parametrize("overlap, times", [(0.0, 1), (1.0, 2)])
def test_overlap_at_its_ends(overlap, times):
    config = ReviewConfig(annotators=["ada", "ben", "cem"], overlap=overlap)
    assert {len(assigned(candidate, config, 0)) for candidate in CANDIDATES[:500]} == {times}


def test_one_annotator_gets_everything_once():
    assert shares(CANDIDATES, ReviewConfig(annotators=["ada"], overlap=1.0), 0) == {"ada": CANDIDATES}


def test_assignment_depends_on_the_candidate_and_the_seed_alone():
    config = ReviewConfig(annotators=["ada", "ben"])
    again = ReviewConfig(annotators=["ben", "ada"])
    some = CANDIDATES[:300]
    assert [set(assigned(item, config, 0)) for item in some] == [set(assigned(item, again, 0)) for item in some]
    assert [assigned(item, config, 0) for item in some] != [assigned(item, config, 1) for item in some]


def test_a_new_annotator_only_takes_over():
    two, three = (ReviewConfig(annotators=names, overlap=0) for names in (["ada", "ben"], ["ada", "ben", "cem"]))
    for candidate in CANDIDATES[:500]:
        after = assigned(candidate, three, 0)
        assert after in (("cem",), assigned(candidate, two, 0))


def test_what_nobody_has_seen_comes_first_and_what_is_mine_last():
    a, b, c, d = (score(start).candidate for start in (0, 20, 40, 60))
    scores = [score(0), score(20, "ben"), score(60, "ben"), score(60)]
    assert queue([a, b, c, d], scores, "ada") == [c, b, a, d]
    assert progress([a, b, c, d], scores, "ada").done == 2
    assert progress([a, b, c, d], scores).done == 3
    assert progress([], scores, "ada").text().endswith("100.0%")
