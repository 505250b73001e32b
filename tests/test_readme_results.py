"""Why: README's table of results was once of another run than the image below it. Table, image and JSON are of one run:
`python docs/results/make.py runs/quickstart` makes all three anew."""

import json
import re
import runpy
from pathlib import Path

import pytest

from benchmarks.results import export, protocols, stats
from benchmarks.results.results import Summary
from la4vla.types import UserError

ROOT = Path(__file__).parents[1]
MAKE = runpy.run_path(str(ROOT / "docs/results/make.py"))
RESULTS = json.loads((ROOT / "docs/results/quickstart.json").read_text())
PROTOCOL = protocols.load("metaworld/quickstart-v1")


def rates(name):
    """(level, of) -> rate of one evaluation."""
    (item,) = [item for item in RESULTS["evaluations"] if item["evaluation"] == name]
    return {(rate["level"], rate["of"]): rate for rate in item["rates"]}


def shown():
    """The table's cells, row by row, without the two lines of its head."""
    page = (ROOT / "README.md").read_text()
    lines = page.split("\n")[MAKE["lines_of_table"](page)][2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def numbers(cell):
    return [float(number) for number in re.findall(r"[\d.]+", cell)]


def in_percent(rate, *keys):
    return [round(100 * rate[key], 1) for key in keys]


@pytest.mark.parametrize("name", ["eval/trained", "eval/untrained"])
def test_the_results_are_a_whole_evaluation_and_agree_with_themselves(name):
    found = rates(name)
    assert {of for level, of in found if level == "task"} == set(PROTOCOL.tasks)
    assert all(found["task", task]["n"] == PROTOCOL.episodes for task in PROTOCOL.tasks)
    assert found["micro", ""]["successes"] == sum(found["task", task]["successes"] for task in PROTOCOL.tasks)
    assert found["micro", ""]["n"] == len(PROTOCOL.tasks) * PROTOCOL.episodes
    for (level, _), rate in found.items():
        assert rate["rate"] == pytest.approx(rate["successes"] / rate["n"])
        if level != "macro":
            assert (rate["low"], rate["high"]) == pytest.approx(stats.wilson(rate["successes"], rate["n"]))


def test_every_cell_of_readmes_table_is_in_the_results():
    trained, untrained = rates("eval/trained"), rates("eval/untrained")
    *tasks, mean = shown()
    assert [f"{row[0]}-v3" for row in tasks] == PROTOCOL.tasks
    for task, (_, wins, interval, control) in zip(PROTOCOL.tasks, tasks, strict=True):
        ours, theirs = trained["task", task], untrained["task", task]
        assert numbers(wins) == [ours["successes"], ours["n"]]
        assert numbers(interval) == in_percent(ours, "low", "high")
        assert numbers(control) == [theirs["successes"], theirs["n"]]
    ours, theirs = trained["micro", ""], untrained["micro", ""]
    assert mean[0] == "mean" and numbers(mean[1]) == in_percent(ours, "rate")
    assert numbers(mean[2]) == in_percent(ours, "low", "high")
    assert numbers(mean[3]) == in_percent(theirs, "rate", "low", "high")


def test_the_table_is_the_one_that_is_made():
    page = (ROOT / "README.md").read_text()
    assert page.split("\n")[MAKE["lines_of_table"](page)] == MAKE["table"](RESULTS)


def test_the_image_of_the_report_is_of_the_same_run():
    """The image holds the hash of the JSON that was written with it."""
    assert MAKE["hash_in"](ROOT / "docs/report.png") == MAKE["hash_of"](ROOT / "docs/results/quickstart.json")


def exported(name, wins):
    """What `la4vla eval report` writes of an evaluation, for as many successes of 20 in each task."""
    tasks = {
        task: stats.rate([place < count for place in range(20)])
        for task, count in zip(PROTOCOL.tasks, wins, strict=True)
    }
    groups = {group: stats.micro([tasks[task] for task in members]) for group, members in PROTOCOL.groups.items()}
    means = stats.macro(list(groups.values())), stats.micro(list(groups.values()))
    run = {"title": PROTOCOL.title, "policy": "p", "perturbation": {"name": "clean", "severity": 0}}
    return export.evaluation(name, run, Summary(tasks, groups, *means, {}, []))


def test_another_run_makes_another_table():
    """From the export as the report writes it, in whichever order the evaluations come."""
    evaluations = [exported("eval/untrained", (0, 1, 0, 0, 0)), exported("eval/trained", (20, 10, 0, 20, 20))]
    made = MAKE["table"](json.loads(export.to_json(evaluations)))
    assert made[3] == "| door-unlock | 10 / 20 | 29.9 - 70.1 | 1 / 20 |"
    assert made[-1] == "| **mean** | **70.0 %** | 60.4 - 78.1 | 1.0 % [0.2, 5.4] |"
    with pytest.raises(UserError, match="no eval/trained and eval/untrained"):
        MAKE["table"]({"evaluations": evaluations[:1]})
