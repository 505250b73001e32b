"""Why: a machine without GL must say so in one sentence before an hour of work, a backend is never switched in silence,
and a dead GL context (which draws black without an error) must not become training data."""

import os
import subprocess
import sys

import numpy as np
import pytest

from la4vla.sim.render import APT_LINE, FlatFrameError, check_frame

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


def test_the_probe_that_the_installer_runs_can_fail():
    def probe(**changes: str) -> int:
        kept = {name: value for name, value in os.environ.items() if name not in ("LA4VLA_GL_PROBED", "MUJOCO_GL")}
        return subprocess.run([sys.executable, "-m", "la4vla.sim.render"], env={**kept, **changes}).returncode

    assert (probe(), probe(MUJOCO_GL="garbage")) == (0, 2)


def test_an_early_import_is_refused():
    script = (
        "import mujoco\nfrom la4vla.sim.render import use_backend\nfrom la4vla.types import UserError\n"
        "try:\n    use_backend()\nexcept UserError as error:\n    print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("LA4VLA_GL_PROBED", "MUJOCO_GL")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "MUJOCO_GL=egl" in done.stdout


@pytest.mark.parametrize("level", [0, 128])
def test_a_flat_frame_is_not_a_frame(level):
    flat = np.full((8, 8, 3), level, np.uint8)
    with pytest.raises(FlatFrameError, match="one live env"):
        check_frame(flat, "reach-v3/corner4")
    flat[:4] += 40
    assert check_frame(flat, "reach-v3/corner4") is flat
