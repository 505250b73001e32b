"""Why: requests cost money and endpoints fail. What was paid for must never be lost or paid for twice, whatever the
server does and wherever the process dies, and one bad episode must not stop the other thousands. A real server on this
machine speaks the protocol; the whole pipeline runs against it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from la4vla.chat.endpoint import RateLimit, retry_after
from la4vla.chat.responses import Reply, Responses
from la4vla.construct import steps
from la4vla.construct.__main__ import run
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.vlm import CACHE
from la4vla.construct.recording.store import episode_path, write_episode
from la4vla.data.shards.writer import read_index
from la4vla.types import UserError
from tests.construct.model_server import CUT, HANG, HTML, completion, serving, status
from tests.construct.recorded import FRAMES, NUMBERS, TASK, episode, recorded_for_endpoint


def segment(label, words, start, end):
    return {"subaction": label, "status": "EMPTY", "instruction": words, "start": start, "end": end}


SEGMENTS = [
    segment("move", "move the gripper forward", 0.0, 0.3),
    segment("move", "move the gripper down", 0.4, 0.6),
    segment("move", "move the gripper left", 0.65, 1.0375),
]
GOOD = json.dumps({"segments": SEGMENTS})
OUT_OF_RANGE = json.dumps([segment("move", "move the gripper left", 7.0, 9.0)])


@pytest.fixture
def config(tmp_path, monkeypatch):
    config = recorded_for_endpoint(tmp_path, monkeypatch)
    config.proposer = "vlm"
    return config


def asked(request):
    """The number of the episode that a request is about."""
    return int(re.search(r"task (\d+)", json.dumps(request["messages"]))[1])


def propose(config, script, **options):
    """The step against a server; returns the server's record."""
    with serving(script, **options) as model:
        config.vlm.base_url = model.url
        run(config, "propose")
    return model


def stored(config):
    """Episode number -> its row, of those that are done."""
    ledger = Ledger(Path(config.out_dir) / steps.CANDIDATES)
    return {int(row["key"].rsplit("-", 1)[1]): row for row in ledger if row["of"]}


def paid(config):
    return Responses(Path(config.out_dir) / CACHE).paid()


def test_the_whole_pipeline_and_again_for_nothing(config):
    with serving(lambda request, number: GOOD) as model:
        config.vlm.base_url = model.url
        run(config, "shards")
        assert len(model.requests) == 4
        assert read_index(f"{config.out_dir}/la").clips == read_index(f"{config.out_dir}/vla").clips == 12
        rows = stored(config)
        assert all((row["tokens_in"], row["tokens_out"], row["calls"]) == (1000, 100, 1) for row in rows.values())
        run(config, "shards")
        Path(config.out_dir, steps.CANDIDATES).unlink()
        config.propose.bend_tolerance += 0.001  # of the row's `of`, but of neither proposer nor judge
        run(config, "shards")
        assert len(model.requests) == 4
    assert [row["tokens_in"] for row in stored(config).values()] == [0] * 4
    assert {key: row["candidates"] for key, row in stored(config).items()} == {
        key: row["candidates"] for key, row in rows.items()
    }
    assert paid(config) == (4, 4000, 400)


def test_a_request_is_what_the_settings_say(config):
    config.vlm.model = "some-model"
    model = propose(config, lambda request, number: GOOD)
    request = model.requests[0]
    assert (request["model"], request["temperature"]) == ("some-model", 0.1)
    assert request["response_format"]["type"] == "json_schema"
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["segments"]
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert model.headers[0]["authorization"] == "Bearer sesame"
    assert sorted(map(asked, model.requests)) == list(NUMBERS)


def test_other_settings_ask_again_and_another_server_does_not(config):
    assert len(propose(config, lambda request, number: GOOD).requests) == 4
    assert len(propose(config, lambda request, number: GOOD).requests) == 0
    config.vlm.temperature = 0.2
    config.vlm.answer_format = "json_object"
    model = propose(config, lambda request, number: f"```json\n{GOOD}\n```")
    assert [request["response_format"] for request in model.requests] == [{"type": "json_object"}] * 4


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [("[{]", "no complete JSON"), (OUT_OF_RANGE, "outside the episode's 83 frames"), ("", "no complete JSON")],
)
def test_an_unusable_answer_is_asked_again_with_what_is_wrong(config, bad, complaint):
    model = propose(config, lambda request, number: bad if len(request["messages"]) == 2 else GOOD)
    assert len(model.requests) == 8
    for request in model.requests:
        if len(request["messages"]) == 4:
            assert complaint in request["messages"][3]["content"]
    assert all((row["calls"], row["tokens_in"]) == (2, 2000) for row in stored(config).values())
    Path(config.out_dir, steps.CANDIDATES).unlink()
    assert len(propose(config, lambda request, number: GOOD).requests) == 0


