"""Why: a doctor that calls a broken machine comparable is worse than none; each failure is made and must be named.

The command is run as a user runs it: once where all is well, once where four things are wrong, once with LIBERO's
stand-in assets.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import protocols
from la4vla import manifest
from la4vla.doctor import Check, Demand, doctor, summary_table, to_json, verdict
from la4vla.doctor.check import failed
from la4vla.doctor.files import checkpoint_check, shards_check
from la4vla.doctor.machine import backend_check, egl_checks, gl_checks
from la4vla.doctor.suite import image_check, pins_check, settling_check, suite_checks, version_checks
from la4vla.sim import device, libero
from la4vla.sim.golden import STANDINS, references
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.sim.registry import SIMULATORS, Setting
from la4vla.types import UserError
from tests.fixtures import write_shards
from tests.hand_checkpoint import write_checkpoint

CORNER = Setting(("corner4",), 112, False)
QUICKSTART = Demand("metaworld/quickstart-v1", "metaworld", CORNER)


def run_doctor(*words: object) -> tuple[int, str]:
    """Exit status and output, each run of blanks made one, so that line breaks of the table do not matter."""
    command = [sys.executable, "-m", "la4vla.cli", "doctor", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, " ".join(done.stdout.split())


def edited_manifest(source: Path, folder: Path, **changes: object) -> Path:
    shutil.copytree(source, folder)
    file = folder / manifest.MANIFEST
    made = json.loads(file.read_text())
    of_robot = {name: changes.pop(name) for name in made["robots"][0] if name in changes}
    file.write_text(json.dumps(made | {"robots": [made["robots"][0] | of_robot]} | changes))
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint for MetaWorld and a shard folder, both whole."""
    folder = tmp_path_factory.mktemp("good")
    write_shards(folder / "la")
    return write_checkpoint(folder / "made", EMBODIMENT, ("corner4",)), folder / "la"


@pytest.mark.sim
def test_a_whole_machine_is_comparable(good, tmp_path):
    checkpoint, shards = good
    report = tmp_path / "doctor.json"
    protocol = ("--protocol", QUICKSTART.title)
    status, said = run_doctor(*protocol, "--checkpoint", checkpoint, "--data", shards, "--json", report)
    assert said.endswith("comparable: yes, because versions, images and settling of metaworld match the references.")
    assert status == 0 and "libero" not in said
    written = json.loads(report.read_text())
    assert written["suites"] == {"metaworld": True} and {c["status"] for c in written["checks"]} <= {
        "ok",
        "note",
        "warn",
    }


