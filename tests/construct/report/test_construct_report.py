"""Why: the report is what a lab publishes of its dataset, so each number must be the ledgers', nobody's review must be
claimed, and a page must open anywhere. Images here carry their frame's number as a grey level."""

import base64
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla.construct import steps
from la4vla.construct.__main__ import main, run
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.readers import open_dataset
from la4vla.construct.recording.store import episode_path, write_episode
from la4vla.construct.report import page
from la4vla.construct.report.statistics import LedgerRows, statistics
from la4vla.construct.scores import REVIEWS, Reviews, Score, episode_digests, proposal_digest
from la4vla.construct.vocabulary import PRIMITIVES
from la4vla.page.strips import IMAGES, strip
from la4vla.types import UserError
from tests.construct.recorded import FRAMES, TASK, episode, recorded

PICTURE = re.compile(r'src="(data:image/jpeg;base64,[^"]+)" alt="corner4, frames ([\d, ]+) of the clip"')
CONFIG = """
schema: construct
out_dir: {out}
read: {{path: {episodes}}}
record: {{tasks: [pick-place-v3], episodes: 4}}
propose: {{min_clip_frames: 8}}
shards: 2
"""


@pytest.fixture
def config(tmp_path):
    return recorded(tmp_path)


def written(config):
    """(page, numbers) of a report."""
    path = page.write(config, open_dataset(config))
    return path.read_text(), json.loads(path.with_name(page.NUMBERS).read_text())


def span(start, end, primitive="move", score=3.0, reasons=()):
    about = {"start": start, "end": end, "primitive": primitive, "status": "EMPTY", "instruction": f"{primitive} up"}
    return {**about, "displacement": [0.0, 0.0, 0.1], "score": score, "reasons": list(reasons)}


def kept(candidate, start=None):
    names = ("end", "primitive", "status", "instruction")
    first = candidate["start"] if start is None else start
    return {"start": first, **{name: candidate[name] for name in names}, "quality": candidate["score"], "scores": []}


def hand_made():
    """Two good episodes of 100 and 60 frames, one with a fault; three candidates, two kept, one of them moved."""

    notes = [{"kind": "state_still", "text": "state never changes in joint_3"}]

    def read(key, frames, faults=()):
        about = {"task": "pour" if key == "a" else "wipe", "instruction": "", "frames": frames, "fps": 10.0}
        return {"key": key, **about, "faults": list(faults), "notes": notes if key == "b" else []}

    paid = {"tokens_in": 4000, "tokens_out": 300, "calls": 2, "proposer": "vlm", "failed": ""}
    why = ["`left`, but the motion along it is -1.2 cm", "`left`, but the motion along it is 3 cm", "no verb"]
    first, second, third = span(0, 40), span(50, 70, "lift", 1.0, why), span(10, 30, "lift", 2.0)
    return LedgerRows.of(
        {
            steps.READ: [read("a", 100), read("b", 60), read("c", 7, ["video has 6 frames."])],
            steps.KEYFRAMES: [
                {"key": "a", "keyframes": [[3, "static"], [9, "gripper_open"]]},
                {"key": "b", "keyframes": [[4, "static"]]},
                {"key": "c", "keyframes": [[1, "static"]]},
            ],
            steps.CANDIDATES: [
                {"key": "a", "candidates": [first, second], "rejected": ["`wave` is no action"], **paid},
                {"key": "b", "candidates": [third], "rejected": [], **paid},
            ],
            steps.KEPT: [
                {"key": "a", "kept": [kept(first, start=5)], "dropped": {"low": 1}},
                {"key": "b", "kept": [kept(third)], "dropped": {}},
            ],
        }
    )


