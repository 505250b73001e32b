"""Why: parallel workers and batched queries are where episodes start to depend on each other, where crashes turn into
failures, and where a killed evaluation loses its hours. Real processes, a fake simulator."""

import multiprocessing
import os
import re
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.rollouts import runner as runner_module
from benchmarks.rollouts.rollout import RolloutJob, make_env, roll_out
from benchmarks.rollouts.runner import Runner, TaskQueue
from benchmarks.speed import evaluation_throughput
from la4vla.serve.policy_like import EpisodeKey, NoiseKey
from la4vla.sim import render
from la4vla.types import UserError
from tests.benchmarks.fake_env import POINT, TASKS, PointEnv, Pusher, protocol

pytestmark = pytest.mark.slow
ALL = [RolloutJob(task, episode) for task in TASKS for episode in range(3)]


def run(jobs, tmp_path, workers=1, policy=None, **changes):
    """job -> FinishedEpisode, and the policy."""
    policy = policy or Pusher()
    with Runner(POINT, protocol(**changes), policy, ("eye",), workers, tmp_path / "logs") as runner:
        return {finished.job: finished for finished in runner.run(jobs)}, policy


def facts(finished):
    return {job: (end.outcome.success, end.outcome.steps, end.outcome.final_state) for job, end in finished.items()}


def outcome(job, policy):
    rules = protocol()
    ask = lambda seen, number: policy.infer([seen], [NoiseKey(0, job.task, job.episode, number)])[0]  # noqa: E731
    return roll_out(make_env(POINT, rules, ("eye",)), job, rules, ask)


def alone(job, policy=None):
    end = outcome(job, policy or Pusher())
    return end.success, end.steps, end.final_state


def test_full_run_equals_each_episode_alone_in_any_order_and_number_of_workers(tmp_path):
    reference = {job: alone(job) for job in ALL}
    assert {success for success, _, _ in reference.values()} == {True, False}, "the fake task must decide something"
    straight, policy = run(ALL, tmp_path, workers=2, policy=Pusher(seconds=0.02))
    backwards, _ = run(ALL[::-1], tmp_path)
    assert facts(straight) == facts(backwards) == reference
    assert max(len(batch) for batch in policy.batches) > 1, "queries of different workers were never batched"
    keys = [key for batch in policy.batches for key in batch]
    assert len(keys) == len(set(keys)) == sum(end.outcome.queries for end in straight.values())


def test_the_expert_drives_through_the_same_runner(tmp_path):
    with Runner(POINT, protocol(), None, (), 1, tmp_path) as runner:
        finished = list(runner.run(ALL[:3]))
    assert all(end.outcome.success for end in finished) and runner.spent.queries == 0


def test_one_env_in_a_loop_is_timed_on_the_episodes_of_the_runner():
    """The policy's pause dominates, so that the seconds printed have a known least."""
    said = evaluation_throughput.compare(POINT, protocol(), Pusher(seconds=0.02), ("eye",), ALL, workers=2, rounds=1)
    hourly = {
        name: float(rate) for name, rate in re.findall(r"^(one core|one env|parallel) +([\d.]+) episodes/h", said, re.M)
    }
    queries = sum(outcome(job, Pusher()).queries for job in ALL)
    assert all(0 < hourly[name] <= 3600 * len(ALL) / (0.02 * queries) for name in ("one core", "one env"))
    ratios = [float(number) for number in re.findall(r"parallel / one \w+ ([\d.]+)", said)]
    wanted = [hourly["parallel"] / hourly[name] for name in ("one core", "one env")]
    assert ratios == pytest.approx(wanted, rel=0.01)
    assert f"same success in {len(ALL)} of {len(ALL)} episodes" in said


