"""Why: a doctor that calls a broken machine comparable is worse than none; each failure is provoked."""

import copy

import pytest

from la4vla import cli, doctor, manifest
from la4vla.sim.golden import references
from la4vla.sim.metaworld import EMBODIMENT
from tests.fixtures import write_shards
from tests.hand_checkpoint import write_checkpoint


@pytest.mark.sim
def test_this_machine_draws_the_reference():
    assert [check.status for check in doctor.suite_checks("metaworld")] == ["ok", "ok"]


@pytest.mark.sim
def test_a_nonsense_backend_is_not_comparable(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    monkeypatch.delenv("LA4VLA_GL_PROBED", raising=False)
    assert doctor.backends()[-1].status == "failed"
    assert doctor.suite_checks("metaworld")[0].status == "failed"


def test_other_pictures_other_assets_and_flying_objects_are_seen():
    reference = references()["metaworld"]
    other = copy.deepcopy(reference)
    other["pictures"]["fast"]["blocks"][3][4][1] += 9
    check = doctor.picture_check("metaworld", reference, other)
    assert check.status == "failed" and "differ by 9.0 grey levels" in check.says
    assert doctor.verdict([check]).startswith("comparable: no, because metaworld pictures")
    assert doctor.picture_check("metaworld", {**reference, "assets": "x"}, reference).status == "warning"
    other["settling"]["hammer-v3"]["moved"] = 3.0
    assert doctor.settling_check("metaworld", other).status == "failed"


def test_another_version_fails(monkeypatch):
    monkeypatch.setattr(doctor, "pins", lambda: {"mujoco": "0.0.1"})
    assert [check.status for check in doctor.versions()] == ["failed"]


def test_damaged_shards_and_weights_fail(tmp_path):
    write_shards(tmp_path / "la")
    folder = write_checkpoint(tmp_path / "made", EMBODIMENT, ("corner4",))
    assert doctor.shards_check(str(tmp_path / "la")).status == "ok"
    assert doctor.checkpoint_check(folder).status == "ok"
    shard = next((tmp_path / "la").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:2000])
    weights = folder / manifest.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    assert shard.name in doctor.shards_check(str(tmp_path / "la")).says
    assert "copy the checkpoint again" in doctor.checkpoint_check(folder).says
    (folder / manifest.COMPLETE).unlink()
    assert doctor.checkpoint_check(folder).status == "failed"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("failed", 1)])
def test_the_exit_status_follows_the_verdict(status, code, monkeypatch, capsys):
    check = doctor.Check("metaworld pictures", status, "said.")
    monkeypatch.setattr(doctor, "doctor", lambda checkpoint, data: [check])
    assert cli.main(["doctor"]) == code
    assert f"comparable: {'no' if code else 'yes'}" in capsys.readouterr().out