def test_the_numbers_by_hand():
    found = statistics(hand_made(), [], 0, (4, 8000, 600), seed=0)
    phases = found["phases"]
    assert [(phases[name]["clips"], phases[name]["frames"]) for name in ("original", "candidates", "kept")] == [
        (2, 160), (3, 80), (2, 55),
    ]  # fmt: skip
    assert phases["original"]["seconds_per_clip"] == pytest.approx(8.0)
    assert (phases["candidates_per_episode"], phases["retention"], phases["kept_per_episode"]) == (1.5, 2 / 3, 1.0)
    assert found["frames"] == {"all": 160, "kept": 55, "discarded": 25, "in_no_candidate": 80}
    assert found["keyframes"] == {
        "kinds": {"gripper_open": 1, "static": 2}, "per_episode": {"mean": 1.5, "min": 1, "max": 2},
    }  # fmt: skip
    assert {row["reason"]: row["candidates"] for row in found["automatic"]["reasons"]} == {
        "`left`, but the motion along it is # cm": 1, "no verb": 1,
    }  # fmt: skip
    assert found["dropped"] == {"low": 1}
    assert found["unusable"] == {"answers": 1, "episodes": 0}
    tokens = found["tokens"]
    assert (tokens["tokens_in"], tokens["tokens_in_per_episode"], tokens["calls"]) == (8000, 4000, 4)
    assert [(row["task"], row["episodes"], row["kept"], row["retention"]) for row in found["tasks"]] == [
        ("pour", 1, 1, 0.5), ("wipe", 1, 1, 1.0),
    ]  # fmt: skip
    a, b, c = found["episodes"]
    assert (a["rejected"], b["notes"], c["faults"]) == (
        ["`wave` is no action"], ["state_still"], ["video has 6 frames."],
    )  # fmt: skip
    assert found["review"] is None


def test_the_papers_row_follows_from_its_table():
    paper = statistics(hand_made(), [], 0, (4, 8000, 600), seed=0)["paper"]
    assert paper["candidates_per_episode"] == pytest.approx(5.95, abs=0.005)
    assert paper["retention"] == pytest.approx(0.582, abs=0.0005)
    means = [paper[name]["frames_per_clip"] for name in ("original", "candidates", "kept")]
    assert means == pytest.approx([287.83, 44.84, 46.05], abs=0.006)


def test_the_page_says_what_the_ledgers_hold(config):
    run(config, "shards")
    html, numbers = written(config)
    about = [json.loads(line) for line in Path(config.out_dir, steps.KEPT).read_text().splitlines()]
    spans = [item for row in about for item in row["kept"]]
    assert numbers["phases"]["original"]["frames"] == 4 * FRAMES
    assert numbers["phases"]["kept"]["clips"] == len(spans)
    assert numbers["phases"]["kept"]["frames"] == sum(item["end"] - item["start"] for item in spans)
    assert numbers["clips"]["primitives"]["move"]["clips"] == sum(item["primitive"] == "move" for item in spans)
    assert "2,751,615" in html and "No human has reviewed this dataset" in html
    assert not [url for url in re.findall(r'(?:src|href)="([^"]+)"', html) if not url.startswith("data:")]


def test_strips_show_the_frames_of_their_clip(config):
    run(config, "filter")
    html, _ = written(config)
    shown = [part for part in html.split('<div class="clip')[1:] if PICTURE.search(part)]
    assert len(shown) == page.EXAMPLES
    for part in shown:
        match = re.search(rf"{TASK}-\d+-(\d+)<", part)
        assert match is not None
        [(uri, frames)] = PICTURE.findall(part)
        joined = simplejpeg.decode_jpeg(base64.b64decode(uri.partition(",")[2]))
        numbers = [int(number) for number in frames.split(",")]
        assert len(numbers) == IMAGES
        for number, image in zip(numbers, np.split(joined, IMAGES, axis=1), strict=True):
            assert abs(image.mean() - 2 * (int(match[1]) + number)) < 2


def test_the_same_ledgers_give_the_same_report_and_the_seed_draws_the_examples(config):
    run(config, "filter")
    first = written(config)
    assert written(config) == first
    keys = re.findall(rf">({TASK}-\d+-\d+)<", first[0])
    assert len(set(keys)) == page.EXAMPLES
    drawn = set()
    for seed in range(5):
        config.seed = seed
        drawn |= set(re.findall(rf">({TASK}-\d+-\d+)<", written(config)[0]))
    assert len(drawn) > page.EXAMPLES


def test_a_report_may_be_drawn_at_any_time(config):
    with pytest.raises(UserError, match="construct read"):
        written(config)
    run(config, "read")
    html, numbers = written(config)
    assert numbers["phases"]["candidates"]["clips"] == 0 and "Example clips" not in html
    run(config, "propose")
    html, numbers = written(config)
    assert numbers["phases"]["candidates"]["clips"] >= 12 and numbers["phases"]["kept"]["clips"] == 0
    assert "Up to two candidates of each action" in html


def test_an_episode_that_has_changed_is_not_shown(config):
    run(config, "filter")
    for number in range(1000, 1004):
        long = episode(number)
        short = replace(long, state=long.state[:9], action=long.action[:9], executed=long.action[:9])
        write_episode(episode_path(Path(config.read.path), TASK, number), short)
    with pytest.raises(UserError, match="run the other steps again"):
        written(config)


