"""Why: annotations of a dataset cost hundreds of dollars. What was paid for is never lost or paid for twice, an answer
whose actions are not the episode's own is asked for again, and the price is known before. A real server on this machine
speaks the protocol."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from la4vla.chat.responses import Responses
from la4vla.construct.__main__ import main, run
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.vlm import CACHE
from la4vla.construct.texts.endpoint import Log, read_answer, request_text
from la4vla.types import UserError
from tests.construct.model_server import serving, status
from tests.construct.recorded import TASK, episode, recorded_for_endpoint
from tests.construct.test_write_texts import frames, of


@pytest.fixture
def config(tmp_path, monkeypatch):
    config = recorded_for_endpoint(tmp_path, monkeypatch)
    config.texts.annotator = "endpoint"
    config.texts.questions = ["subtasks", "plan", "actions"]
    config.texts.held_out_scenes = config.texts.held_out_wordings = 0.0
    config.vlm.fps = 8.0
    return config


def log_of(request):
    """(number of the episode, the rows of its log) in a request."""
    text = request["messages"][0]["content"][0]["text"]
    rows = [json.loads(row) for row in re.findall(r"^\d+: (\[.*\])$", text, re.MULTILINE)]
    return int(re.search(r"instruction: task (\d+)", text)[1]), rows


def step(name, rows):
    movement = f"Main movement of {name}."
    return {"STEP_DESCRIPTION": name, "REASONING": "Because.", "MAIN_MOVEMENTS": movement, "ACTIONS": rows}


def answer(rows):
    """The first three rows are one step, the others another."""
    return json.dumps({"steps": [step("Move to Puck", rows[:3]), step("Grasp Puck", rows[3:])]})


def good(request, number):
    return answer(log_of(request)[1])


def annotations(config):
    return list(Ledger(Path(config.out_dir) / "annotations_endpoint.jsonl"))


def test_the_whole_step_and_again_for_nothing(config, capsys):
    with serving(good) as model:
        config.vlm.base_url = model.url
        run(config, "texts")
        assert len(model.requests) == 4
        for row in of(config, "subtasks"):
            assert row.answer == "['Move to Puck', 'Grasp Puck']"
        shown = Log.of(episode(1000), 8.0).frames
        spans = {(shown[0], shown[3]), (shown[3], shown[-1])}
        for row in of(config, "plan"):
            assert row.answer == f"Because. Main movement of {row.instruction}."
            assert row.span in spans and frames(row) == [row.span[0]]
            assert f'task "{row.instruction}"' in row.turns[0].text
        assert len(of(config, "plan")) == 8 and len(of(config, "actions")) == 8
        run(config, "texts")
        config.texts.folder, config.texts.codec = "sentence", {"codec": "sentence"}
        run(config, "texts")
        assert len(model.requests) == 4, "another codec asks nothing"
        (Path(config.out_dir) / "annotations_endpoint.jsonl").unlink()
        run(config, "texts")
        assert len(model.requests) == 4, "the answers are kept"
    assert Responses(Path(config.out_dir) / CACHE).paid() == (4, 4000, 400)


def test_a_request_is_the_papers_prompt_with_the_log_and_all_images(config):
    with serving(good) as model:
        config.vlm.base_url, config.vlm.frames_as = model.url, "images"
        run(config, "texts")
    number, rows = log_of(model.requests[0])
    log = Log.of(replace(episode(number), instruction=f"task {number}"), 8.0)
    content = model.requests[0]["messages"][0]["content"]
    assert content[0]["text"] == request_text(log, f"task {number}")
    assert content[0]["text"].startswith("Attached are images of a robot performing a task, and the real actions")
    assert sum(part["type"] == "image_url" for part in content) == len(log.frames) == len(rows) + 1
    assert model.requests[0]["response_format"]["json_schema"]["name"] == "steps"


def test_the_log_is_the_motion(config):
    """Forward 20 cm, then down, then left; the rows add up to it."""
    log = Log.of(episode(1000), 8.0)
    total = [sum(row[axis] for row in log.rows) for axis in range(3)]
    assert total == pytest.approx([0.2, 0.2, -0.2], abs=0.02)
    assert all(row[3] == 0.0 for row in log.rows), "commands say closed"
    assert all(end - start in (9, 12) for start, end in pairwise(log.frames))


def test_an_unusable_answer_is_complained_about_and_asked_again(config):
    def script(request, number):
        if len(request["messages"]) == 1:
            _, rows = log_of(request)
            return answer([[value + 0.01 for value in row] for row in rows])
        complaint = request["messages"][-1]["content"]
        assert "ACTIONS of step 1 are not the log's rows from row 0 on." in complaint
        return good(request, number)

    with serving(script) as model:
        config.vlm.base_url = model.url
        run(config, "texts")
    assert len(model.requests) == 8
    assert all((row["calls"], row["failed"]) == (2, "") for row in annotations(config))


def test_episodes_without_a_usable_answer_stop_the_step_and_are_asked_about_again(config):
    def script(request, number):
        return "no idea" if log_of(request)[0] == 1002 else good(request, number)

    with serving(script) as model:
        config.vlm.base_url = model.url
        with pytest.raises(UserError, match=r"1 of 4 episodes got no annotation.*1002.*no JSON list"):
            run(config, "texts")
        asked = len(model.requests)
        config.vlm.max_failed_episodes = 1
        run(config, "texts")
        assert len(model.requests) == asked + config.vlm.attempts, "only the one that failed"
        assert {row.episode for row in of(config, "plan")} == {f"{TASK}-{n:06d}" for n in (1000, 1001, 1003)}
    with serving(good) as model:
        config.vlm.base_url, config.vlm.max_failed_episodes = model.url, 0
        run(config, "texts")
        assert len(model.requests) == 1
    assert len(of(config, "plan")) == 8


def test_an_endpoint_that_gives_up_keeps_what_was_paid(config):
    config.vlm.concurrency = 1

    def script(request, number):
        return good(request, number) if number < 2 else status(402)

    with serving(script) as model:
        config.vlm.base_url = model.url
        with pytest.raises(UserError, match="out of credit"):
            run(config, "texts")
    assert len(annotations(config)) == 2 and not (Path(config.out_dir) / "texts").exists()


LOG = Log((0, 3, 6, 9), ((0.01, 0.0, 0.0, 1.0), (0.0, 0.02, 0.0, 1.0), (0.0, 0.0, -0.03, 0.0)))
ROWS = [list(row) for row in LOG.rows]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([], "no JSON list of steps"),
        ([step("a", ROWS[:1]), step("", ROWS[1:])], "Step 2 lacks some of STEP_DESCRIPTION"),
        ([{"STEP_DESCRIPTION": "a", "REASONING": "b", "ACTIONS": ROWS}], "Step 1 lacks"),
        ([step("a", ROWS[:1]), step("b", ROWS[2:])], "ACTIONS of step 2 are not the log's rows from row 1"),
        ([step("a", ROWS), step("b", ROWS[:1])], "ACTIONS of step 2 are not the log's rows from row 3"),
        ([step("a", [row[:3] for row in ROWS])], "ACTIONS of step 1"),
        ([step("a", [["0.01", 0, 0, 1]])], "ACTIONS of step 1"),
        ([step("a", "none")], "ACTIONS of step 1"),
        ([step("a", [[True, 0, 0, 1]])], "ACTIONS of step 1"),
        ([step("a", [])], "ACTIONS of step 1"),
    ],
)
def test_answers_that_are_not_the_episodes_own_are_refused(steps, problem):
    subtasks, problems = read_answer(json.dumps({"steps": steps}), LOG)
    assert subtasks is None and problem in " ".join(problems)


@pytest.mark.parametrize("text", ["", "nothing", "[" * 4000, '{"steps": [{"ACTIONS": [[[[]]]]}]}', "[1, 2]", "null"])
def test_any_text_is_an_answer_or_a_problem(text):
    subtasks, problems = read_answer(text, LOG)
    assert subtasks is None and problems


def test_a_good_answer_may_leave_out_the_end():
    subtasks, problems = read_answer(json.dumps([step("a", ROWS[:2])]), LOG)
    assert not problems and subtasks is not None
    assert [(item.start, item.end, item.label) for item in subtasks] == [(0, 6, "a")]


def test_the_cost_is_known_before(config, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    path = tmp_path / "c.yaml"
    path.write_text(
        f"schema: construct\nout_dir: {config.out_dir}\nread: {{path: {config.read.path}}}\nshards: 2\n"
        "record: {tasks: [pick-place-v3], episodes: 4}\npropose: {min_clip_frames: 8}\n"
        "texts: {annotator: endpoint}\nvlm: {fps: 8.0}\n"
    )
    assert main(["filter", str(path)]) == 0
    capsys.readouterr()
    assert main(["texts", str(path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    log = Log.of(episode(1000), 8.0)
    assert "4 to ask qwen3-vl-plus about, 0 done" in text
    assert f"frames shown   {len(log.frames):.1f} an episode" in text
    assert f"{(22 * len(log.rows) + 660) / 1e3:.3f} K an episode" in text
    with pytest.raises(UserError, match="annotator=endpoint, and kinematic costs nothing"):
        main(["texts", str(path), "texts.annotator=kinematic", "--dry-run"])
    with pytest.raises(UserError, match="no episode has been filtered yet"):
        main(["texts", str(path), f"out_dir={tmp_path}/new", "--dry-run"])
