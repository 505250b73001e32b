"""Which GL backend draws, decided once per process before any simulator is imported, and the guard against flat frames.

A backend is never switched silently: `MUJOCO_GL`, when set, is the only one tried; otherwise `egl`, then `osmesa`, each
in a subprocess (a failed GL import cannot be undone in this one), and the choice is printed and put into the
environment so that spawned workers draw with the same one. `MUJOCO_EGL_DEVICE_ID` is left to the user.

    python -m la4vla.sim.render     says which backend renders here; exit status 2 and the cure where none does
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from la4vla.types import UserError, exit_status

BACKENDS = ("egl", "osmesa")
"""In the order they are tried: egl uses a GPU where there is one, osmesa always draws on the CPU."""

APT_LINE = "apt-get install libegl1 libgl1-mesa-dri"

MIN_FRAME_STD = 2.0
"""Grey levels. Real frames have 40 and more; a frame of a dead GL context is black."""

_PROBED = "LA4VLA_GL_PROBED"
_PROBE_TIMEOUT_S = 120
_PROBE = """
import mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom type="box" size=".3 .3 .3" rgba="1 .5 0 1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().std() > 2, "the picture is flat"
"""


class FlatFrameError(RuntimeError):
    """A rendered frame has no content: the GL context is not the one that was drawn into."""


def use_backend() -> str:
    """Choose the GL backend of this process and its children, and return its name (`egl`, `osmesa`, ...).

    Must run before `mujoco` is imported; later calls return the same name. Raises UserError where nothing renders.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted and os.environ.get(_PROBED) == wanted:
        return wanted
    if "mujoco" in sys.modules and not wanted:
        raise UserError(
            "mujoco was imported before a GL backend was chosen; set MUJOCO_GL=egl (or osmesa) in the shell."
        )
    reasons = {}
    for name in [wanted] if wanted else BACKENDS:
        reason = why_not(name)
        if not reason:
            os.environ.update({"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name, _PROBED: name})
            if not wanted:
                print(f"rendering with {name} (set MUJOCO_GL to choose another backend)", file=sys.stderr)
            return name
        reasons[name] = reason
    tried = ", ".join(f"{name}: {reason}" for name, reason in reasons.items())
    cure = " or unset MUJOCO_GL to try egl and osmesa" if wanted else ""
    raise UserError(f"no GL backend renders here ({tried}); run `{APT_LINE}`{cure}.")


def check_frame(image: np.ndarray, name: str) -> np.ndarray:
    """`image` (uint8 [H, W, 3]) itself. Raises FlatFrameError where it is black or of one colour."""
    if float(image.std()) < MIN_FRAME_STD:
        raise FlatFrameError(
            f"{name}: the rendered frame is flat (std {image.std():.2f}); keep one live env per process."
        )
    return image


def why_not(name: str) -> str:
    """Empty if a subprocess can draw with this backend, else the last line of its error."""
    environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"no picture within {_PROBE_TIMEOUT_S} s"
    if probe.returncode == 0:
        return ""
    lines = [line.strip() for line in probe.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {probe.returncode}"


if __name__ == "__main__":
    sys.exit(exit_status(lambda _: int(not use_backend()), sys.argv[1:]))
