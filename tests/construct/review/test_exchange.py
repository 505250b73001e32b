"""Why: reviews made elsewhere must arrive as they were meant or not at all: a score on the wrong clip, a half imported
file or a doubled answer would silently change what is trained on."""

import csv
import json
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from la4vla.config import ConstructConfig, ReadConfig
from la4vla.construct import steps
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.review.exchange import FORMATS, export_reviews, import_reviews
from la4vla.construct.scores import REVIEWS, Score, proposal_digest, read_scores
from la4vla.types import UserError

ITEMS = tuple(
    Candidate(start, start + 20, "move", "EMPTY", 'move left, "slowly"', (0.0, 0.1, 0.0), 2.0, ("a reason",))
    for start in (0, 20, 40)
)
KEYS = [candidate_key("reach-v3-000001", item.start) for item in ITEMS]
SOURCE = SimpleNamespace(keys=("reach-v3-000001",))


def score(number, annotator, quality, confidence=2, start=None, end=None, comment=""):
    item = ITEMS[number]
    start, end = item.start if start is None else start, item.end if end is None else end
    return Score(KEYS[number], annotator, quality, confidence, start, end, comment, proposal_digest(item))


SCORES = [
    score(0, "ann", 3),
    score(0, 'Bob, "the" second', 0, 0, comment="line one\nline two; \u00fc, comma"),
    score(2, "ann", 2, 1, start=44, end=56),
]


def place(folder, items=ITEMS):
    with Ledger(folder / steps.READ) as read, Ledger(folder / steps.CANDIDATES) as proposed:
        read.put("reach-v3-000001", "r", {"task": "t", "frames": 60, "faults": []})
        proposed.put("reach-v3-000001", "c", {"candidates": [item.to_dict() for item in items]})
    return ConstructConfig(out_dir=str(folder), read=ReadConfig(path=""))


def as_jsonl(folder, scores):
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(vars(item)) + "\n" for item in scores))
    return path


def stored(config_folder):
    return sorted(read_scores(config_folder / REVIEWS), key=lambda item: (item.candidate, item.annotator))


@pytest.fixture
def config(tmp_path):
    return place(tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_there_and_back_in_every_format(config, tmp_path, suffix):
    assert import_reviews(config, SOURCE, as_jsonl(tmp_path, SCORES)) == 3
    assert export_reviews(config, SOURCE, tmp_path / f"all{suffix}") == 3
    other = tmp_path / "other"
    other.mkdir()
    assert import_reviews(place(other), SOURCE, tmp_path / f"all{suffix}") == 3
    assert stored(other) == stored(tmp_path) == sorted(SCORES, key=lambda item: (item.candidate, item.annotator))


@pytest.mark.parametrize("suffix", FORMATS)
def test_importing_again_adds_nothing_and_a_change_adds_one(config, tmp_path, suffix):
    import_reviews(config, SOURCE, as_jsonl(tmp_path, SCORES))
    path = tmp_path / f"all{suffix}"
    export_reviews(config, SOURCE, path)
    assert import_reviews(config, SOURCE, path) == 0
    assert import_reviews(config, SOURCE, as_jsonl(tmp_path, [score(0, "ann", 1)])) == 1
    assert [item.quality for item in stored(tmp_path) if (item.candidate, item.annotator) == (KEYS[0], "ann")] == [1]


def test_a_spreadsheet_needs_only_what_was_answered(config, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(f"\ufeffannotator,candidate,quality,confidence,comment\r\nann,{KEYS[1]},2,1,\r\n", "utf-8")
    import_reviews(config, SOURCE, path)
    assert stored(tmp_path) == [score(1, "ann", 2, 1)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_breaks_of_unicode_inside_a_comment_end_no_line(config, tmp_path, end):
    said = [score(0, "ann", 3, comment="one\u2028two\u0085three"), score(1, "ann", 2)]
    text = end.join(json.dumps(vars(item), ensure_ascii=False) for item in said)
    (tmp_path / "in.jsonl").write_bytes(text.encode())
    assert import_reviews(config, SOURCE, tmp_path / "in.jsonl") == 2
    assert stored(tmp_path) == said


GOOD = {"candidate": KEYS[0], "annotator": "ann", "quality": 2, "confidence": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"candidate": "reach-v3-000001-00007"}, "no candidate here"),
        ({"quality": 4}, "quality: .*less than or equal to 3"),
        ({"quality": -1}, "quality: .*greater than or equal to 0"),
        ({"quality": 1.5}, "quality: .*integer"),
        ({"confidence": 3}, "confidence"),
        ({"confidence": None}, "confidence"),
        ({"annotator": " "}, "annotator"),
        ({"start": 30}, "frames 30 to 20 are no span"),
        ({"end": 61}, "no span of an episode of 60"),
        ({"of": "0123456789abcdef"}, "another span, label or instruction"),
        ({"qualty": 2}, "qualty"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_imported(config, tmp_path, change, why):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ({**GOOD, "annotator": "bob"}, {**GOOD, **change})))
    with pytest.raises(UserError, match=f"nothing was imported.*line 2: .*{why}"):
        import_reviews(config, SOURCE, path)
    assert stored(tmp_path) == []


def test_an_episode_that_has_got_a_fault_is_neither_offered_nor_taken(tmp_path):
    config = place(tmp_path)
    with Ledger(tmp_path / steps.READ) as read:
        read.put("reach-v3-000002", "r", {"task": "t", "frames": 60, "faults": []})
        read.put("reach-v3-000001", "", {"task": "", "frames": 0, "faults": ["damaged"]})
    with pytest.raises(UserError, match="no candidates"):
        export_reviews(config, SOURCE, tmp_path / "out.labelstudio.json")
    with pytest.raises(UserError, match="no candidates"):
        import_reviews(config, SOURCE, as_jsonl(tmp_path, SCORES))


def test_two_answers_of_one_person_in_a_file_are_refused(config, tmp_path):
    with pytest.raises(UserError, match="line 2: a second score"):
        import_reviews(config, SOURCE, as_jsonl(tmp_path, [score(0, "ann", 3), score(0, "ann", 0)]))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("in.txt", "", "none of the known suffixes"),
        ("missing.csv", None, "does not exist"),
        ("in.jsonl", "{", "not in the format of its suffix"),
        ("in.jsonl", "[1]", "not in the format of its suffix"),
        ("in.labelstudio.json", "{}", "not in the format of its suffix"),
        ("in.labelstudio.json", '[{"data": {}, "annotations": [{"result": [{}]}]}]', "not in the format of its suffix"),
        ("in.labelstudio.json", '[{"data": {}, "annotations": [{"result": []}]}]', "task 1: candidate"),
        ("in.csv", "candidate,quality\n,1,2\n", "line 2"),
        ("in.csv", b"\xff\xfe\x00", "not in the format of its suffix"),
    ],
)
def test_a_file_that_is_something_else_says_so(config, tmp_path, name, content, why):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=why):
        import_reviews(config, SOURCE, tmp_path / name)


