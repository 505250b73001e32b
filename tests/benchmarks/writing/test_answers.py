"""Why: exact texts are the wrong measure of an action (a millimetre more is another text), so a model is judged by what
its text says. A model that wrote the right answers must score fully, with its own plan in the question, and one whose
answers say the opposite not at all."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.writing import answers
from benchmarks.writing.models import read_rows
from la4vla.construct.__main__ import run
from la4vla.sim.metaworld import EMBODIMENT
from tests.construct.recorded import recorded
from tests.hand_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Conversations with the hand's place in the question, and the clips they are about."""
    config = recorded(tmp_path_factory.mktemp("answers"))
    config.texts.held_out_scenes = config.texts.held_out_wordings = 0.0
    config.texts.hand = True
    run(config, "texts")
    run(config, "shards")
    return Path(config.out_dir)


def scripted(monkeypatch, say):
    """A model that answers by key, and what it was asked."""
    asked = []

    def written(vlm, encoder, rows, right):
        asked.extend(rows)
        return [say(row) for row in rows]

    monkeypatch.setattr(answers, "_written", written)
    return asked


def test_right_answers_score_fully_and_the_models_own_plan_is_in_the_question(folder, tmp_path, monkeypatch):
    texts = folder / "texts"
    asked = scripted(monkeypatch, lambda row: "my own plan" if row.question == "plan" else row.answer)
    assert main(["answers", "tiny_vlm", str(texts), "--out", str(tmp_path), "--rows", "6"]) == 0
    numbers = json.loads((tmp_path / "answers.json").read_text())
    assert {name: one["value"] for name, one in numbers["rates"].items()} == dict.fromkeys(
        ("valid", "main", "main_given", "words"), 1.0
    )
    assert numbers["error_cm"] == 0.0 and numbers["rates"]["valid"]["n"] == 6
    questions = [row.turns[-2].text for row in asked if row.question == "actions"]
    own, given = (
        [text for text in questions if "my own plan" in text],
        [text for text in questions if "Primarily" in text],
    )
    assert len(own) == len(given) == 6 and all("The hand is at" in text for text in questions)


def test_wrong_and_unreadable_answers_do_not(folder, tmp_path, monkeypatch):
    texts = folder / "texts"
    rows = {row.key: number for number, row in enumerate(read_rows(texts, ["actions"]))}

    def opposite(row):
        if row.question == "direction":
            return "none"
        text = row.answer.replace("-", "+").replace("[0", "[-0").replace(", 0.", ", -0.").replace("+", "")
        return text if rows.get(row.key, 0) % 2 else "no actions at all"

    scripted(monkeypatch, opposite)
    numbers = answers.measure(answers.AnswersRequest("tiny_vlm", texts, tmp_path, 8))
    assert numbers["rates"]["valid"]["successes"] == 4 and numbers["rates"]["main"]["value"] == 0.0
    assert numbers["rates"]["words"]["value"] == 0.0 and numbers["error_cm"] > 5


def test_a_policy_with_actions_is_asked_the_same_sub_tasks(folder, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run", EMBODIMENT, ("corner4",), size=(16, 16))
    command = ["answers", str(checkpoint), str(folder / "texts"), "--out", str(tmp_path), "--rows", "5"]
    assert main([*command, "--clips", str(folder / "vla")]) == 0
    numbers = json.loads((tmp_path / "answers.json").read_text())
    assert set(numbers["rates"]) == {"main"} and numbers["error_cm"] is not None
    with pytest.raises(answers.UserError, match="name the folder of its clips with --clips"):
        main(command)
