"""Why: partial credit and keywords are how policies that fail are told apart, and the paper counts them differently for
policies that plan. The paper's own examples must come out as it says."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.__main__ import main
from benchmarks.report import report
from benchmarks.results import latency, results
from benchmarks.results.protocols import Protocol
from benchmarks.results.rubric import FOLDER, Rubric
from la4vla.types import UserError
from tests.benchmarks.fake_env import protocol
from tests.benchmarks.results.test_results import row

PAPER = Rubric.load("vlm2vla")
LONG = "put the eggplant in the pan, then lift the fish"


def said(text, question="subtasks", problem="", query=0):
    return {"query": query, "question": question, "subtask": "", "text": text, "problem": problem}


def ended(task, success=False, milestones=(), plan=""):
    texts = [said(plan)] if plan else []
    values = {"task": task, "success": success, "milestones": dict.fromkeys(milestones, 3), "texts": texts}
    return replace(row(), **values)


@pytest.mark.parametrize(
    ("task", "text", "right"),
    [
        (LONG, "['Move to Aubergine', 'Lower to PAN', 'Lift the fish']", True),
        (LONG, "['Move to the purple thing', 'Lower to pan']", False),
        (LONG, "['Move to eggplants', 'open the panel', 'fish']", False),
        ("pick up the carrot (multilingual)", "['Move to gajar']", True),
        ("pick up the carrot (multilingual)", "['Move to banana']", False),
        ("pick up the item above ash ketchum (eggplant)", "['Grasp the carrot']", False),
    ],
)
def test_keywords_and_synonyms_of_the_paper(task, text, right):
    assert PAPER.names(task, text) is right


def test_words_of_other_scripts_need_no_spaces():
    rubric = Rubric("x", {"carrot": ("胡萝卜", "गाजर")}, PAPER.tasks)
    assert rubric.names("pick up the carrot", "移动到胡萝卜上方") and rubric.names("pick up the carrot", "गाजर उठाओ")


@pytest.mark.parametrize(
    ("task", "success", "milestones", "plan", "points"),
    [
        ("pick up the carrot", False, (), "", (0, 2)),
        ("pick up the carrot", False, ("contact",), "", (1, 2)),
        ("pick up the carrot", True, (), "", (2, 2)),  # the furthest one counts
        ("pick up the carrot (multilingual)", False, ("contact",), "", (1, 2)),
        ("pick up the carrot (multilingual)", False, ("contact",), "move to the carrot", (1, 2)),
        ("pick up the carrot (multilingual)", False, ("contact",), "move to the banana", (0, 2)),
        ("pick up the carrot (multilingual)", True, ("contact",), "move to the banana", (2, 2)),
        (LONG, False, ("contact", "place"), "", (2, 3)),
        (LONG, False, ("contact", "place"), "eggplant, pan, fish", (3, 4)),
        (LONG, False, (), "eggplant, pan, fish", (1, 4)),
        (LONG, True, ("contact",), "eggplant", (3, 4)),
    ],
)
def test_points_differ_for_policies_that_plan(task, success, milestones, plan, points):
    credit = PAPER.credit(ended(task, success, milestones, plan))
    assert credit and (credit.points, credit.most) == points


def test_a_crash_and_an_answer_that_was_refused_count_as_nothing():
    assert PAPER.credit(ended(LONG, None)) is None and PAPER.credit(ended("unknown")) is None
    one = ended("pick up the carrot")
    credit = PAPER.credit(replace(one, texts=[said("carrot", problem="no list")]))
    assert credit and credit.planned is None


def test_every_rubric_that_ships_is_read_and_a_wrong_one_is_refused(tmp_path):
    for path in FOLDER.glob("*.yaml"):
        assert Rubric.load(path.stem).tasks
    wrong = tmp_path / "own.yaml"
    for task, says in {
        "{without_plan: [touch], with_plan: [contact]}": "names touch",
        "{without_plan: [plan], with_plan: [plan], keywords: [a]}": "names plan",
        "{without_plan: [contact], with_plan: [plan]}": "has no keywords",
        "[]": "not a rubric",
    }.items():
        wrong.write_text(f"tasks:\n  some: {task}\n")
        with pytest.raises(UserError, match=says):
            Rubric.load(str(wrong))
    with pytest.raises(UserError, match="no rubric `none`"):
        Rubric.load("none")


def written(folder, rows):
    rules: Protocol = protocol()
    stored = results.Results(folder, rules.hash, "abc", "clean")
    for item in rows:
        stored.append(item)
    about = {"policy": "abc", "step": 7, "untrained": False, "checkpoint": "c", "command": "", "date": "", "time": ""}
    shown = {"name": "clean", "severity": 0}
    results.write_run(folder, {"protocol": asdict(rules), "title": "t", "perturbation": shown, "gl": "", **about})
    return folder


def test_the_commands_and_the_report_show_credit_and_seconds(tmp_path, capsys):
    texts = [said("down", query=0), said("[[0]]", "actions", query=0), said("[[0]]", "actions", query=2)]
    rows = [
        row(episode=0, success=False, milestones={"contact": 3}, texts=texts, latencies_ms=[2000.0, 1.0, 4000.0]),
        row(episode=1, success=True, milestones={"contact": 2}, latencies_ms=[1000.0]),
    ]
    folder = written(tmp_path / "eval", rows)
    assert main(["credit", str(folder), "--json", str(tmp_path / "credit.json")]) == 0
    numbers = json.loads((tmp_path / "credit.json").read_text())["credit"][str(folder)]
    assert numbers["all"]["credit"] == 0.75 and numbers["all"]["milestones"]["contact"]["value"] == 1.0
    assert latency.decisions(rows) == [2.0, 4.0, 1.0]  # the query that only plays is none
    found = latency.times(rows)
    assert found and (found.n, found.median, found.least, found.most) == (3, 2.0, 1.0, 4.0)
    capsys.readouterr()
    assert main(["latency", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "| 3 | 2 | 2.33 | 1.53 |" in printed and "| 30 | 6.1 | 10.5 | 14.3 | 5 - 6.7 | 3.8 | 48.8 |" in printed
    page = report.write([folder], tmp_path / "report.html").read_text()
    assert "How far episodes came" in page and "75.0 %" in page and "decisions of median 2.00 s" in page


def test_rows_without_milestones_are_refused(tmp_path):
    folder = written(tmp_path / "eval", [row()])
    with pytest.raises(UserError, match="reached a milestone"):
        main(["credit", str(folder)])
