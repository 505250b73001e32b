"""What draws here and how fast: a tiny known scene is drawn by a GL backend on a device, in a subprocess that is killed
if it hangs.

    python -m la4vla.sim.device            draws with MUJOCO_GL on MUJOCO_EGL_DEVICE_ID, prints a Rendering as JSON
    python -m la4vla.sim.device count      prints the number of EGL devices
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from la4vla.sim.render import last_words

TIMEOUT_S = 60.0
"""A driver that hangs is killed after this; the slowest that worked, a busy CPU, took 6 s, most of it imports."""

SIZE = 224
FRAMES = 5
SCENE = """
<mujoco><worldbody>
  <light pos="0 0 3"/><camera name="front" pos="0 -1.5 1" xyaxes="1 0 0 0 .55 .83"/>
  <geom type="plane" size="2 2 .1" rgba=".2 .3 .9 1"/><geom type="box" pos="0 0 .3" size=".3 .3 .3" rgba="1 .5 0 1"/>
</worldbody></mujoco>"""
MEAN = (69.0, 59.3, 109.4)
"""Grey levels by channel of the image of SCENE; within 0.1 with Mesa's llvmpipe, softpipe and OSMesa."""
MEAN_TOLERANCE = 5.0
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swiftshader")


@dataclass(frozen=True)
class Rendering:
    """How the known scene was drawn.

    vendor     what the driver calls its maker
    renderer   what the driver calls itself
    frame_ms   median of FRAMES frames of SIZE pixels, after a first one that is not counted
    mean       grey levels of the image, by channel
    """

    vendor: str
    renderer: str
    frame_ms: float
    mean: tuple[float, float, float]

    @property
    def software(self) -> bool:
        """Whether the CPU drew it."""
        return any(name in self.renderer.lower() for name in SOFTWARE)

    @property
    def right(self) -> bool:
        """Whether the image is the one that the known scene has."""
        return bool(np.abs(np.subtract(self.mean, MEAN)).max() <= MEAN_TOLERANCE)


def names() -> tuple[str, str]:
    """Vendor and renderer of the GL context that is current in this process."""
    from OpenGL import GL

    vendor, renderer = (GL.glGetString(name) for name in (GL.GL_VENDOR, GL.GL_RENDERER))
    return (vendor or b"unknown").decode(), (renderer or b"unknown").decode()


def render_here() -> Rendering:
    """The scene drawn in this process, by the backend and device that the environment names."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)  # pyright: ignore[reportAttributeAccessIssue]
    data = mujoco.MjData(model)  # pyright: ignore[reportAttributeAccessIssue]
    mujoco.mj_forward(model, data)  # pyright: ignore[reportAttributeAccessIssue]
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        times = []
        for _ in range(FRAMES + 1):
            start = time.perf_counter()
            renderer.update_scene(data, "front")
            image = renderer.render()
            times.append(time.perf_counter() - start)
        red, green, blue = (round(float(value), 1) for value in image.mean((0, 1)))
        return Rendering(*names(), round(1000 * float(np.median(times[1:])), 2), (red, green, blue))


def render_with(backend: str, device: int | None = None, timeout_s: float = TIMEOUT_S) -> Rendering | str:
    """The scene drawn in a subprocess, or why there is none. device: number of an EGL device; None: the
    environment's."""
    chosen = {} if device is None else {"MUJOCO_EGL_DEVICE_ID": str(device)}
    printed, why = _run((), {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend, **chosen}, timeout_s)
    if why:
        return why
    raw = json.loads(printed)
    return Rendering(**{**raw, "mean": tuple(raw["mean"])})


def count(timeout_s: float = TIMEOUT_S) -> int | str:
    """How many EGL devices the drivers offer, counted in a subprocess, or why that is not known."""
    printed, why = _run(("count",), {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}, timeout_s)
    return why or int(printed)


def _run(arguments: Sequence[str], changes: Mapping[str, str], timeout_s: float) -> tuple[str, str]:
    """Runs this module in a subprocess. Returns the last line that it prints, and why there is none."""
    command = [sys.executable, "-m", "la4vla.sim.device", *arguments]
    try:
        done = subprocess.run(command, env={**os.environ, **changes}, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {timeout_s:.0f} s, killed"
    if done.returncode:
        return "", last_words(done.stderr) or f"exit status {done.returncode}"
    return done.stdout.splitlines()[-1], ""


def _main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["count"]:
        from mujoco.egl import egl_ext

        print(len(egl_ext.eglQueryDevicesEXT()))
    else:
        print(json.dumps(asdict(render_here())))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