@pytest.mark.sim
@pytest.mark.thorough
def test_a_broken_machine_is_told_all_that_is_wrong(good, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    monkeypatch.delenv("LA4VLA_GL_PROBED", raising=False)
    golden = references()
    golden["metaworld"]["versions"]["mujoco"] = "3.2.9"
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    shutil.copytree(good[1], tmp_path / "la")
    shard = next((tmp_path / "la").glob("*.tar"))
    shard.unlink()
    wreck = edited_manifest(good[0], tmp_path / "wreck", transforms=[{"name": "ResizeImages", "sise": 3}])
    options = ("--golden", tmp_path / "golden.json", "--checkpoint", wreck, "--data", tmp_path / "la")
    status, said = run_doctor("--protocol", QUICKSTART.title, *options)
    assert status == 1
    assert "note GL nonsense does not draw: " in said and "or unset MUJOCO_GL" in said
    assert "3.3.0 is installed, the metaworld reference was made with 3.2.9. cure: pip install mujoco==3.2.9" in said
    assert "fail metaworld images nothing is drawn: no GL backend renders here (nonsense" in said
    assert "transforms are damaged (TypeError" in said and "cure: copy the checkpoint again" in said
    assert f"fail shards {tmp_path / 'la'}: {shard.name}" in said
    assert said.endswith("comparable: no, because GL: no backend draws, so no image can be made here (4 more failed).")


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.thorough
def test_stand_in_assets_are_not_comparable(libero):
    if not (Path(os.environ["LA4VLA_LIBERO_ASSETS"]) / STANDINS).is_file():
        pytest.skip("LIBERO's assets here are its own")
    status, said = run_doctor("--protocol", "libero/smoke-v1")
    assert status == 1 and "comparable: no, because libero assets: stand-in assets" in said
    assert "ok libero config la4vla's own" in said
    assert "ok libero images 8 of agentview,robot0_eye_in_hand:112:fast" in said
    assert "ok libero settling 5 initial states" in said


@pytest.mark.sim
def test_drivers_that_fail_or_hang_are_told_apart():
    assert device.render_with("egl", timeout_s=0.2) == "no answer within 0 s, killed"
    assert "must be an integer between 0 and" in str(device.render_with("egl", 99))
    drawing = device.render_with("egl")
    assert isinstance(drawing, device.Rendering) and drawing.right and backend_check("GL", drawing, "").status == "ok"
    other = device.Rendering(drawing.vendor, drawing.renderer, drawing.frame_ms, (0.0, 0.0, 0.0))
    assert backend_check("GL", other, "").status == "warn"


def test_gpus_that_do_not_draw_are_a_warning(monkeypatch):
    """No GPU is needed: the answers of two devices are given, the judgement is real."""
    card = device.Rendering("NVIDIA", "NVIDIA H100/PCIe/SSE2", 1.0, device.MEAN)
    software = device.Rendering("Mesa", "llvmpipe (LLVM)", 60.0, device.MEAN)
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setattr(device, "count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for answers, status in (((card, card), "ok"), ((card, software), "warn"), (("hangs", "hangs"), "warn")):
        monkeypatch.setattr(device, "render_with", lambda backend, index, answers=answers: answers[index])
        assert egl_checks()[-1].status == status
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "first")
    assert "is no number" in egl_checks()[0].says


def test_the_backend_that_is_named_is_the_one_that_evaluations_use(monkeypatch):
    """An egl that draws, though not what it should, is what render.use_backend takes."""
    wrong = device.Rendering("Mesa", "llvmpipe (LLVM)", 60.0, (0.0, 0.0, 0.0))
    right = device.Rendering("Mesa", "OSMesa", 60.0, device.MEAN)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setattr(device, "count", lambda: 1)
    monkeypatch.setattr(device, "render_with", lambda backend, *_: wrong if backend == "egl" else right)
    for draws, says in ((("egl", "osmesa"), "egl is used"), (("osmesa",), "osmesa is used"), ((), "no backend draws")):
        monkeypatch.setattr("la4vla.sim.render.why_not", lambda name, draws=draws: "" if name in draws else "dead")
        checks = gl_checks()
        assert says in checks[-1].says
        status = {check.name: check.status for check in checks}
        assert (status["GL egl device 0"], status["GL osmesa"]) == ("warn", "ok")


def test_a_protocol_of_an_unknown_suite_is_refused():
    with pytest.raises(UserError, match="simulator `simpler` is not known"):
        doctor(Demand("custom", "simpler", CORNER))


def test_every_shipped_protocol_has_its_images_in_the_reference():
    for suite, sim in SIMULATORS.items():
        golden = references()[suite]
        assert set(golden["versions"]) == set(sim.pins) and golden["renderer"] and "--write" in golden["made_by"]
        assert set(golden["settling"]) == set(sim.scenes.settling) >= set(sim.scenes.drawn)
    for title in protocols.titles():
        asked = protocols.load(title)
        for view in asked.views:
            key = Setting((view,), asked.image_size, asked.fast)
            for task in SIMULATORS[asked.suite].scenes.drawn:
                assert f"{task} {key}" in references()[asked.suite]["pictures"], title


def test_other_images_and_those_without_a_reference_are_not_vouched_for():
    golden = references()["metaworld"]
    kept = {key: value for key, value in golden["pictures"].items() if key.endswith(str(CORNER))}
    here = {**golden, "pictures": kept}
    assert image_check("metaworld", here, golden, CORNER).status == "ok"
    shadowless = {key: golden["pictures"][key.replace("full", "fast")] for key in kept}
    check = image_check("metaworld", {**here, "pictures": shadowless}, golden, CORNER)
    assert check.status == "fail" and "31.00 grey levels off" in check.says and "pick-place-v3" in check.says
    assert "other assets" in image_check("metaworld", {**here, "assets": "x"}, golden, CORNER).says
    stranger = {**here, "pictures": {"pick-place-v3 corner4:100:full": next(iter(kept.values()))}}
    assert "no images like" in image_check("metaworld", stranger, golden, CORNER).says
    assert suite_checks("metaworld", {}, None)[0].status == "fail"


def test_a_reference_that_lacks_what_is_compared_is_said_to():
    golden = references()["metaworld"]
    for part in ("versions", "renderer", "assets", "pictures", "settling"):
        (check,) = suite_checks("metaworld", {"metaworld": {**golden, part: 3}}, None)
        assert check.status == "fail" and f"no {part}" in check.says and "--write FILE" in check.cure
    (check,) = suite_checks("metaworld", {"metaworld": {**golden, "versions": {"mujoco": "3.3.0"}}}, None)
    assert check.status == "fail" and "no version of metaworld" in check.says
    listed: dict = {"metaworld": [1]}
    assert suite_checks("metaworld", listed, None)[0].status == "fail"
    kept = {key: value for key, value in golden["pictures"].items() if key.endswith(str(CORNER))}
    here = {**golden, "pictures": kept}
    for image in ({}, {"mean": 1, "std": [], "blocks": ""}, 7):
        check = image_check("metaworld", here, {**golden, "pictures": dict.fromkeys(kept, image)}, CORNER)
        assert check.status == "fail" and "images are damaged" in check.says and "--write FILE" in check.cure
    for row in ({}, {"moved": "far"}, 7):
        check = settling_check("metaworld", here, {**golden, "settling": {**golden["settling"], "hammer-v3": row}})
        assert check.status == "fail" and "hammer-v3" in check.says and "--write FILE" in check.cure


def test_an_error_without_a_cure_gets_none_that_is_invented():
    assert failed("a", "no file; copy it.", "look") == Check("a", "fail", "no file.", "copy it")
    assert failed("a", "KeyError: 'x'", "look", "libero") == Check("a", "fail", "KeyError: 'x'.", "look", "libero")


def test_a_simulator_that_breaks_is_not_a_matter_of_a_path(monkeypatch):
    monkeypatch.setattr("la4vla.doctor.suite.measured_here", lambda *_: "KeyError: 'corner4'")
    check = suite_checks("metaworld", references(), None)[-1]
    assert check.status == "fail" and check.cure.startswith("run `python -m la4vla.sim.golden metaworld`")


def test_objects_that_fly_or_do_not_rest_are_seen():
    golden = references()["libero"]
    for what, metres in (("moved", 0.1), ("last", 0.01)):
        here = copy.deepcopy(golden)
        here["settling"]["libero_spatial_05"][what] += metres
        check = settling_check("libero", here, golden)
        assert check.status == "fail" and "libero_spatial_05" in check.says
    assert settling_check("libero", golden, golden).status == "ok"


def test_a_missing_pin_and_a_missing_package_are_said(monkeypatch):
    golden = {**references()["metaworld"], "versions": {"mujoco": "3.3.0", "no-such-package": "1.0"}}
    assert [check.status for check in version_checks("metaworld", golden)] == ["ok", "fail"]
    assert "no-such-package (no pin, reference 1.0)" in pins_check("metaworld", golden).says
    monkeypatch.setattr("importlib.metadata.requires", lambda name: None)
    assert pins_check("metaworld", references()["metaworld"]).status == "warn"


def test_each_broken_checkpoint_is_one_sentence(good, tmp_path):
    whole = good[0]
    assert checkpoint_check(whole, QUICKSTART).status == "ok"
    wrecks = {
        "its embodiment is damaged": edited_manifest(whole, tmp_path / "a", embodiment={"name": "x"}),
        "this la4vla does not know": edited_manifest(whole, tmp_path / "b", transforms=[{"name": "Unheard"}]),
        "transforms are damaged (KeyError": edited_manifest(whole, tmp_path / "c", transforms=[{"name": "Normalize"}]),
        "the embodiment is another": edited_manifest(whole, tmp_path / "d", embodiment=libero.EMBODIMENT.to_dict()),
        "trained with the view `topview`": edited_manifest(
            whole, tmp_path / "e", views=["topview"], view_sizes={"topview": [[112, 112]]}
        ),
        "no such checkpoint folder": tmp_path / "nowhere",
        "its config is damaged": edited_manifest(whole, tmp_path / "f", config={"flow": {"steps": "ten"}}),
        "its tokenizer is damaged": edited_manifest(whole, tmp_path / "g"),
    }
    (wrecks["its tokenizer is damaged"] / manifest.TOKENIZER / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [], "model": {}})
    )
    for name in (manifest.TOKENIZER, manifest.COMPLETE, manifest.WEIGHTS):
        wrecks[name] = edited_manifest(whole, tmp_path / name)
    (wrecks[manifest.TOKENIZER] / manifest.TOKENIZER / "tokenizer.json").write_text("{")
    (wrecks[manifest.COMPLETE] / manifest.COMPLETE).unlink()
    weights = wrecks[manifest.WEIGHTS] / manifest.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    for sentence, folder in wrecks.items():
        check = checkpoint_check(folder, QUICKSTART)
        assert check.status == "fail" and sentence in check.says and check.cure


