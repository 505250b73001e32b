"""Why: a sweep must run every combination once, survive a failed one, and never print a rate that nobody measured."""

import json
import subprocess

import pytest

from benchmarks import protocols, sweep
from benchmarks.sweep import SweepConfig, expand
from la4vla.types import UserError

TITLE = "metaworld/quickstart-v1"


def test_other_replan_values_are_another_protocol_in_another_folder():
    jobs = expand(SweepConfig(out="x", checkpoints={"a": "A", "b": "B"}, protocols=[TITLE], replan=[8, 4]))
    assert len({job.folder for job in jobs}) == 4
    own = protocols.load(TITLE)
    assert [job.protocol.hash == own.hash for job in jobs] == [True, False, True, False]
    assert [job.protocol.title for job in jobs[:2]] == [TITLE, "custom"]


def test_an_empty_sweep_is_refused():
    with pytest.raises(UserError, match="checkpoints"):
        expand(SweepConfig(out="x"))


def test_a_failed_job_stops_no_other_and_its_cells_are_blank(tmp_path, monkeypatch, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"out: {tmp_path / 'out'}\ncheckpoints: {{a: A, b: B}}\nprotocols: [{TITLE}]\n")
    codes = iter([2, 0])
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, next(codes)))
    assert sweep.run(path, []) == 1
    assert "failed: a" in capsys.readouterr().err and next(codes, None) is None
    drawn = json.loads((tmp_path / "out" / "tables.json").read_text())
    assert drawn["metaworld"]["ours"] == {} and drawn["metaworld"]["rows"]["LA4VLA-1B MixPT"][-1] == 87.53
    assert "(published)" in (tmp_path / "out" / "tables.md").read_text()
