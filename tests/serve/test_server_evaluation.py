"""Why: an evaluation over the wire must be the evaluation in process, row for row, perturbed or not; a server that goes
away must cost no finished episode; and the example in the documentation must run as it stands there."""

import re
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.perturb.perturb import CLEAN, parse
from benchmarks.results import compare, protocols, results
from benchmarks.rollouts import evaluate
from benchmarks.rollouts.evaluate import EvaluationRequest, ServerAddress
from benchmarks.rollouts.rollout import RolloutJob, make_env, roll_out
from la4vla.serve.client import RemotePolicy
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import EpisodeKey, NoiseKey
from la4vla.sim.metaworld import EMBODIMENT as SAWYER
from la4vla.sim.registry import SIMULATORS
from la4vla.types import UserError
from tests.benchmarks.fake_env import EMBODIMENT, POINT, TASKS, protocol
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import HANG_S, serving

torch.set_num_threads(1)
RULES = protocol(episodes=2, horizon=12)
MEASURED = dict.fromkeys(("wall_s", "seconds", "latencies_ms"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("run") / "point", EMBODIMENT, ("eye",)))


def request_(url: str, out: Path, **changes) -> EvaluationRequest:
    base = EvaluationRequest(
        simulator=POINT, protocol=RULES, checkpoint=None, untrained=False, out=out, workers=2, tasks=(), episodes=None,
        videos=0, device="", command="", variants=(), server=ServerAddress(url, ""),
    )  # fmt: skip
    return replace(base, **changes)


def keyed(folder: Path) -> dict:
    """Everything in the rows that is not a measured time."""
    return {(row.task, row.episode): replace(row, **MEASURED) for row in results.read_rows(folder)}


def episode(policy, job: RolloutJob, rules=None):
    """The outcome of one episode of the fake task under the policy."""
    rules, asked = rules or protocol(), []

    def ask(seen, number):
        asked.append(number)
        return policy.infer([seen], [NoiseKey(0, job.task, job.episode, number)])[0]

    outcome = roll_out(make_env(POINT, rules, ("eye",)), job, rules, ask)
    assert asked == list(range(len(asked))) and len(asked) > 1
    return outcome.success, outcome.steps, outcome.final_state


def test_an_episode_is_the_same_in_process_and_over_the_wire_in_any_order(policy):
    jobs = [RolloutJob(task, number) for task in TASKS for number in range(2)]
    here = {job: episode(policy, job) for job in jobs}
    assert len({state for _, _, (state,) in here.values()}) == len(jobs), "the episodes must differ to prove anything"
    with serving(policy) as (url, _), RemotePolicy(url) as remote:
        remote.check(EMBODIMENT, ("eye",))
        assert {job: episode(remote, job) for job in reversed(jobs)} == here


