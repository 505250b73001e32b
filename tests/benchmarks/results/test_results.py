"""Why: the rows are the result. A resumed folder must not lose, repeat or mix episodes, and a crash must never be
counted as a failure of the policy."""

import json
from dataclasses import replace

import pytest

from benchmarks.results import results
from benchmarks.results.results import Results, Row
from la4vla.types import UserError
from tests.benchmarks.fake_env import protocol

RULES = protocol()


def row(task="easy-a", episode=0, success: bool | None = True, **changes) -> Row:
    base = Row(
        task=task, group=RULES.group_of(task), episode=episode, seed=0, success=success,
        error="" if success is not None else "it exploded", steps=5, queries=2, attempts=1, protocol=RULES.title,
        protocol_hash=RULES.hash, policy="abc", perturbation="clean", step=7, versions={"numpy": "2"}, gl="none",
        wall_s=0.1, seconds={"physics": 0.1}, latencies_ms=[1.0, 3.0], final_state=[0.5],
    )  # fmt: skip
    return replace(base, **changes)


def opened(folder) -> Results:
    return Results(folder, RULES.hash, "abc", "clean")


def test_rows_come_back_and_crashes_are_run_again(tmp_path):
    stored = opened(tmp_path)
    for item in (row(), row(episode=1, success=False), row(episode=2, success=None)):
        stored.append(item)
    again = opened(tmp_path)
    assert again.rows == stored.rows
    wanted = [("easy-a", episode) for episode in range(4)]
    assert again.missing(wanted) == [("easy-a", 2), ("easy-a", 3)]
    again.append(row(episode=2, success=False))
    assert opened(tmp_path).missing(wanted) == [("easy-a", 3)]
    assert len(results.read_rows(tmp_path)) == 3, "an episode that was run again counts once"


def test_a_line_torn_by_a_kill_is_dropped_and_nothing_else(tmp_path):
    stored = opened(tmp_path)
    stored.append(row())
    with stored.path.open("a") as file:
        file.write(json.dumps({"task": "easy-a"})[:9])
    assert len(results.read_rows(tmp_path)) == 1  # also while it is being written
    again = opened(tmp_path)
    with again.writing():
        again.append(row(episode=1))
    assert [item.episode for item in results.read_rows(tmp_path)] == [0, 1]


def test_two_evaluations_never_write_into_one_folder(tmp_path):
    """A job that was queued twice: neither side by side, nor one after another unread."""
    first, second = opened(tmp_path), opened(tmp_path)
    with first.writing():
        with pytest.raises(UserError, match=r"another evaluation writes there; .* another --out"), second.writing():
            second.append(row())
        first.append(row())
    with pytest.raises(UserError, match="another evaluation"), second.writing():
        second.append(row(episode=1))
    assert [item.episode for item in results.read_rows(tmp_path)] == [0]
    with opened(tmp_path).writing():
        pass


@pytest.mark.parametrize("changes", [{"policy": "other"}, {"protocol_hash": "other"}, {"perturbation": "fog:3=2.0"}])
def test_a_folder_never_mixes_policies_protocols_or_perturbations(tmp_path, changes):
    opened(tmp_path).append(row(**changes))
    with pytest.raises(UserError, match=r"already holds episodes of protocol.*another --out"):
        opened(tmp_path)


def test_a_broken_line_is_named(tmp_path):
    opened(tmp_path).append(row())
    with (tmp_path / results.EPISODES).open("a") as file:
        file.write('{"task": "easy-a"}\n')
    with pytest.raises(UserError, match=r"episodes.jsonl:2: not an episode row"):
        results.read_rows(tmp_path)


def test_crashes_are_in_no_rate_and_means_are_named(tmp_path):
    rows = [row(), row(episode=1, success=None), row("easy-b", 0, False), row("hard-c", 0), row("hard-c", 1)]
    summary = results.summarise(rows, RULES)
    assert (summary.tasks["easy-a"].successes, summary.tasks["easy-a"].n) == (1, 1)
    assert summary.groups["easy"].value == 0.5 and summary.groups["hard"].value == 1.0
    assert summary.macro.value == 0.75 and summary.micro.value == 0.75
    assert [item.episode for item in summary.errors] == [1]
    text = results.summary_table(summary, RULES)
    assert "crashed, in no rate: easy-a episode 1: it exploded" in text
    assert "below 50" in text and "hard-c" in text
    assert "below 50" not in results.summary_table(results.summarise([row(episode=e) for e in range(50)], RULES), RULES)


def test_latency_percentiles_are_over_all_queries():
    rows = [row(latencies_ms=list(range(0, 50))), row(episode=1, latencies_ms=list(range(50, 101)))]
    summary = results.summarise([*rows, row(episode=2, success=None, latencies_ms=[9e9])], RULES)
    assert summary.latency_ms == {"p50": 50, "p95": 95, "p99": 99}
    assert "p50 50.0 ms, p95 95.0 ms, p99 99.0 ms" in results.summary_table(summary, RULES)
    without = results.summarise([row(latencies_ms=[])], RULES)
    assert not without.latency_ms and "latency" not in results.summary_table(without, RULES)