def say_gpu(views, *settings) -> PointEnv:
    print("draws on", os.environ.get("MUJOCO_EGL_DEVICE_ID"), "of", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    return PointEnv(views, *settings)


def test_workers_share_out_the_gpus(tmp_path, monkeypatch):
    """robosuite refuses a number that CUDA's mask lacks, so the mask goes, but not from the policy's own process."""
    monkeypatch.setattr(render, "gpus", lambda: (4, 6))
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    simulator = replace(POINT, make_env=say_gpu)
    with Runner(simulator, protocol(), Pusher(seconds=0.02), ("eye",), 2, tmp_path) as runner:
        finished = list(runner.run(ALL))
    said = [(tmp_path / f"worker-{number}.log").read_text() for number in (0, 1)]
    assert said == ["draws on 4 of None\n", "draws on 6 of None\n"]
    assert {end.gpu for end in finished} == {4, 6}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_a_crash_is_rerun_once_and_a_second_one_is_an_error_not_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("POINT_MARKERS", str(tmp_path))
    once, always = RolloutJob("crash-once-x", 0), RolloutJob("crash-x", 5)
    finished, _ = run([once, *ALL[:4], always], tmp_path, workers=2)
    mended, lost = finished.pop(once), finished.pop(always)
    assert mended.attempts == 2 and mended.outcome is not None and not mended.error
    assert lost.attempts == 2 and lost.outcome is None
    assert "the point exploded" in lost.error and "exit status 3" in lost.error
    assert all(end.attempts == 1 for end in finished.values())
    assert facts(finished) == {job: alone(job) for job in ALL[:4]}


class Noisy(PointEnv):
    """Dies as MuJoCo does: what its destructors say comes last."""

    def reset(self, task, episode):
        print("RuntimeError: no GPU 99\nException ignored in: <function Renderer.__del__>", file=sys.stderr)
        print("AttributeError: 'Renderer' object has no attribute '_mjr_context'", file=sys.stderr, flush=True)
        os._exit(1)


def test_the_reason_of_a_crash_is_neither_a_destructors_nor_an_earlier_workers(tmp_path):
    (tmp_path / "worker-0.log").write_text("of an earlier run\nException ignored in: <function X.__del__>\n")
    with Runner(replace(POINT, make_env=Noisy), protocol(), Pusher(), ("eye",), 1, tmp_path) as runner:
        (lost,) = runner.run(ALL[:1])
    assert lost.error.startswith("RuntimeError: no GPU 99 (exit status 1;")


def test_a_simulator_that_only_crashes_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "HOPELESS", 1)
    with pytest.raises(UserError, match=r"1 episodes crashed and none finished.*the point exploded"):
        run([RolloutJob("crash-x", episode) for episode in range(50)], tmp_path)


class Impatient(Pusher):
    """Once a worker is up, however slowly it started, silence is soon too long."""

    def infer(self, observations, noise_keys):
        runner_module.SILENCE_S = 2.0
        return super().infer(observations, noise_keys)


def test_a_hanging_worker_counts_as_crashed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "SILENCE_S", runner_module.SILENCE_S)
    monkeypatch.setattr(runner_module, "ATTEMPTS", 1)
    finished, _ = run([ALL[0], RolloutJob("hang-x", 0)], tmp_path, policy=Impatient())
    assert finished[RolloutJob("hang-x", 0)].outcome is None and finished[ALL[0]].outcome is not None


class OneBusy(PointEnv):
    """Its second task takes its time, and the first waits until that one is up."""

    def reset(self, task, episode):
        up = Path(os.environ["POINT_MARKERS"]) / "up"
        if task == TASKS[1]:
            up.touch()
        while not up.exists():
            time.sleep(0.01)
        return super().reset(task, episode)

    def step(self, action):
        time.sleep(0.05 if self.task == TASKS[1] else 0)
        return super().step(action)


class Thinker(Pusher):
    """Once both tasks have asked, each of its calls outlasts the silence that is allowed."""

    def infer(self, observations, noise_keys):
        if {key.task for batch in self.batches for key in batch} == set(TASKS[:2]):
            runner_module.SILENCE_S = 1.0
            time.sleep(1.3)
        return super().infer(observations, noise_keys)


def test_waiting_for_a_long_policy_call_is_no_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "SILENCE_S", runner_module.SILENCE_S)
    monkeypatch.setenv("POINT_MARKERS", str(tmp_path))
    simulator = replace(POINT, make_env=OneBusy)
    with Runner(simulator, protocol(horizon=16), Thinker(), ("eye",), 2, tmp_path) as runner:
        finished = list(runner.run([RolloutJob(task, 0) for task in TASKS[:2]]))
    assert runner_module.SILENCE_S == 1.0 and [end.attempts for end in finished] == [1, 1]