def proposals(config):
    ledger = Ledger(Path(config.out_dir, steps.CANDIDATES))
    return {
        candidate_key(row["key"], item["start"]): Candidate.from_dict(item)
        for row in ledger
        for item in row["candidates"]
    }


def test_reviews_are_counted_while_they_stand(config):
    run(config, "propose")
    proposed = proposals(config)
    names = list(proposed)[:4]
    dataset = episode_digests(Ledger(Path(config.out_dir, steps.READ)))
    reviews = Reviews.open(Path(config.out_dir, REVIEWS), dataset)
    said = [("ann", 0, 3, 2), ("bob", 0, 3, 1), ("ann", 1, 0, 2), ("bob", 1, 0, 1), ("ann", 2, 2, 0)]
    for annotator, number, quality, confidence in said:
        item = proposed[names[number]]
        end = item.end - 3 * (number == 2)
        of = proposal_digest(item)
        reviews.put(Score(names[number], annotator, quality, confidence, item.start, end, "", of))
    reviews.put(Score(names[3], "ann", 1, 1, 0, 9, "", proposal_digest(replace(proposed[names[3]], end=9))))
    reviews.close()
    html, numbers = written(config)
    review = numbers["review"]
    assert (review["scores"], review["reviewed"], review["units"], review["outdated"]) == (5, 3, 2, 1)
    assert (review["alpha"], review["nudged"], review["confidence"]) == (1.0, 1, pytest.approx(1.2))
    assert [(row["name"], row["scores"], row["quality"]) for row in review["annotators"]] == [
        ("ann", 3, pytest.approx(5 / 3)), ("bob", 2, 1.5),
    ]  # fmt: skip
    assert "No human has reviewed" not in html and "alpha" in html
    config.filter.by = "human"
    run(config, "filter")
    html, numbers = written(config)
    assert numbers["dropped"] == {"low": 1, "unreviewed": len(proposed) - 3}
    assert numbers["clips"]["quality"]["mean"] == pytest.approx(2.5) and "nobody has reviewed" in html


def test_scores_of_an_episode_that_was_repaired_since_are_outdated(config):
    """As filter and review have it: what is proposed is as it was, but nobody has seen this episode."""
    run(config, "propose")
    proposed = proposals(config)
    dataset = episode_digests(Ledger(Path(config.out_dir, steps.READ)))
    repaired = min(dataset)
    before = {**dataset, repaired: "of another length then"}
    with closing(Reviews.open(Path(config.out_dir, REVIEWS), before)) as reviews:
        for key, item in proposed.items():
            reviews.put(Score(key, "ann", 3, 2, item.start, item.end, "", proposal_digest(item)))
    lost = sum(key.startswith(repaired) for key in proposed)
    config.filter.by = "human"
    run(config, "filter")
    html, numbers = written(config)
    assert numbers["dropped"] == {"unreviewed": lost}
    review = numbers["review"]
    assert (review["scores"], review["reviewed"], review["outdated"]) == (*[len(proposed) - lost] * 2, lost)
    assert f"{lost} older scores are" in html


def test_episodes_without_views_show_signals(config):
    for number in range(1000, 1004):
        write_episode(episode_path(Path(config.read.path), TASK, number), replace(episode(number), views=()))
    run(config, "filter")
    html, _ = written(config)
    assert not PICTURE.search(html)
    assert html.count('aria-label="signals of the clip"') == page.EXAMPLES


def test_a_page_of_noise_in_three_views_stays_below_8_megabytes():
    draw = np.random.Generator(np.random.Philox(0))
    images = {t: simplejpeg.encode_jpeg(draw.integers(0, 256, (480, 640, 3), np.uint8)) for t in range(IMAGES)}
    assert 3 * page.EXAMPLES * len(PRIMITIVES) * len(strip("front", images).uri) < 8e6


def test_the_command_ends_with_a_report_and_may_make_nothing_else(config, tmp_path, capsys):
    out = Path(config.out_dir)
    text = CONFIG.format(out=out, episodes=config.read.path)
    (tmp_path / "c.yaml").write_text(text)
    assert main(["filter", str(tmp_path / "c.yaml")]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["report", str(tmp_path / "c.yaml")]) == 0
    assert f"report: {out / page.REPORT}" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in out.iterdir()}
    assert after.keys() - before.keys() == {out / page.REPORT, out / page.NUMBERS}
    assert all(after[path] == data for path, data in before.items())
    (out / page.REPORT).unlink()
    assert main([str(tmp_path / "c.yaml")]) == 0
    assert (out / page.REPORT).is_file() and (out / "la" / "index.json").is_file()