def test_a_segment_that_cannot_be_used_is_left_out_and_written_down(config):
    answer = json.dumps([*SEGMENTS[:2], segment("juggle", "move the gripper left", 0.65, 1.03)])
    model = propose(config, lambda request, number: answer)
    assert len(model.requests) == 4
    for row in stored(config).values():
        assert [item["instruction"] for item in row["candidates"]] == [item["instruction"] for item in SEGMENTS[:2]]
        assert len(row["rejected"]) == 1
        assert "juggle" in row["rejected"][0]


def odd(content=GOOD, **usage):
    """An answer whose message is `content`, which may be anything; usage: of it."""
    answer = completion("")
    answer["choices"][0]["message"]["content"] = content
    return 200, {}, {**answer, "usage": {**answer["usage"], **usage}}


PARTS = [
    {"type": "thinking", "text": "perhaps []"},
    {"type": "text", "text": GOOD[:50]},
    {"type": "text", "text": None},
    {"type": "text", "text": GOOD[50:]},
]


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (odd(PARTS), (1000, 100)),
        (odd(prompt_tokens=None), (0, 100)),
        (odd(prompt_tokens=None, completion_tokens="many"), (0, 0)),
        ((200, {}, {**completion(GOOD), "usage": None}), (0, 0)),
        ((200, {}, {**completion(GOOD), "usage": "free"}), (0, 0)),
    ],
    ids=["parts", "null tokens", "odd tokens", "null usage", "odd usage"],
)
def test_an_answer_of_another_form_is_kept_and_read(config, answer, tokens):
    assert len(propose(config, lambda request, number: answer).requests) == 4
    assert all((row["tokens_in"], row["tokens_out"]) == tokens for row in stored(config).values())
    assert all(len(row["candidates"]) == 3 for row in stored(config).values())
    assert paid(config) == (4, 4 * tokens[0], 4 * tokens[1])
    Path(config.out_dir, steps.CANDIDATES).unlink()
    assert propose(config, lambda request, number: answer).requests == []


@pytest.mark.parametrize("content", [None, [], PARTS[:1]], ids=["null", "no parts", "thoughts only"])
def test_an_answer_without_a_text_is_paid_for_and_asked_again(config, content):
    model = propose(config, lambda request, number: odd(content) if len(request["messages"]) == 2 else GOOD)
    assert len(model.requests) == 8
    assert paid(config) == (8, 8000, 800)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": GOOD}]},
        odd(3)[2],
        odd({"text": GOOD})[2],
    ],
    ids=json.dumps,
)
def test_what_is_no_chat_completion_is_asked_for_again_and_never_kept(config, body):
    model = propose(config, lambda request, number: GOOD if number > 1 else (200, {}, body))
    assert len(model.requests) == 6
    assert paid(config) == (4, 4000, 400)


def test_a_list_of_parts_that_was_kept_before_is_read(config):
    propose(config, lambda request, number: GOOD)
    Path(config.out_dir, steps.CANDIDATES).unlink()
    for path in Path(config.out_dir, CACHE).rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "text": PARTS}))
    assert propose(config, lambda request, number: GOOD).requests == []
    assert all(len(row["candidates"]) == 3 for row in stored(config).values())


@pytest.mark.parametrize(
    "trouble",
    [status(500), status(503), status(429), status(408), HANG, CUT, HTML],
    ids=["500", "503", "429", "408", "hang", "cut", "html"],
)
def test_a_server_that_falters_is_asked_again(config, trouble):
    config.vlm.concurrency = 4
    if trouble == HANG:
        config.vlm.timeout_s = 1.0
    seen = Counter()

    def script(request, number):
        seen[asked(request)] += 1
        return trouble if seen[asked(request)] <= 2 else GOOD

    assert len(propose(config, script).requests) == 12
    assert all(row["calls"] == 3 and row["candidates"] for row in stored(config).values())


