"""Why: the arms `oracle`, `hierarchical` and `flat` are compared by the same command on the same episodes, so a pair of
checkpoints must run through it like any policy, and every sentence must stand beside its episode."""

import pytest

from benchmarks import __main__ as command
from benchmarks.results import results
from la4vla.config import HierarchicalConfig, load
from la4vla.serve.hierarchical.load import load_hierarchical
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import UserError
from tests.hand_checkpoint import write_checkpoint, write_vlm_checkpoint

TASK = "window-open-v3"


@pytest.mark.sim
@pytest.mark.slow
def test_written_and_true_instructions_run_by_one_command(tmp_path, capsys):
    low = write_checkpoint(tmp_path / "low", EMBODIMENT, ("corner4",), levels="both")
    high = write_vlm_checkpoint(tmp_path / "high", EMBODIMENT, {}, questions=("next",))
    arms = {
        "oracle": "instructor: oracle\n",
        "written": f"high: {high}\nviews: [corner4]\nnext: {{temperature: 1.0, max_tokens: 4}}\nreplan: 2\n",
    }
    rows = {}
    for arm, text in arms.items():
        (tmp_path / f"{arm}.yaml").write_text(f"schema: hierarchical\n{text}")
        words = ["metaworld", "--checkpoint", str(low), "--high", str(tmp_path / f"{arm}.yaml"), "--tasks", TASK]
        words += ["--protocol", "metaworld/quickstart-v1", "--out", str(tmp_path / arm), "--episodes", "1"]
        words += ["--workers", "1", "--device", "cpu", "horizon=24", "replan_every=8", "image_size=32", "fast=true"]
        assert command.main(words) == 0
        (rows[arm],) = results.read_rows(tmp_path / arm)
        assert rows[arm].queries == 3
    assert [text["question"] for text in rows["oracle"].texts] == ["oracle"] * 3
    assert all("gripper" in text["text"] for text in rows["oracle"].texts)
    assert [text["query"] for text in rows["written"].texts if text["question"] == "next"] == [0, 2]
    config = load(tmp_path / "written.yaml", schema=HierarchicalConfig)
    assert load_hierarchical(low, config).identity == rows["written"].policy != rows["oracle"].policy
    printed = capsys.readouterr().out
    assert "written: 3 low-level instructions, " in printed and "written: 2 low-level instructions, " in printed


@pytest.mark.parametrize("option", [("--high", "y"), ("--weights", "ema")])
def test_an_expert_is_told_nothing(option):
    with pytest.raises(UserError, match="--text, --high, --base and --weights are for a trained --checkpoint"):
        command.main(["metaworld", "--expert", "--protocol", "metaworld/quickstart-v1", "--out", "x", *option])
