"""Why: two overlapping intervals are not a comparison, and a comparison over different protocols, or of a policy under
noise with another one without, is worse than none."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.perturb.perturb import CLEAN, Variant
from benchmarks.results import compare, results
from benchmarks.results.stats import Pairs, pairs
from la4vla.types import UserError
from tests.benchmarks.fake_env import protocol
from tests.benchmarks.results.test_results import RULES, row

CODES = {"+": True, "-": False, "x": None}


def write(folder, codes, rules=RULES, variant=CLEAN, **changes):
    """A result folder: one letter an episode of task easy-a, + success, - failure, x crash."""
    folder.mkdir(parents=True)
    values = {"protocol_hash": rules.hash, "perturbation": variant.identity, **changes}
    stored = results.Results(folder, rules.hash, values.get("policy", "abc"), variant.identity)
    for task, letters in codes.items():
        for episode, letter in enumerate(letters):
            stored.append(row(task, episode, CODES[letter], **values))
    run = {"protocol": asdict(rules), "title": rules.title, "perturbation": asdict(variant)}
    results.write_run(folder, run)
    return folder


# Newcombe 1998, Statistics in Medicine 17:2635, Table III, method 10: both, first only, second only, neither
NEWCOMBE = [
    ((36, 12, 2, 0), (0.0569, 0.3404)),
    ((20, 12, 2, 16), (0.0562, 0.3292)),
    ((18, 12, 2, 18), (0.0562, 0.3290)),
    ((36, 14, 0, 0), (0.1528, 0.4167)),
    ((18, 14, 0, 18), (0.1441, 0.3963)),
    ((2, 97, 1, 0), (0.8721, 0.9854)),
    ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ((30, 0, 0, 24), (-0.0358, 0.0358)),
]


@pytest.mark.parametrize(("cells", "limits"), NEWCOMBE)
def test_paired_interval_is_the_published_one(cells, limits):
    both, first, second, neither = cells
    assert Pairs(both, second, first, neither).interval == pytest.approx(limits, abs=5e-5)
    low, high = Pairs(both, first, second, neither).interval
    assert (-high, -low) == pytest.approx(limits, abs=5e-5)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (0, 1, 1.0), (0, 5, 2 / 2**5), (5, 0, 2 / 2**5), (1, 7, 2 * 9 / 2**8), (4, 4, 1.0)],
)
def test_mcnemar_is_the_exact_sign_test_of_discordant_pairs(only_a, only_b, p):
    assert Pairs(10, only_a, only_b, 3).p_value == pytest.approx(p)
    assert Pairs(1000, only_a, only_b, 0).p_value == pytest.approx(p), "concordant pairs say nothing"


def test_paired_interval_covers_the_truth():
    draws, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        solved_a = draws.random(50) < 0.7
        solved_b = np.where(draws.random(50) < 0.6, solved_a, draws.random(50) < 0.5)
        low, high = pairs(zip(solved_a.tolist(), solved_b.tolist(), strict=True)).interval
        hits += low <= 0.6 * 0.7 + 0.4 * 0.5 - 0.7 <= high
    assert 0.93 <= hits / 1000 <= 0.98


def test_episodes_are_paired_by_task_and_number(tmp_path):
    a = write(tmp_path / "a", {"easy-a": "++-", "hard-c": "-"}, policy="a")
    b = write(tmp_path / "b", {"hard-c": "+", "easy-a": "+-+"}, policy="b")
    compared = compare.folders(a, b)
    assert compared.total == Pairs(both=1, only_a=1, only_b=2, neither=0)
    assert compared.tasks == {"easy-a": Pairs(1, 1, 1, 0), "hard-c": Pairs(0, 0, 1, 0)}
    assert compared.total.difference == pytest.approx(0.25) and not compared.notes
    assert compare.folders(b, a).total.difference == pytest.approx(-0.25)


def test_crashed_and_unpaired_episodes_are_counted_and_said(tmp_path):
    a = write(tmp_path / "a", {"easy-a": "+x--", "easy-b": "+"}, policy="a")
    b = write(tmp_path / "b", {"easy-a": "++-"}, policy="b", gl="egl", versions={"numpy": "3"})
    compared = compare.folders(a, b)
    assert compared.total == Pairs(1, 0, 0, 1) and list(compared.tasks) == ["easy-a"]
    assert (compared.a.crashed, compared.a.alone, compared.b.crashed, compared.b.alone) == (1, 2, 0, 0)
    text, expected = (
        compared.table(),
        ("1 episodes crashed in A", "2 episodes are in A only", "rendered by none in A and egl"),
    )
    assert all(note in text for note in (*expected, "numpy is 2 in A and 3 in B"))


def test_what_differs_within_one_side_is_said_too(tmp_path):
    """A folder that was resumed on another machine; its first row knows nothing of it."""
    a = write(tmp_path / "a", {"easy-a": "+"}, policy="a", gl="egl:0", versions={"mujoco": "3.3.0", "torch": "2"})
    with (a / results.EPISODES).open("a") as file:
        later = row("easy-a", 1, True, policy="a", gl="osmesa", versions={"mujoco": "3.4.0", "torch": "2"})
        file.write(json.dumps(asdict(later)) + "\n")
    b = write(tmp_path / "b", {"easy-a": "++"}, policy="b", gl="egl:1", versions={"mujoco": "3.3.0", "torch": "2"})
    assert compare.folders(a, b).notes == [
        "images were rendered by egl and osmesa in A and egl in B",
        "mujoco is 3.3.0 and 3.4.0 in A and 3.3.0 in B",
    ]
    assert len(compare.folders(a, a).notes) == 2


def test_one_thing_may_differ(tmp_path):
    clean, fog = CLEAN, Variant("fog", 3)
    mine = write(tmp_path / "mine", {"easy-a": "++"}, variant=clean, policy="a")
    my_fog = write(tmp_path / "my_fog", {"easy-a": "-+"}, variant=fog, policy="a")
    your_fog = write(tmp_path / "your_fog", {"easy-a": "--"}, variant=fog, policy="b")
    assert compare.folders(mine, my_fog).total == Pairs(1, 1, 0, 0)
    assert compare.folders(my_fog, your_fog).total == Pairs(0, 0 + 1, 0, 1)
    with pytest.raises(UserError, match=r"differ in policy and in perturbation \(clean, fog:3=2.0\)"):
        compare.folders(mine, your_fog)


def test_unlike_protocols_and_empty_pairs_are_refused(tmp_path):
    a = write(tmp_path / "a", {"easy-a": "+x"})
    other = write(tmp_path / "other", {"easy-a": "++"}, rules=protocol(horizon=30))
    with pytest.raises(UserError, match=r"different protocols, .*which differ in horizon; evaluate both with one"):
        compare.folders(a, other)
    crashed = write(tmp_path / "crashed", {"easy-a": "x+"})
    with pytest.raises(UserError, match=r"no episode ended in both"):
        compare.folders(a, crashed)
    with pytest.raises(UserError, match=r"no run.json in it"):
        compare.folders(a, tmp_path)
    (other / results.EPISODES).unlink()
    with pytest.raises(UserError, match=r"other: holds no episode yet; evaluate into it first"):
        compare.folders(a, other)


def test_the_command_prints_and_writes_the_same_numbers(tmp_path, capsys):
    a = write(tmp_path / "a", {"easy-a": "-" * 9 + "+"}, policy="a")
    b = write(tmp_path / "b", {"easy-a": "+" * 10}, policy="b")
    assert command.main(["compare", str(a), str(b), "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["total"] == content["tasks"]["easy-a"]
    assert (content["total"]["n"], content["total"]["only_b"], content["total"]["difference"]) == (10, 9, 0.9)
    assert math.isclose(content["total"]["p_value"], 2 / 2**9)
    printed = capsys.readouterr().out
    assert "+90.0 [" in printed and "0.00391" in printed and RULES.hash in printed