@pytest.mark.parametrize(
    ("trouble", "cure", "requests"),
    [
        (status(500), "500.*try later", 6),
        (HANG, "vlm.timeout_s", 6),
        (HTML, "/v1", 6),
        (status(429), "requests_per_minute", 6),
        (status(429, code="insufficient_quota"), "top up", 6),
        (status(429, {"Retry-After": "86400"}), "86400 s", 1),
        (status(401), "TEST_KEY", 1),
        (status(402), "top up", 1),
        (status(400, code="Arrearage"), "top up", 1),
        (status(403), "vlm.model", 1),
        (status(404), "vlm.base_url", 1),
    ],
)
def test_an_endpoint_that_is_gone_is_one_sentence_and_nothing_is_lost(config, trouble, cure, requests):
    config.vlm.concurrency = 1
    if trouble == HANG:
        config.vlm.timeout_s = 0.5
    with serving(lambda request, number: trouble if asked(request) > 1001 else GOOD) as model:
        config.vlm.base_url = model.url
        with pytest.raises(UserError, match=cure) as caught:
            run(config, "propose")
    assert "\n" not in str(caught.value)
    assert Counter(map(asked, model.requests)) == {1000: 1, 1001: 1, 1002: requests}
    assert set(stored(config)) == {1000, 1001}
    model = propose(config, lambda request, number: GOOD)
    assert list(map(asked, model.requests)) == [1002, 1003]
    assert set(stored(config)) == set(NUMBERS)


def test_a_server_that_is_not_there(config):
    config.vlm.base_url = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"127.0.0.1:9/v1 cannot be reached.*vlm.base_url"):
        run(config, "propose")


def test_what_is_under_way_when_another_episode_stops_the_step_is_kept(config):
    config.vlm.concurrency = 4
    all_there = threading.Barrier(4)

    def script(request, number):
        all_there.wait(30)
        if asked(request) == 1000:
            return status(401)
        time.sleep(0.3)
        return GOOD

    with pytest.raises(UserError, match="401"):
        propose(config, script)
    assert set(stored(config)) == {1001, 1002, 1003}


def test_episodes_without_a_usable_answer_are_counted_after_all_others_and_asked_about_again(config):
    def bad_one(request, number):
        return "no" if asked(request) == 1000 else GOOD

    with pytest.raises(UserError, match=r"1 of 4 episodes.*001000.*4 answers.*max_failed_episodes=1"):
        propose(config, bad_one)
    assert set(stored(config)) == {1001, 1002, 1003}
    config.vlm.max_failed_episodes = 1
    model = propose(config, bad_one)
    assert list(map(asked, model.requests)) == [1000] * config.vlm.attempts
    run_on = propose(config, lambda request, number: GOOD)
    assert list(map(asked, run_on.requests)) == [1000]
    assert stored(config)[1000]["candidates"]
    assert paid(config) == (3 + 4 + 4 + 1, 12000, 1200)


def test_failed_episodes_that_are_allowed_make_no_clips(config):
    config.vlm.max_failed_episodes = 1
    with serving(lambda request, number: "no" if asked(request) == 1000 else GOOD) as model:
        config.vlm.base_url = model.url
        run(config, "shards")
    assert read_index(f"{config.out_dir}/la").clips == 9


@pytest.mark.parametrize("step", ["review", "filter", "shards"])
def test_steps_after_the_proposals_neither_ask_nor_need_a_key(config, monkeypatch, step):
    config.vlm.max_failed_episodes = 1
    model = propose(config, lambda request, number: "no" if asked(request) == 1000 else GOOD)
    assert len(model.requests) == 3 + config.vlm.attempts
    monkeypatch.delenv("TEST_KEY")
    with serving(lambda request, number: GOOD) as model:
        config.vlm.base_url = model.url
        run(config, step)
        config.vlm.max_failed_episodes = 0
        with pytest.raises(UserError, match=r"1 of 4 episodes.*construct propose` asks about these episodes again"):
            run(config, step)
        for asks in ("propose", ""):
            with pytest.raises(UserError, match="TEST_KEY is empty"):
                run(config, asks)
        assert model.requests == []
        monkeypatch.setenv("TEST_KEY", "sesame")
        run(config, "")
        assert list(map(asked, model.requests)) == [1000]
    assert read_index(f"{config.out_dir}/la").clips == 12


def test_episodes_that_failed_under_other_settings_are_asked_about_like_all_others(config):
    config.vlm.max_failed_episodes = 1
    propose(config, lambda request, number: "no" if asked(request) == 1000 else GOOD)
    config.vlm.model = "another-model"
    with serving(lambda request, number: GOOD) as model:
        config.vlm.base_url = model.url
        run(config, "filter")
        assert sorted(map(asked, model.requests)) == list(NUMBERS)


def test_a_request_that_is_refused_costs_its_episode_only(config):
    refusal = status(400, code="data_inspection_failed", message="inappropriate\ncontent")
    with pytest.raises(UserError, match=r"1 of 4 episodes.*400 \(.*inappropriate content"):
        propose(config, lambda request, number: refusal if asked(request) == 1001 else GOOD)
    assert set(stored(config)) == {1000, 1002, 1003}