def test_what_label_studio_exports_is_read(config, tmp_path):
    """As its guide shows an export: many more fields, its own user where no name was given, cancelled annotations."""

    def answer(name, kind, value):
        return {
            "id": "x",
            "from_name": name,
            "to_name": "clip",
            "type": kind,
            "value": {kind: value},
            "origin": "manual",
        }

    results = [answer("quality", "choices", ["1"]), answer("confidence", "choices", ["2"]), answer("end", "number", 16)]
    named = [*results, answer("annotator", "text", ["ann"])]
    annotations = [
        {"id": 1, "completed_by": 10, "result": results, "was_cancelled": False, "lead_time": 4.3},
        {"id": 2, "completed_by": {"id": 7, "email": "bob@lab.org"}, "result": results, "was_cancelled": False},
        {"id": 3, "completed_by": 10, "result": named, "was_cancelled": False},
        {"id": 4, "completed_by": 11, "result": [], "was_cancelled": True},
    ]
    path = tmp_path / "project.labelstudio.json"
    path.write_text(json.dumps([{"id": 5, "data": {"candidate": KEYS[0]}, "annotations": annotations, "project": 1}]))
    assert import_reviews(config, SOURCE, path) == 3
    assert stored(tmp_path) == [score(0, name, 1, 2, end=16) for name in ("10", "ann", "bob@lab.org")]


def test_label_studio_gets_every_candidate_and_names_that_its_config_knows(config, tmp_path):
    import_reviews(config, SOURCE, as_jsonl(tmp_path, SCORES))
    path = tmp_path / "out.labelstudio.json"
    export_reviews(config, SOURCE, path)
    tasks = json.loads(path.read_text())
    assert [task["data"]["candidate"] for task in tasks] == KEYS
    assert [len(task["annotations"]) for task in tasks] == [2, 0, 1]
    xml = ElementTree.parse(tmp_path / "out.labelstudio.xml")
    shown = {tag.get("value", "")[1:] for tag in xml.iter("Text")}
    controls = {tag.get("name") for tag in xml.iter() if tag.get("toName") == "clip"}
    assert all(shown <= task["data"].keys() for task in tasks)
    used = {item["from_name"] for task in tasks for given in task["annotations"] for item in given["result"]}
    assert used == controls


def test_scores_of_what_is_no_longer_proposed_stay_behind(config, tmp_path):
    import_reviews(config, SOURCE, as_jsonl(tmp_path, SCORES))
    moved = Candidate(0, 16, "move", "EMPTY", "move left", (0.0, 0.1, 0.0), 2.0, ())
    later = place(tmp_path, (moved, *ITEMS[1:]))
    assert export_reviews(later, SOURCE, tmp_path / "out.csv") == 1
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["candidate"] for row in csv.DictReader(file)] == [KEYS[2]]


def test_nothing_proposed_is_an_error_with_a_cure(tmp_path):
    with pytest.raises(UserError, match="la4vla construct propose"):
        import_reviews(place(tmp_path, ()), SOURCE, tmp_path / "in.csv")