class Deadly:
    """Ends the process that unpickles it, before it has opened its log."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_worker_that_dies_before_its_first_word_is_an_error_like_any(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "HOPELESS", 1)
    simulator = replace(POINT, make_env=Deadly())
    with (
        Runner(simulator, protocol(), Pusher(), ("eye",), 1, tmp_path) as runner,
        pytest.raises(UserError, match=r"no output \(exit status 9"),
    ):
        list(runner.run(ALL[:1]))


def test_a_message_cut_short_by_a_kill_is_a_death(tmp_path):
    """Images are longer than a pipe holds, so workers are often killed between two parts of one."""
    ours, theirs = multiprocessing.Pipe()
    os.write(theirs.fileno(), struct.pack("!i", 100) + b"x" * 50)  # multiprocessing's header, and half of its body
    theirs.close()
    nobody = multiprocessing.get_context("spawn").Process()
    assert runner_module._receive(runner_module.Worker(nobody, ours, tmp_path, 0, None)) is None


def test_a_user_error_inside_a_worker_reaches_the_user(tmp_path):
    with pytest.raises(UserError, match=r"the point refuses"):
        run([RolloutJob("refuse-x", 0)], tmp_path)


class Ragged(Pusher):
    """Its chunks have 1 to 8 actions, as their noise key says. Writes down at which env step each query came."""

    def __init__(self):
        super().__init__()
        self.steps = {}

    def chunk(self, seen, key):
        self.steps[key] = int(seen.views["eye"].max())
        return super().chunk(seen, key)[: length_of(key)]


def length_of(key):
    return 1 + (3 * key.query + key.episode) % 8


def test_chunks_of_any_length_are_executed_up_to_replan_every(tmp_path):
    policy, replan_every = Ragged(), protocol().replan_every
    with Runner(POINT, protocol(), policy, ("eye",), 2, tmp_path) as runner:
        finished = {end.job: end for end in runner.run(ALL)}
    assert facts(finished) == {job: alone(job, Ragged()) for job in ALL}
    for job, end in finished.items():
        keys = [NoiseKey(0, job.task, job.episode, number) for number in range(end.outcome.queries)]
        executed = [min(length_of(key), replan_every) for key in keys]
        assert [policy.steps.pop(key) for key in keys] == [sum(executed[:number]) for number in range(len(keys))]
    assert not policy.steps, "a query has another number than its place in the episode"
    short = sum(length_of(key) < replan_every for batch in policy.batches for key in batch)
    assert runner.spent.short_chunks == short > 0
    assert f"{short} chunks were shorter than replan_every" in runner.spent.sentence(2, len(ALL))


def test_a_chunk_without_actions_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gave a chunk without actions"):
        run(ALL[:1], tmp_path, policy=Pusher(horizon=0))


class Begun(Pusher):
    """Refuses a query of an episode that was not opened."""

    def infer(self, observations, noise_keys):
        assert {(key.task, key.episode, key.seed) for key in noise_keys} <= set(self.opened)
        return super().infer(observations, noise_keys)


def test_every_episode_is_opened_once_before_its_first_query(tmp_path):
    _, policy = run(ALL, tmp_path, workers=2, policy=Begun(), seed=7)
    assert sorted(policy.opened) == sorted(EpisodeKey(job.task, job.episode, 7) for job in ALL)


def test_no_worker_survives_the_run(tmp_path):
    with Runner(POINT, protocol(), Pusher(), ("eye",), 2, tmp_path) as runner:
        list(runner.run(ALL[:1]))
        pids = [worker.process.pid for worker in runner._workers]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_stay_with_a_scene_then_share_the_longest():
    queue = TaskQueue([RolloutJob("a", n) for n in range(2)] + [RolloutJob("b", n) for n in range(4)])
    first, second = queue.next(""), queue.next("")
    assert (first, second) == (RolloutJob("b", 0), RolloutJob("a", 0))
    assert queue.next("b") == RolloutJob("b", 1) and queue.next("a") == RolloutJob("a", 1)
    assert queue.next("a") == RolloutJob("b", 2) and queue.next("b") == RolloutJob("b", 3)
    assert queue.next("b") is None