def test_a_conversation_that_ends_in_a_refusal_begins_anew(config):
    with pytest.raises(UserError, match="4 of 4 episodes"):
        propose(config, lambda request, number: "no" if len(request["messages"]) == 2 else status(400))
    model = propose(config, lambda request, number: GOOD)
    assert [len(request["messages"]) for request in model.requests] == [2] * 4


def test_a_server_that_refuses_everything_is_not_asked_about_every_episode(config):
    for number in range(1004, 1020):
        shown = replace(episode(number), instruction=f"task {number}")
        write_episode(episode_path(Path(config.read.path), TASK, number), shown)
    config.record.episodes = 20
    with serving(lambda request, number: status(400, message="unknown part video")) as model:
        config.vlm.base_url = model.url
        with pytest.raises(UserError, match=r"unknown part video.*vlm.frames_as"):
            run(config, "propose")
    assert len(model.requests) < 14


def test_retry_after_is_waited_for(config):
    config.vlm.concurrency = 1
    model = propose(config, lambda request, number: GOOD if number else status(429, {"Retry-After": "1"}))
    assert len(model.requests) == 5
    assert model.times[1] - model.times[0] >= 0.95


def test_a_pause_holds_back_all_who_wait():
    limit = RateLimit(60)
    limit.wait()
    turns = []
    threads = [threading.Thread(target=lambda: (limit.wait(), turns.append(time.monotonic()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    limit.pause(1.2)  # instead of 1 s
    for thread in threads:
        thread.join()
    assert turns[0] >= begin + 1.2
    assert turns[1] >= begin + 2.2


@pytest.mark.parametrize(
    ("header", "seconds"), [({}, None), ({"retry-after": "2.5"}, 2.5), ({"retry-after": "soon"}, None),
                            ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after(header) == seconds


def test_requests_are_as_far_apart_as_the_rate_says(config):
    config.vlm.requests_per_minute = 120
    config.vlm.concurrency = 4
    times = propose(config, lambda request, number: GOOD).times
    assert max(times) - min(times) >= 3 * 0.5 - 0.3


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_episodes_are_in_flight_as_allowed(config, at_once):
    config.vlm.concurrency = at_once
    together = threading.Barrier(at_once)

    def script(request, number):
        if number < at_once:
            together.wait(30)
        return GOOD

    assert propose(config, script, delay_s=0.1).most_at_once == at_once


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [("base_url", "", "vlm.base_url is empty"), ("api_key_variable", "NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is empty")],
)
def test_what_is_missing_is_said_before_anything_is_sent(config, name, value, cure):
    with serving(lambda request, number: GOOD) as model:
        config.vlm.base_url = model.url
        setattr(config.vlm, name, value)
        with pytest.raises(UserError, match=cure):
            run(config, "propose")
    assert model.requests == []


def test_a_kill_keeps_what_was_paid_for(config, tmp_path):
    """The third episode's answer never comes; the process is killed while it waits."""
    source = tmp_path / "construct.yaml"
    with serving(lambda request, number: HANG if asked(request) == 1002 else GOOD) as model:
        source.write_text(
            f"schema: construct\nproposer: vlm\nout_dir: {config.out_dir}\nread: {{path: {config.read.path}}}\n"
            f"record: {{tasks: [{TASK}], episodes: 4}}\nshards: 2\npropose: {{min_clip_frames: 8}}\n"
            f"vlm: {{base_url: '{model.url}', api_key_variable: TEST_KEY, concurrency: 1}}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "la4vla.construct", "propose", str(source)], env={**os.environ, "TEST_KEY": "x"}
        )
        deadline = time.monotonic() + 60
        while 1002 not in map(asked, list(model.requests)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert set(stored(config)) == {1000, 1001}
    assert paid(config) == (2, 2000, 200)
    config.vlm.concurrency = 1
    assert list(map(asked, propose(config, lambda request, number: GOOD).requests)) == [1002, 1003]
    assert [row["candidates"][-1]["end"] for row in stored(config).values()] == [FRAMES] * 4


def test_a_damaged_reply_is_named(tmp_path):
    responses = Responses(tmp_path)
    responses.put("abc", Reply("text", 3, 4))
    responses.put("abc", Reply("new", 3, 4))
    assert responses.get("abc") == Reply("new", 3, 4)
    assert responses.paid() == (2, 6, 8)
    (tmp_path / "ab" / "abc.json").write_text("{")
    with pytest.raises(UserError, match=r"abc\.json.*delete"):
        responses.get("abc")