def test_damaged_shards_are_named_with_the_cure(good, tmp_path):
    assert shards_check(str(good[1])).status == "ok"
    other = shards_check(str(good[1]), QUICKSTART)
    assert other.status == "warn" and "under metaworld/quickstart-v1 the embodiment is another" in other.says
    write_shards(tmp_path / "seen", embodiment=EMBODIMENT, views=["front"])
    other = shards_check(str(tmp_path / "seen"), QUICKSTART)
    assert other.status == "warn" and "trained with the view `front`, the env shows corner4" in other.says
    shutil.copytree(good[1], tmp_path / "la")
    shard = next((tmp_path / "la").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:2000])
    check = shards_check(str(tmp_path / "la"))
    assert shard.name in check.says and "la4vla data verify" in check.cure
    (tmp_path / "la" / "stats.json").unlink()
    assert "stats.json cannot be read" in shards_check(str(tmp_path / "la")).says
    (tmp_path / "la" / "index.json").unlink()
    assert "index.json cannot be read" in shards_check(str(tmp_path / "la")).says


def test_one_line_says_which_suites_are_comparable_and_why_not():
    fine, bad = (
        Check("metaworld images", "ok", "same.", suite="metaworld"),
        Check("libero assets", "fail", "x.", "y", "libero"),
    )
    assert verdict([fine]).startswith("comparable: yes")
    assert verdict([fine, bad]) == "comparable: no, because libero assets: x; metaworld alone: yes."
    assert verdict([fine, Check("GL", "fail", "no backend draws.")]) == "comparable: no, because GL: no backend draws."
    assert "no simulator" in verdict([Check("metaworld", "note", "is not installed.", suite="metaworld")])
    assert summary_table([bad]).splitlines()[1].strip() == "cure: y"
    assert json.loads(to_json([fine, bad]))["suites"] == {"metaworld": True, "libero": False}


def test_a_file_of_references_must_be_one(tmp_path):
    (tmp_path / "golden.json").write_text("[")
    with pytest.raises(UserError, match="--write FILE"):
        references(tmp_path / "golden.json")
