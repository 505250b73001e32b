"""Why: the loss of a pair is of its whole group, and a group is spread over micro-batches and ranks. An error there
trains quietly on fewer wrong answers (the released code of the paper does: FACTS 2.1), so gradients are compared with
those of one process that holds the group, and real runs with each other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from la4vla import manifest
from la4vla.files import sha256
from la4vla.train import dist
from tests.grounding.conftest import QUICK
from tests.train import contrast_cases
from tests.train.launch import HERE, start, train, wait
from tests.train.pairs import write_config

pytestmark = pytest.mark.slow

APART = 1e-5
"""fp32 sums in another order; a wrong sum is apart by its size."""


def at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ranks", [1, 4])
def test_micro_batches_and_ranks_give_the_gradient_of_the_whole_group(tmp_path, ranks):
    if ranks == 1:
        torch.set_num_threads(1)
        report = contrast_cases.differences(dist.start(300.0))
        dist.stop()
    else:
        ended = wait(start(ranks, str(HERE / "contrast_cases.py"), str(tmp_path / "report.json")))
        assert ended.codes == (0,) * ranks, ended.stderr
        report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) == 9 and max(report.values()) < APART, report


def test_two_ranks_equal_one_process_with_another_micro_batch(pairs, run):
    """The first four steps of a longer run."""
    two = write_config(pairs, "two")
    ended = train(2, two, "stages.only.micro_batch=3")
    assert ended.codes == (0, 0), ended.stderr
    assert "24 distinct sentences; a pass is 3 groups of 8" in ended.stdout
    a, b = (load_file(at(place, 4) / manifest.WEIGHTS) for place in (pairs / "two", run))
    apart = sum(float((a[name] - b[name]).double().square().sum()) for name in b)
    assert apart < 1e-8 * sum(float(b[name].double().square().sum()) for name in b)
    losses = [[row["loss/contrast"] for row in rows(place)[:4]] for place in (pairs / "two", run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_resumed_run_equals_the_straight_one_and_ends_by_its_held_out_loss(pairs, run, tmp_path, in_process):
    """From step 4, where the loss is said to have been lower than any can be. The checkpoint of step 4 is kept, as the
    best; started again, the run stays ended."""
    copy = shutil.copytree(run, tmp_path / "run")
    for folder in manifest.complete(copy)[1:]:
        shutil.rmtree(folder)
    said = [{**row, manifest.HELD_OUT_LOSS: -1.0} if row["step"] == 4 else row for row in rows(copy)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    settings = (
        *(f"run.dir={copy}", *QUICK, "checkpoint.keep_every=0", f"validate.pairs={pairs}/held_out"),
        *("validate.pair_groups=2", "validate.every_steps=4", "validate.patience=2"),
    )
    config = str(pairs / "seeing.yaml")
    ended = in_process(config, *settings)
    assert ended.codes == (0,) and "resume: exact" in ended.stdout, ended.stderr
    assert "stopped after step 12: its held-out loss was not lower in 2 measurements" in ended.stdout
    assert manifest.complete(copy) == [at(copy, 4), at(copy, 12)] and manifest.best(copy) == at(copy, 4)
    for name in (manifest.WEIGHTS, manifest.TRAINING):
        assert sha256(at(copy, 12) / name) == sha256(at(run, 12) / name)
    assert {"val/contrast", "val/r1/sentence", "val/r1/motion"} <= rows(copy)[-1].keys()
    assert "is finished at step 12" in in_process(config, *settings).stdout


def test_what_does_not_fit_is_one_sentence(pairs, run, in_process):
    config = write_config(pairs, "wrong")
    for overrides, words in (
        (("data.contrast_group=32", "stages.only.global_batch=32"), "its clips have 24 distinct instructions"),
        (("stages.only.global_batch=12",), "a step holds whole groups"),
        (("data.sources.clips.kind=vla",), "learner grounding takes clips of kind contrast alone"),
        (("learner=policy", "stages.only.train=[head]"), "which learner grounding alone takes"),
        (("grounding.vision=false",), "trains vision and grounding.vision is false"),
        (("model.preset=small",), "learner grounding knows tiny alone"),
        (("engine.name=deepspeed", "engine.zero_stage=3"), "set engine.zero_stage=2"),
        (("grounding.horizon=9", f"run.init_from={run}"), "set grounding.horizon=4"),
    ):
        ended = in_process(str(config), *overrides)
        assert ended.codes == (2,) and words in ended.stderr, (overrides, ended.stderr)
    ended = in_process(str(pairs / "seeing.yaml"), *QUICK, "data.contrast_group=4")
    assert ended.codes == (2,) and "data.contrast_group is 4, the run in" in ended.stderr
