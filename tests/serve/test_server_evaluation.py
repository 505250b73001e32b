"""Why: an evaluation over the wire must be the evaluation in process, episode for episode, and the example in the
documentation must run as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.rollout import Job, roll_out
from la4vla.serve.client import RemotePolicy
from la4vla.serve.policy import NoiseKey, ServedPolicy
from tests.benchmarks.fake_env import EMBODIMENT, TASKS, PointEnv, protocol
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import serving

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("run") / "point", EMBODIMENT, ("eye",)))


def episode(policy, job: Job):
    """The outcome of one episode of the fake task under the policy."""
    rules, asked = protocol(), []

    def ask(seen, number):
        asked.append(number)
        return policy.infer([seen], [NoiseKey(0, job.task, job.episode, number)])[0]

    outcome = roll_out(PointEnv(rules, ("eye",)), job, rules, ask)
    assert asked == list(range(len(asked))) and len(asked) > 1
    return outcome.success, outcome.steps, outcome.final_state


def test_an_episode_is_the_same_in_process_and_over_the_wire_in_any_order(policy):
    jobs = [Job(task, number) for task in TASKS for number in range(2)]
    here = {job: episode(policy, job) for job in jobs}
    assert len({state for _, _, (state,) in here.values()}) == len(jobs), "the episodes must differ to prove anything"
    with serving(policy) as (url, _), RemotePolicy(url) as remote:
        remote.check(EMBODIMENT, ("eye",))
        assert {job: episode(remote, job) for job in reversed(jobs)} == here


def test_the_documented_client_runs(policy, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", Path("docs/serving.md").read_text(), re.DOTALL)
    with serving(policy) as (url, _):
        exec(example.replace("ws://127.0.0.1:8000", url), {})
    assert policy.identity in capsys.readouterr().out