@pytest.mark.sim
@pytest.mark.slow
def test_metaworld_served_is_metaworld_in_process_row_for_row(tmp_path):
    """Clean, with noise in the pixels and with another light in the scene; one worker, so that batches are the same."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", SAWYER, ("corner4",))
    rules = protocols.load("metaworld/quickstart-v1", ["groups={easy: [reach-v3]}", "horizon=16", "image_size=112"])
    here = request_(
        "", tmp_path / "here", simulator=SIMULATORS["metaworld"], protocol=rules, checkpoint=checkpoint, device="cpu",
        workers=1, episodes=2, variants=parse(["gaussian_noise:5", "light:5"]), server=None,
    )  # fmt: skip
    evaluate.evaluate(here)
    served = ServedPolicy.load(checkpoint)
    with serving(served) as (url, _):
        there = replace(here, out=tmp_path / "there", checkpoint=None, device="", server=ServerAddress(url, ""))
        evaluate.evaluate(there)
        assert results.read_run(there.out / "clean")["checkpoint"] == url
    ends = set()
    for arm in ("clean", "gaussian_noise_5", "light_5"):
        rows = keyed(there.out / arm)
        assert rows == keyed(here.out / arm) and len(rows) == 2
        assert {(row.policy, row.step) for row in rows.values()} == {(served.identity, 7)}
        ends |= {tuple(row.final_state) for row in rows.values()}
        paired = compare.folders(here.out / arm, there.out / arm)
        assert "reach-v3" in paired.table()
    assert len(ends) == 6, "an episode or a perturbation that changes nothing proves nothing"


@pytest.mark.slow
def test_a_server_that_goes_away_costs_no_finished_episode(policy, tmp_path, capsys):
    sizes = []

    class Breaking(ServedPolicy):
        def infer(self, observations, noise_keys):
            sizes.append(len(noise_keys))
            if sum(sizes) > 12:  # an episode has three queries
                raise ZeroDivisionError("a bug")
            return super().infer(observations, noise_keys)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = request_(f"ws://127.0.0.1:{port}", tmp_path / "out")
    with (
        pytest.raises(ZeroDivisionError),
        serving(Breaking(**vars(policy)), port=port),
        pytest.raises(UserError, match=r"the connection is lost .* finished episodes are in .*/out, and the same"),
    ):
        evaluate.evaluate(asked)
    kept = keyed(asked.out)
    assert 1 <= len(kept) < 6
    with pytest.raises(UserError, match=r"no policy server answers there"):
        evaluate.evaluate(asked)
    with serving(policy, port=port):
        assert evaluate.evaluate(replace(asked, workers=1))[CLEAN].micro.n == 6
    rows = keyed(asked.out)
    assert kept.items() <= rows.items() and f"{len(kept)} already there" in capsys.readouterr().out
    for (task, number), row in rows.items():  # to fp32 rounding: the batches were others
        success, steps, final = episode(policy, RolloutJob(task, number), RULES)
        assert (row.success, row.steps) == (success, steps)
        assert row.final_state == pytest.approx(final, abs=1e-4)


class Ragged(ServedPolicy):
    """Its chunks grow with the query's number. Writes down which episodes were opened."""

    opened: ClassVar[list] = []

    def open(self, episode):
        self.opened.append(episode)

    def infer(self, observations, noise_keys):
        chunks = super().infer(observations, noise_keys)
        return [chunk[: 1 + key.query] for chunk, key in zip(chunks, noise_keys, strict=True)]


def test_chunks_of_any_length_and_the_begin_of_episodes_pass_through_the_server(policy):
    ragged, seen = Ragged(**vars(policy)), make_env(POINT, RULES, ("eye",)).reset(TASKS[0], 0)
    keys = [NoiseKey(0, TASKS[0], episode, query) for episode in (3, 4) for query in (0, 2)]
    with serving(ragged) as (url, _), RemotePolicy(url) as remote:
        chunks = remote.infer([seen] * 4, keys)
        remote.infer([seen], [NoiseKey(0, TASKS[0], 3, 1)])
    assert [len(chunk) for chunk in chunks] == [1, 3, 1, 3]
    for chunk, other in zip(chunks, ragged.infer([seen] * 4, keys), strict=True):
        np.testing.assert_array_equal(chunk, other)
    assert ragged.opened == [EpisodeKey(TASKS[0], 3, 0), EpisodeKey(TASKS[0], 4, 0)]


def test_more_queries_than_the_server_computes_together_go_in_several_messages(policy):
    jobs = [RolloutJob(TASKS[0], number) for number in range(3)]
    seen = [make_env(POINT, RULES, ("eye",)).reset(job.task, job.episode) for job in jobs]
    keys = [NoiseKey(0, job.task, job.episode, 0) for job in jobs]
    with serving(policy, max_batch=2) as (url, _), RemotePolicy(url) as remote:
        chunks = remote.infer(seen, keys)
        assert remote.timing["batch"] == 1 and len(chunks) == 3
        for chunk, one, key in zip(chunks, seen, keys, strict=True):
            assert chunk == pytest.approx(policy.infer([one], [key])[0], abs=2e-5)


