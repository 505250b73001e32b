"""Why: vision gets no gradient in an LA micro-batch, and every engine has its own way to then leave gradients unreduced
or to bring back old ones; ranks drift apart and nothing crashes. So every engine and ZeRO stage trains two ranks on
mixed steps and each parameter and moment is compared with bare torch that did it all in one process.

`python -m pytest tests/train/test_engines.py -s` prints the differences reached.
"""

import json
import math
from pathlib import Path

import pytest

from tests.train.engine_cases import BAD_STEP, ENGINES, STEPS, WAIT_S
from tests.train.launch import HERE, start, wait

pytestmark = pytest.mark.slow

WEIGHTS, MOMENTS, NORMS = 2e-6, 5e-6, 1e-5
"""Tolerances, the same for fp32 and bf16: parameters, gradients and moments are fp32 in both, and the bf16 matmuls see
the same numbers in the same shapes. Only the order of fp32 sums differs (10 steps of lr 0.01 move weights by 0.1)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    ended = wait(start(2, str(HERE / "engine_cases.py"), str(folder), "all"))
    assert ended.codes == (0, 0), ended.stderr
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict:
    return json.loads((folder / "all.json").read_text())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_two_ranks_equal_one_process(report, name, stage, precision):
    case = report[f"{name}-{stage}-{precision}"]
    print(f"\n{name} {stage} {precision}: weights {case['weights']:.1e}, moments {case['moments']:.1e}")
    assert case["weights"] < WEIGHTS
    assert case["moments"] < MOMENTS
    assert case["masters"] == ["torch.float32"]
    assert len(set(case["rank_sums"])) == 1
    assert case["updates"] == STEPS - 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "stage"), ENGINES)
def test_reported_norm_is_torchs_and_a_bad_step_is_told(report, name, stage, precision):
    found, wanted = report[f"{name}-{stage}-{precision}"]["norms"]
    for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if step == BAD_STEP:
            assert not math.isfinite(a)
        else:
            assert a == pytest.approx(b, rel=NORMS)
    assert max(norm for norm in wanted if math.isfinite(norm)) > 1.0, "clipping never acted"


def test_every_process_group_waits_as_long_as_the_config_says(report):
    assert report["timeouts"] == [WAIT_S, WAIT_S]


def test_every_engine_goes_on_from_another_ones_checkpoint(report):
    crossings = {key: case for key, case in report.items() if " from " in key}
    assert len(crossings) == 2 * len(ENGINES)
    for key, case in crossings.items():
        assert case["weights"] < WEIGHTS, key
        assert case["moments"] < MOMENTS, key
        assert case["updates"] == STEPS - 1, key


def test_one_rank_goes_on_from_two(folder):
    ended = wait(start(1, str(HERE / "engine_cases.py"), str(folder), "resume"))
    assert ended.codes == (0,), ended.stderr
    for key, case in json.loads((folder / "resume.json").read_text()).items():
        assert case["weights"] < WEIGHTS, key
        assert case["moments"] < MOMENTS, key
