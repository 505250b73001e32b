"""Why: a machine without GL must say so in one sentence before an hour of work, a backend is never switched in silence,
a dead GL context (which draws black without an error) must not become training data, and eight GPUs must not wait for
the first."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from la4vla.sim import render
from la4vla.sim.render import APT_LINE, FlatFrameError, check_frame, gpu_of, visible_gpus

CONFIG = "schema: construct\nout_dir: {0}/o\nread: {{path: {0}/e}}\nrecord: {{tasks: [reach-v3], episodes: 1}}\n"


def test_a_missing_backend_is_one_sentence_with_the_cure(tmp_path):
    (tmp_path / "construct.yaml").write_text(CONFIG.format(tmp_path))
    environment = {name: value for name, value in os.environ.items() if name != "LA4VLA_GL_PROBED"}
    done = subprocess.run(
        [sys.executable, "-m", "la4vla.construct", str(tmp_path / "construct.yaml")],
        env={**environment, "MUJOCO_GL": "garbage"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: no GL backend renders here (garbage:")
    assert APT_LINE in lines[0]
    assert not (tmp_path / "e").exists()


def test_the_reason_is_what_went_wrong_and_not_what_was_left_behind(monkeypatch):
    """MuJoCo's destructors complain after the error that matters."""
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    assert "MUJOCO_EGL_DEVICE_ID environment variable must be an integer" in render.why_not("egl")


def test_the_probe_that_the_installer_runs_can_fail():
    def probe(**changes: str) -> int:
        kept = {name: value for name, value in os.environ.items() if name not in ("LA4VLA_GL_PROBED", "MUJOCO_GL")}
        return subprocess.run([sys.executable, "-m", "la4vla.sim.render"], env={**kept, **changes}).returncode

    assert (probe(), probe(MUJOCO_GL="garbage")) == (0, 2)


def test_the_choice_is_all_that_libraries_read(monkeypatch):
    """robosuite draws with EGL whatever works unless MUJOCO_GL is set; PyOpenGL has a variable of its own."""
    for name in ("LA4VLA_GL_PROBED", "MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.setenv(name, "")  # so that what is chosen here is forgotten afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(render, "why_not", lambda name: "" if name == "osmesa" else "no")
    for name in ("mujoco.gl_context", *render.DRAWING):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert render.use_backend() == "osmesa"
    assert (os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"]) == ("osmesa", "osmesa")
    monkeypatch.setattr(render, "why_not", lambda name: "asked again")
    assert render.use_backend() == "osmesa"


def in_a_fresh_process(script: str) -> str:
    """What it prints where no backend has been chosen."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LA4VLA_GL_PROBED", "MUJOCO_GL")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_an_early_import_of_what_keeps_its_backend_is_refused():
    said = in_a_fresh_process(
        "import OpenGL\nfrom la4vla.sim.render import use_backend\nfrom la4vla.types import UserError\n"
        "try:\n    use_backend()\nexcept UserError as error:\n    print(error)"
    )
    assert "OpenGL was imported before" in said and "MUJOCO_GL=egl" in said


@pytest.mark.sim
def test_mujoco_draws_with_the_backend_that_is_chosen_after_its_import():
    """Poses from joints import it without drawing."""
    draws = render._PROBE.replace("import mujoco\n", "")
    said = in_a_fresh_process(
        "import mujoco\nfrom la4vla.sim.render import use_backend\nname = use_backend()\n"
        f"{draws}\nprint(name, mujoco.gl_context.GLContext.__module__)"
    )
    name, module = said.split()
    assert module == f"mujoco.{name}"


@pytest.mark.parametrize("level", [0, 128])
def test_a_flat_frame_is_not_a_frame(level):
    flat = np.full((8, 8, 3), level, np.uint8)
    with pytest.raises(FlatFrameError, match="one live env"):
        check_frame(flat, "reach-v3/corner4")
    flat[:4] += 40
    assert check_frame(flat, "reach-v3/corner4") is flat


SWAPPED = {0: 3, 1: 2, 2: 1, 3: 0}
"""CUDA's numbers -> EGL's, as seen on machines with four GPUs."""


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        (None, (3, 2, 1, 0)),
        ("2", (1,)),
        ("3, 0", (0, 3)),
        ("4", ()),
        ("", ()),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", ()),
        ("MIG-0", ()),
    ],
)
def test_workers_get_the_gpus_that_cuda_leaves_them(visible, chosen):
    assert visible_gpus(SWAPPED, visible) == chosen


def test_workers_take_turns_on_the_gpus():
    assert [gpu_of(worker, (0, 3)) for worker in range(5)] == [0, 3, 0, 3, 0]
    assert gpu_of(7, ()) is None


@pytest.fixture
def four_gpus(monkeypatch):
    """Four GPUs, as far as torch and EGL's enumeration say; a MUJOCO_GL of egl and no choice made."""
    asked = []

    def run(command, env, **rest):
        asked.append(env)
        return subprocess.CompletedProcess(command, 0, json.dumps(list(SWAPPED.items())), "")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(render.subprocess, "run", run)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    for name in ("MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_gpus_are_counted_without_cudas_mask_and_chosen_by_it(four_gpus, monkeypatch):
    """A driver that numbers the visible ones only would be asked for a number it does not have."""
    assert render.gpus() == (3, 2, 1, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert render.gpus() == (2, 1)
    assert len(four_gpus) == 2 and not any("CUDA_VISIBLE_DEVICES" in environment for environment in four_gpus)


@pytest.mark.parametrize(("name", "value"), [("MUJOCO_EGL_DEVICE_ID", "2"), ("MUJOCO_GL", "osmesa")])
def test_a_choice_of_the_users_stays(four_gpus, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert render.gpus() == () and not four_gpus


def test_what_cannot_be_chosen_is_said(four_gpus, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert render.gpus() == ()
    assert "set MUJOCO_EGL_DEVICE_ID" in capsys.readouterr().err


def test_without_a_gpu_nobody_is_asked(four_gpus, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert render.gpus() == () and not four_gpus and not capsys.readouterr().err


def test_the_question_itself_runs():
    """Mesa's devices, the only ones of a machine without a GPU, have no number of CUDA's."""
    environment = {**os.environ, "MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}
    asked = subprocess.run([sys.executable, "-c", render._GPUS], env=environment, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert len(json.loads(asked.stdout)) == torch.cuda.device_count()
