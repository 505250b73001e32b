"""Why: a policy behind a server has scored 0 of 5 where the same one in process scored 5 of 5, because a seed never
crossed the wire. What is served must be the policy, bit for bit, for every client, and only for those let in."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request
from websockets.sync.client import connect

from la4vla import cli
from la4vla.data.delta import DeltaAction
from la4vla.data.transforms import Chain
from la4vla.serve import wire
from la4vla.serve.client import RemotePolicy
from la4vla.serve.client_log import MAX_KINDS, ClientLog
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.serve.server import PolicyServer, Settings
from la4vla.types import Observation, UserError
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import ARM, HANG_S, VIEWS, random_image, serving

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "arm", ARM, VIEWS)


@pytest.fixture(scope="module")
def policy(folder):
    return ServedPolicy.load(folder)


@pytest.fixture(scope="module")
def url(policy):
    with serving(policy) as (url, _):
        yield url


def observation(number: int, instruction: str = "Lift the bowl.") -> Observation:
    state = np.random.Generator(np.random.Philox(number)).uniform(-0.5, 0.5, 8).astype(np.float32)
    return Observation({"agentview": random_image(number), "wrist": random_image(number + 100)}, state, instruction)


SEEN = [observation(0), observation(1, "push the plate to the left"), observation(2)]
KEYS = [NoiseKey(3, "lift", 4, 0), NoiseKey(3, "push", 0, 7), NoiseKey(0, "lift", 4, 0)]


def spoken(**changes) -> dict:
    """One query of our dialect without a noise key."""
    seen = SEEN[0]
    return {"views": dict(seen.views), "state": seen.state, "instruction": seen.instruction} | changes


def ask(connection, **message) -> dict:
    connection.send(wire.pack(message))
    return wire.unpack(connection.recv(HANG_S))


def gated(policy) -> tuple[ServedPolicy, threading.Event, threading.Event, list[int]]:
    """The policy, which says that it was asked, waits for leave to answer and notes how much it was asked."""
    entered, gate, sizes = threading.Event(), threading.Event(), []

    class Gated(ServedPolicy):
        def infer(self, observations, noise_keys):
            sizes.append(len(noise_keys))
            entered.set()
            assert gate.wait(HANG_S)
            return super().infer(observations, noise_keys)

    return Gated(**vars(policy)), entered, gate, sizes


def until(met) -> None:
    """Waits for a condition that another thread brings about."""
    end = time.monotonic() + HANG_S
    while not met():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_served_is_in_process_bit_for_bit(policy, url):
    with RemotePolicy(url) as remote:
        for seen, key in zip(SEEN, KEYS, strict=True):
            assert np.array_equal(remote.infer([seen], [key])[0], policy.infer([seen], [key])[0])
            assert remote.timing["batch"] == 1 and remote.timing["infer_ms"] > 0 <= remote.timing["queue_ms"]
        together = remote.infer(SEEN, KEYS)
        assert remote.timing["batch"] == 3
        for mine, theirs in zip(policy.infer(SEEN, KEYS), together, strict=True):
            assert np.array_equal(mine, theirs) and theirs.dtype == np.float32


def test_the_handshake_is_the_policys_contract(policy, url):
    with RemotePolicy(url) as remote:
        assert (remote.identity, remote.step, remote.views) == (policy.identity, 7, VIEWS)
        assert remote.embodiment == policy.embodiment
        assert remote.contract["horizon"] == 16 and remote.contract["control_hz"] == 20.0
        remote.check(ARM, VIEWS)
        with pytest.raises(UserError, match=r"control_hz is 20.0 here and 80.0"):
            remote.check(replace(ARM, control_hz=80.0), VIEWS)
        with pytest.raises(UserError, match=r"view `wrist`"):
            remote.check(ARM, ("agentview",))


def test_queries_without_a_key_are_counted_from_the_last_reset(policy, url):
    with connect(f"{url}/rig%201") as connection:
        wire.unpack(connection.recv(HANG_S))
        for key in (NoiseKey(0, "rig 1", 0, 0), NoiseKey(0, "rig 1", 0, 1)):
            answer = ask(connection, type="infer", queries=[spoken()])
            assert np.array_equal(answer["actions"][0], policy.infer(SEEN[:1], [key])[0])
        assert ask(connection, type="reset", seed=5, task="lift", episode=2)["query"] == 0
        answer = ask(connection, type="infer", queries=[spoken()])
        assert np.array_equal(answer["actions"][0], policy.infer(SEEN[:1], [NoiseKey(5, "lift", 2, 0)])[0])
        assert answer["identity"] == policy.identity


@pytest.mark.parametrize(("max_batch", "expected"), [(3, [1, 2, 1, 1]), (1, [1, 1, 1])])
def test_clients_are_batched_and_do_not_see_each_other(policy, max_batch, expected):
    """What waits goes together as far as it fits; the two are asked again one by one after the refusal of one."""
    slow, entered, gate, sizes = gated(policy)
    answers = {}

    def client(url, number, seen):
        with RemotePolicy(url) as remote:
            try:
                answers[number] = remote.infer([seen], [KEYS[number]])[0]
            except UserError as error:
                answers[number] = str(error)

    with serving(slow, max_batch=max_batch) as (url, server):
        cases = [SEEN[0], SEEN[1], observation(2, "word " * 3000)]
        threads = [threading.Thread(target=client, args=(url, *case)) for case in enumerate(cases)]
        threads[0].start()
        assert entered.wait(HANG_S)
        for thread in threads[1:]:
            thread.start()
        until(lambda: server.batcher._waiting.qsize() == 2)
        gate.set()
        for thread in threads:
            thread.join(HANG_S)
    assert sizes == expected
    for number in (0, 1):
        assert np.array_equal(answers[number], policy.infer([SEEN[number]], [KEYS[number]])[0])
    assert "shorten the instruction" in answers[2]


def test_actions_that_are_not_finite_never_reach_a_robot(policy):
    class Overflowing(ServedPolicy):
        def infer(self, observations, noise_keys):
            chunks = super().infer(observations, noise_keys)
            chunks[0][3, 2] = np.nan
            return chunks

    with (
        serving(Overflowing(**vars(policy))) as (url, _),
        RemotePolicy(url) as remote,
        pytest.raises(UserError, match="not finite"),
    ):
        remote.infer(SEEN[:1], KEYS[:1])


def test_a_chunk_that_is_not_finite_is_refused_before_it_is_turned_into_poses(policy, monkeypatch):
    """A rotation of NaN is an exception of scipy's, and what is no UserError ends the server."""
    places = tuple(range(6))
    delta = DeltaAction(places, places, (3, 4, 5), "axis_angle", "base", (0.0, 0.0, 0.0), "own_state")
    chain = policy.processor.chain
    turned = Chain((*chain.transforms[:3], delta, *chain.transforms[3:]))
    turning = replace(policy, processor=replace(policy.processor, chain=turned))
    sample = policy.policy.sample

    def diverging(batch, steps):
        chunks_BTA = sample(batch, steps)
        for row, key in enumerate(batch.keys):
            if key.startswith("push"):
                chunks_BTA[row] = torch.nan
        return chunks_BTA

    monkeypatch.setattr(policy.policy, "sample", diverging)
    with serving(turning) as (url, _), RemotePolicy(url) as remote:
        with pytest.raises(UserError, match="not finite"):
            remote.infer(SEEN, KEYS)
        assert np.array_equal(remote.infer(SEEN[:1], KEYS[:1]), turning.infer(SEEN[:1], KEYS[:1]))


