"""Why: the real simulator through the real runner. The expert must win here, or every success rate is suspect; and an
episode must be the same alone and in a full run (metaworld's own `reset(seed)` would break that silently)."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.perturb.perturb import CLEAN
from benchmarks.results import protocols, results
from benchmarks.rollouts import evaluate, runner
from benchmarks.rollouts.evaluate import EvaluationRequest
from benchmarks.rollouts.rollout import RolloutJob
from benchmarks.rollouts.runner import Runner
from la4vla.sim.metaworld import EMBODIMENT, MetaWorldEnv, buckets
from la4vla.sim.registry import SIMULATORS
from tests.hand_checkpoint import write_checkpoint

pytestmark = [pytest.mark.sim, pytest.mark.slow]
ROOT = Path(__file__).parents[3]

GUARD = """
import os, sys

def guard(event, arguments):
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments[:1]
    if isinstance(address, tuple) and address[0] not in (None, "localhost", "127.0.0.1", "::1"):
        with open(os.environ["CALLS_OUTSIDE"], "a") as calls:
            print(event, address, file=calls)
        raise OSError(f"there is no network here, {address} was called")

sys.addaudithook(guard)
"""
IMPORT_ALL = """
import importlib, pkgutil, sys
import benchmarks, la4vla
for package in (la4vla, benchmarks):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert sys.stdin is None, "standard input is open after all"
"""
CALL_OUT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"


def request_(out, **changes) -> EvaluationRequest:
    protocol = protocols.load("metaworld/quickstart-v1", ["groups={easy: [reach-v3, window-open-v3]}", "horizon=100"])
    base = EvaluationRequest(
        simulator=SIMULATORS["metaworld"], protocol=protocol, checkpoint=None, untrained=False,
        out=out, workers=2, tasks=(), episodes=2, videos=0, device="cpu", command="", variants=(),
    )  # fmt: skip
    return replace(base, **changes)


def keyed(folder):
    return {(row.task, row.episode): row for row in results.read_rows(folder)}


def test_the_expert_succeeds_through_the_runner(tmp_path):
    summary = evaluate.evaluate(request_(tmp_path))[CLEAN]
    assert (summary.micro.successes, summary.micro.n) == (4, 4)
    assert all(row.gl in ("egl", "osmesa", "glfw") for row in results.read_rows(tmp_path))


def test_a_groups_longer_horizon_is_run_to_its_end(tmp_path):
    """The env itself truncates, and would do so at the protocol's own."""
    longer = [
        "groups={easy: [reach-v3], hard: [push-v3]}",
        "horizon=4",
        "horizons={easy: 9}",
        "replan_every=8",
        "episodes=1",
    ]
    rules = protocols.load("metaworld/quickstart-v1", longer)
    with Runner(SIMULATORS["metaworld"], rules, None, (), 1, tmp_path) as running:
        (end,) = running.run([RolloutJob("reach-v3", rules.first_episode)])
    assert end.outcome is not None and end.outcome.steps == 9


def test_an_episode_alone_is_the_episode_of_a_full_run(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", EMBODIMENT, ("corner4",))
    short = protocols.load("metaworld/quickstart-v1", ["groups={easy: [reach-v3, window-open-v3]}", "horizon=24"])
    base = request_(tmp_path / "full", protocol=short, checkpoint=checkpoint)
    evaluate.evaluate(base)
    full = keyed(tmp_path / "full")
    assert len(full) == 4 and all(row.queries == 3 for row in full.values())
    evaluate.evaluate(replace(base, out=tmp_path / "alone", workers=1, tasks=("window-open-v3",), episodes=1))
    alone, whole = keyed(tmp_path / "alone")["window-open-v3", 0], full["window-open-v3", 0]
    assert (alone.success, alone.steps) == (whole.success, whole.steps)
    assert alone.final_state == pytest.approx(whole.final_state, abs=1e-4)
    assert alone.final_state != pytest.approx(full["window-open-v3", 1].final_state, abs=1e-4)


def test_a_worker_draws_after_its_parent_did(tmp_path, monkeypatch):
    """A forked one would inherit the GL context and hang at its first image."""
    monkeypatch.setattr(runner, "SILENCE_S", 60.0)
    monkeypatch.setattr(runner, "ATTEMPTS", 1)
    with closing(MetaWorldEnv(("corner4",), 64, 10, True)) as env:
        env.reset("reach-v3", 0)
        rules = protocols.load("metaworld/quickstart-v1", ["horizon=4", "fast=true"])
        with Runner(SIMULATORS["metaworld"], rules, None, ("corner4",), 1, tmp_path) as running:
            (end,) = running.run([RolloutJob("reach-v3", 0)])
    assert end.outcome is not None, end.error


def test_import_and_an_episode_without_stdin_display_and_network(tmp_path):
    """As on a cluster node. A prompt, a window or a download would hang there for hours before anybody looks."""
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    calls = tmp_path / "calls"
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    path = os.pathsep.join([str(tmp_path), *filter(None, [kept.get("PYTHONPATH")])])
    environment = {**kept, "PYTHONPATH": path, "CALLS_OUTSIDE": str(calls), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)

    refused = run("-c", CALL_OUT)
    assert "there is no network here" in refused.stderr and "192.0.2.1" in calls.read_text()
    calls.unlink()
    imported = run("-c", IMPORT_ALL)
    assert imported.returncode == 0, imported.stderr
    checkpoint, out = write_checkpoint(tmp_path / "checkpoint", EMBODIMENT, ("corner4",)), tmp_path / "out"
    options = ("--checkpoint", checkpoint, "--protocol", "metaworld/quickstart-v1", "--out", out, "--workers", 1)
    done = run("-m", "benchmarks", "metaworld", "horizon=16", *options, "--tasks", "window-open-v3", "--episodes", 1)
    assert done.returncode == 0, done.stderr
    (row,) = results.read_rows(out)
    assert (row.task, row.episode, row.steps, row.queries, row.error) == ("window-open-v3", 0, 16, 2, "")
    assert not calls.exists(), calls.read_text()


def test_a_protocol_file_with_a_shipped_base_runs_by_the_command(tmp_path):
    """As docs/comparison.md says. The same values through a path and through the command line give the same hash."""
    mine, out = tmp_path / "my.yaml", tmp_path / "out"
    mine.write_text("base: metaworld/quickstart-v1\nhorizon: 3\nfast: true\n")
    words = ["--expert", "--protocol", mine, "--out", out, "--tasks", "door-unlock-v3", "--episodes", "1"]
    command = [sys.executable, "-m", "la4vla.cli", "eval", "metaworld", *map(str, words), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = results.read_rows(out)
    same = protocols.load("metaworld/quickstart-v1", ["horizon=3", "fast=true"])
    assert (row.steps, row.protocol, row.protocol_hash) == (3, "custom", same.hash)


def test_groups_are_the_simulators_buckets():
    protocol = protocols.load("metaworld/mt50-v1")
    assert {task: protocol.group_of(task) for task in protocol.tasks} == buckets()