def test_a_late_answer_is_not_taken_for_the_next(policy):
    gate = threading.Event()

    class Slow(ServedPolicy):
        def infer(self, observations, noise_keys):
            assert gate.wait(HANG_S)
            return super().infer(observations, noise_keys)

    seen = make_env(POINT, RULES, ("eye",)).reset(TASKS[0], 0)
    with serving(Slow(**vars(policy))) as (url, _), RemotePolicy(url) as remote:
        remote.timeout_s = 0.2
        with pytest.raises(UserError, match=r"no answer in 0\.2 s"):
            remote.infer([seen], [NoiseKey(0, TASKS[0], 0, 0)])
        gate.set()
        with pytest.raises(UserError, match="the connection is lost"):
            remote.infer([seen], [NoiseKey(0, TASKS[1], 0, 0)])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--server", "ws://127.0.0.1:9", "--expert"], "not allowed with"),
        (["--server", "ws://127.0.0.1:9", "--untrained"], "not --expert or --server"),
        (["--server", "ws://127.0.0.1:9", "--device", "cpu"], "leave it out beside --server"),
        (["--server", "ws://127.0.0.1:9", "--token-env", "NO_SUCH_TOKEN"], "export the token"),
        (["--server", "ws://any:s3cret@127.0.0.1:9"], "use --token-env"),
        (["--expert", "--token-env", "PATH"], "--token-env is for --server"),
        (["--server", ""], "--server is empty; give ws://HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, capsys, options, sentence):
    arguments = ["metaworld", "--protocol", "metaworld/quickstart-v1", "--out", str(tmp_path / "out"), *options]
    try:
        command.main(arguments)
    except UserError as error:
        assert sentence in str(error)
    except SystemExit:
        assert sentence in capsys.readouterr().err
    else:
        pytest.fail("was not refused")
    assert not (tmp_path / "out").exists()


def test_the_command_sends_the_token_of_its_variable(policy, tmp_path, monkeypatch):
    monkeypatch.setenv("POLICY_TOKEN", "s3cret")
    monkeypatch.setitem(command.SIMULATORS, "metaworld", POINT)
    monkeypatch.setattr(protocols, "load", lambda title, changes: RULES)
    evaluated = []
    monkeypatch.setattr(evaluate, "open_conditions", lambda request, policy: evaluated.append((request, policy)) or [])
    with serving(policy, token="s3cret") as (url, _):
        options = ["metaworld", "--protocol", "any", "--out", str(tmp_path), "--server", url]
        with pytest.raises(UserError, match=r"HTTP 401; give the token"):
            command.main(options)
        assert command.main([*options, "--token-env", "POLICY_TOKEN"]) == 0
    ((request, remote),) = evaluated
    assert remote.identity == policy.identity and "s3cret" not in request.command + repr(request)


def test_without_its_libraries_the_command_names_the_cure(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "la4vla.serve.client", raising=False)
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(UserError, match=r"la4vla\[serve\]"):
        evaluate.open_policy(request_("ws://127.0.0.1:9", tmp_path))


def test_the_documented_client_and_loop_run(policy, capsys):
    example, loop = re.findall(r"```python\n(.*?)```", Path("docs/serving.md").read_text(), re.DOTALL)
    commands, names = [], {}
    robot = {
        "cameras": lambda: {name: np.zeros((112, 112, 3), np.uint8) for name in policy.views},
        "state": lambda: np.zeros(len(policy.embodiment.state.names), np.float32),
        "command": commands.append,
        "episode": 0,
    }
    with serving(policy) as (url, _):
        exec(example.replace("ws://127.0.0.1:8000", url), names)
        with RemotePolicy(url) as remote:
            exec(loop, names | robot | {"policy": remote})
    assert policy.identity in capsys.readouterr().out
    assert len(commands) == 100 * (policy.spec.horizon // 2) and np.isfinite(commands).all()