def test_a_path_of_raw_bytes_is_a_name_like_any_other(policy):
    """websockets 15 hands them over as lone surrogates, later ones turn them away."""
    server = PolicyServer(policy, Settings(Path()))
    for path, name in (("/\udcff/", "?"), ("/rig%FF1", "rig\ufffd1"), ("/r\u00e9", "r\u00e9")):
        session = server._session(SimpleNamespace(request=Request(path, Headers())), 7)
        assert session.key() == NoiseKey(0, name, 0, 0)
        assert len(policy.infer(SEEN[:1], [session.key()])) == 1


def test_without_its_libraries_the_command_names_the_cure(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "la4vla.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    assert cli.main(["serve", "anywhere"]) == 2
    assert 'pip install "la4vla[serve]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"type": "infer"}, "no `queries`"),
        ({"type": "infer", "queries": []}, "at least one"),
        ({"type": "stop"}, "`infer` or `reset`"),
        ({"type": "infer", "queries": [spoken(views={"agentview": random_image(0)})]}, "no `wrist`"),
        ({"type": "infer", "queries": [spoken(state=np.zeros(4, np.float32))]}, "embodiment has 8 dims"),
        ({"type": "infer", "queries": [spoken(state=np.full(8, np.nan, np.float32))]}, "not finite"),
        ({"type": "infer", "queries": [spoken(state=[[1.0] * 8])]}, "one row"),
        ({"type": "infer", "queries": [spoken(views={v: random_image(0).astype(np.float32) for v in VIEWS})]}, "uint8"),
        ({"type": "infer", "queries": [spoken(views={v: random_image(0)[None] for v in VIEWS})]}, "[H, W, 3]"),
        ({"type": "infer", "queries": [spoken(seed=1)]}, "no `task`"),
        ({"type": "infer", "queries": [spoken(), spoken()]}, "no `seed`"),
        ({"type": "infer", "queries": [spoken(seed=-1, task="a", episode=0, query=0)]}, "`seed` must be an integer"),
        ({"type": "infer", "queries": [spoken(seed=True, task="a", episode=0, query=0)]}, "`seed` must be an integer"),
        ({"type": "infer", "queries": [spoken(seed=1, task="a", episode=0, query=0)] * 17}, "--max-batch is 16"),
        (
            {"type": "infer", "queries": [spoken(instruction="x" * 20_000)]},
            "`instruction` has 20000 characters; at most",
        ),
        (
            {"type": "infer", "queries": [spoken(seed=1, task="a", episode=0, query=0)] * 65},
            "65 queries came in one message, --max-batch is 16",
        ),
        ({"type": "infer", "queries": [spoken(state=[0.0] * 65)]}, "shape [65]; this policy's embodiment has 8 dims"),
        ({"type": "infer", "queries": [0] * 5000}, "a list or map of 5000 entries, and at most 4096 are read"),
        (
            {"type": "infer", "queries": [spoken(state=np.zeros((0, 4), np.float32))]},
            "`state` is an array of shape [0, 4]",
        ),
        ({"type": "reset", "seed": 1, "task": "a"}, "no `episode`"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence_and_the_next_is_served(url, message, sentence):
    with connect(url) as connection:
        wire.unpack(connection.recv(HANG_S))
        answer = ask(connection, **message)
        assert answer["type"] == "error" and sentence in answer["error"] and "\n" not in answer["error"]
        assert ask(connection, type="infer", queries=[spoken()])["type"] == "actions"


def test_too_large_a_message_closes_its_connection_only(policy):
    with serving(policy, max_bytes=40_000) as (url, _), connect(url) as small, connect(url) as large:
        for connection in (small, large):
            assert wire.unpack(connection.recv(HANG_S))["max_bytes"] == 40_000
        large.send(b"x" * 40_001)
        with pytest.raises(
            ConnectionClosed, match=r"1009 .* over --max-bytes 40000; send smaller images or serve with"
        ):
            large.recv(HANG_S)
        seen = {"views": {view: random_image(0, 32) for view in VIEWS}}
        assert ask(small, type="infer", queries=[spoken(**seen)])["type"] == "actions"


def test_two_full_hd_views_name_the_option_where_people_look(policy, capsys):
    """They are twice what openpi's dialect takes by default, and openpi's clients show the reason of the end."""
    images = {f"observation/{name}": np.zeros((1080, 1920, 3), np.uint8) for name in ("image", "wrist_image")}
    with serving(policy, dialect="openpi") as (url, server), connect(url) as connection:
        connection.recv(HANG_S)
        with pytest.raises(ConnectionClosed, match=rf"1009 .* over --max-bytes {server.max_bytes}; send smaller"):
            connection.send(wire.pack(images))
            connection.recv(HANG_S)
    assert f"client 0: connection closed, the message is over --max-bytes {server.max_bytes}" in capsys.readouterr().err


def test_the_log_has_each_kind_of_error_once_a_connection(policy, capsys):
    wrong = [spoken(state=np.zeros(dims, np.float32)) for dims in (3, 4, 5)]
    wrong += [
        spoken(views={}),
        spoken(instruction=3),
        spoken(state=np.zeros(3, np.float32)),
        spoken(instruction="x" * 20_000),
    ]
    with serving(policy) as (url, _):
        for _ in range(2):
            with connect(url) as connection:
                connection.recv(HANG_S)
                for query in wrong * 2:
                    assert ask(connection, type="infer", queries=[query])["type"] == "error"
    lines = capsys.readouterr().err.splitlines()
    for number in range(2):
        own = [line for line in lines if line.startswith(f"client {number}: ")]
        assert len(own) == 4
        for line, words in zip(own, ("shape [3]", "no `agentview`", "must be text", "20000 characters"), strict=True):
            assert words in line
    assert len(lines) == 8


def test_the_log_of_a_client_that_tries_everything_ends(capsys):
    log = ClientLog("client 7")
    for number in range(1000):
        log.error(f"`{'abcdefghij'[number % 10] * (number // 10 + 1)}` must be text\n, not '{number}'.")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MAX_KINDS + 1 and lines[0] == "client 7: `a` must be text?, not '0'."
    assert lines[-1] == "client 7: further kinds of errors of this connection are not logged"


def test_the_token_opens_and_nothing_else_does(policy):
    with serving(policy, token="s3cret") as (url, _):
        with RemotePolicy(url, token="s3cret") as remote:
            assert remote.identity == policy.identity
        with connect(url, additional_headers={"Authorization": "Api-Key s3cret"}) as connection:
            assert wire.unpack(connection.recv(HANG_S))["type"] == "hello"
        with connect(url.replace("//", "//any:s3cret@")) as connection:
            assert wire.unpack(connection.recv(HANG_S))["type"] == "hello"
        for headers in (
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "Basic ***"},
            {"Authorization": "Bearer"},
        ):
            with pytest.raises(InvalidStatus, match="401"):
                connect(url, additional_headers=headers)
        with pytest.raises(UserError, match="401"):
            RemotePolicy(url, token="other")
        assert healthy(url), "the health check needs no token"


def test_the_command_takes_its_token_from_a_variable_and_none_that_is_empty(folder, monkeypatch, capsys):
    served = []
    monkeypatch.setattr("la4vla.serve.server.serve", lambda settings: served.append(settings) or 0)
    monkeypatch.setenv("SERVE_TOKEN", "s3cret")
    monkeypatch.setenv("EMPTY", "")
    assert cli.main(["serve", str(folder), "--token-env", "SERVE_TOKEN"]) == 0
    assert [settings.token for settings in served] == ["s3cret"]
    for words, sentence in (
        (["--token", ""], "--token is empty; leave it out"),
        (["--token-env", "EMPTY"], "--token-env EMPTY: no such variable, or an empty one; export"),
        (["--token-env", ""], "no such variable"),
    ):
        assert cli.main(["serve", str(folder), *words]) == 2
        assert sentence in capsys.readouterr().err
    assert len(served) == 1


def test_without_a_token_only_this_machine_is_let_in_and_no_page(policy, capsys):
    with serving(policy) as (url, server):
        assert not server.token and url.startswith("ws://127.0.0.1:")
        for _ in range(2):
            with pytest.raises(InvalidStatus, match="403"):
                connect(url, origin="http://a-page-in-the-users-browser.example")
    assert capsys.readouterr().err.splitlines() == [
        "refused (HTTP 403): the origin http://a-page-in-the-users-browser.example is not allowed; if it is no page in "
        "a stranger's browser: --allow-origin http://a-page-in-the-users-browser.example"
    ]
    with serving(policy, allow_origins=("app://robot", "null")) as (url, _):
        for origin in ("app://robot", "null"):
            with connect(url, origin=origin) as connection:
                assert wire.unpack(connection.recv(HANG_S))["type"] == "hello"
        with pytest.raises(InvalidStatus, match="403"):
            connect(url, origin="http://other.example")
    with serving(policy, host="0.0.0.0") as (_, server):
        assert len(server.token) >= 32


def test_a_server_that_breaks_says_so_to_who_waits_and_ends(policy):
    class Broken(ServedPolicy):
        def infer(self, observations, noise_keys):
            raise ZeroDivisionError("a bug")

    with (
        pytest.raises(ZeroDivisionError),
        serving(Broken(**vars(policy))) as (url, _),
        RemotePolicy(url) as remote,
        pytest.raises(UserError, match=r"stopped|lost"),
    ):
        remote.infer(SEEN[:1], KEYS[:1])


def test_a_server_that_is_stopped_answers_what_it_computes_and_refuses_what_waits(policy):
    slow, entered, gate, sizes = gated(policy)
    heard = {}

    def refused(connection):
        """Opens the gate only when the refusal has come: it must not wait for what is being computed."""
        try:
            connection.recv(HANG_S)
        except ConnectionClosed as error:
            heard["refused"] = str(error)
        gate.set()

    with ExitStack() as stack:
        with serving(slow, max_batch=1) as (url, server):
            running, waiting, behind, idle = (stack.enter_context(connect(url)) for _ in range(4))
            for connection in (running, waiting, behind, idle):
                connection.recv(HANG_S)
            running.send(wire.pack({"type": "infer", "queries": [spoken()]}))
            assert entered.wait(HANG_S)
            for connection in (waiting, behind):
                connection.send(wire.pack({"type": "infer", "queries": [spoken()]}))
            until(lambda: server.batcher._waiting.qsize() == 2)
            telling = threading.Thread(target=refused, args=(waiting,))
            telling.start()
        telling.join(HANG_S)
        assert "the server has stopped" in heard["refused"]
        answer = wire.unpack(running.recv(HANG_S))
        assert np.array_equal(answer["actions"][0], policy.infer(SEEN[:1], [NoiseKey(0, "connection", 0, 0)])[0])
        for connection, code in ((running, "1001"), (behind, "1011"), (idle, "1001")):
            with pytest.raises(ConnectionClosed, match=code):
                connection.recv(HANG_S)
    assert sizes == [1]


def test_queries_of_clients_that_have_left_are_not_computed(policy):
    slow, entered, gate, sizes = gated(policy)
    with serving(slow, max_batch=2) as (url, server), connect(url) as running:
        running.recv(HANG_S)
        running.send(wire.pack({"type": "infer", "queries": [spoken()]}))
        assert entered.wait(HANG_S)
        with connect(url) as leaving:
            leaving.recv(HANG_S)
            leaving.send(wire.pack({"type": "infer", "queries": [spoken()]}))
            until(lambda: len(server.batcher._open) == 2)
        until(lambda: len(server.batcher._open) == 1)
        gate.set()
        assert wire.unpack(running.recv(HANG_S))["type"] == "actions"
        assert ask(running, type="infer", queries=[spoken()])["timing"]["batch"] == 1
    assert sizes == [1, 1]


def test_no_server_and_a_taken_port_are_one_sentence(policy, folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="no policy server answers there"):
            RemotePolicy(f"ws://127.0.0.1:{port}")
        taken.listen()
        assert cli.main(["serve", str(folder), "--port", str(port), "--device", "cpu"]) == 2
    assert cli.main(["serve", str(folder / "nowhere")]) == 2
    assert cli.main(["serve", str(folder), "--device", "abacus"]) == 2
    assert cli.main(["serve", str(folder), "--device", "cpu", "--dialect", "klingon"]) == 2
    assert cli.main(["serve", str(folder), "--device", "cpu", "--channels", "rgb"]) == 2
    assert cli.main(["serve", str(folder), "--max-batch", "0"]) == 2
    assert cli.main(["serve", str(folder), "--seed", "-1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    expected = ("choose --port", "no such checkpoint folder", "no such device", "choose one of la4vla", "evo1 has")
    expected += ("from 1 to 64", "--seed must be")
    assert len(errors) == len(expected)
    for line, words in zip(errors, expected, strict=True):
        assert words in line


@pytest.mark.parametrize(
    "url", ["ws://HOST:PORT", "ws://127.0.0.1:80000", "127.0.0.1:8000", "ws://[::1", "ws://a..b", ""]
)
def test_a_bad_address_is_one_sentence(url):
    with pytest.raises(UserError, match=r"not an address .*; give one such as ws://127.0.0.1:8000.$"):
        RemotePolicy(url)


def test_a_server_of_another_dialect_is_refused_and_left(policy, monkeypatch):
    left, talk = threading.Event(), PolicyServer.talk

    async def watched(self, connection):
        await talk(self, connection)
        left.set()

    monkeypatch.setattr(PolicyServer, "talk", watched)
    with serving(policy, dialect="openpi") as (url, _):
        with pytest.raises(UserError, match=r"speaks the dialect openpi; serve with --dialect la4vla"):
            RemotePolicy(url)
        assert left.wait(HANG_S), "the connection was left open"


def test_the_command_serves_says_what_is_strange_and_ends_cleanly(policy, folder):
    """The same command, first as it should be used, then by a client that sends millimetres."""
    command = [sys.executable, "-m", "la4vla.cli", "serve", str(folder), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
        closing_process(process),
    ):
        said = []
        while not said or not (found := re.search(r"ws://\S+", said[-1])):
            said.append(process.stdout.readline())
            assert said[-1], process.stderr.read()
        assert healthy(found[0])
        with RemotePolicy(found[0]) as remote:
            assert np.array_equal(remote.infer(SEEN[:1], KEYS[:1])[0], policy.infer(SEEN[:1], KEYS[:1])[0])
        with connect(found[0]) as connection:
            wire.unpack(connection.recv(HANG_S))
            millimetres = spoken(state=np.array([412, -71, 180, 0.1, 0.2, 0.3, 0.4, 0.4], np.float32))
            first, second = (ask(connection, type="infer", queries=[millimetres]) for _ in range(2))
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 0
        with pytest.raises(UserError, match="no policy server answers there"):
            RemotePolicy(found[0])
        log = process.stderr.read().splitlines()
    assert first["timing"]["outside"] == second["timing"]["outside"] == ["x", "y", "z"]
    for note, value, distance, times in zip(
        first["notes"], ("x is 412", "y is -71", "z is 180"), ("411.3", "70.3", "179.3"), (294, 50.2, 128), strict=True
    ):
        assert note == (
            f"state {value}, which is {distance} outside the trained range of -0.7 to 0.7, {times} times that range; "
            "send x y z rx ry rz left right in this order and in the units of training."
        )
    assert second["notes"] == [] and log == [f"client 1: {note}" for note in first["notes"]]


@contextmanager
def closing_process(process):
    """Ends it when the test fails, which would wait for it forever."""
    try:
        yield
    finally:
        process.kill()


def healthy(url: str) -> bool:
    with urllib.request.urlopen(url.replace("ws://", "http://") + "/healthz", timeout=HANG_S) as answer:
        return answer.status == 200 and answer.read() == b"OK\n"
