"""Which GL backend draws, decided once per process before any simulator is imported, and the guard against flat frames.

A backend is never switched silently: `MUJOCO_GL`, when set, is the only one tried; otherwise `egl`, then `osmesa`, each
in a subprocess (a failed GL import cannot be undone in this one), and the choice is printed and put into the
environment so that spawned workers draw with the same one. Where there are GPUs, workers share them out among
themselves; `MUJOCO_EGL_DEVICE_ID`, when set, is the one for all.

    python -m la4vla.sim.render     says which backend renders here; exit status 2 and the cure where none does
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from la4vla.shell import exit_status
from la4vla.types import UserError

BACKENDS = ("egl", "osmesa")
"""In the order they are tried: egl uses a GPU where there is one, osmesa always draws on the CPU."""

DRAWING = ("OpenGL", "robosuite")
"""Libraries that look for the backend when they are imported, and keep it."""

APT_LINE = "apt-get install libegl1 libgl1-mesa-dri"

MIN_FRAME_STD = 2.0
"""Grey levels. Real frames have 40 and more; a frame of a dead GL context is black."""

_PROBED = "LA4VLA_GL_PROBED"
_DEVICE, _VISIBLE = "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"
_PROBE_TIMEOUT_S = 120
_PROBE = """
import mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom type="box" size=".3 .3 .3" rgba="1 .5 0 1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().std() > 2, "the image is flat"
"""

_GPUS = """
import ctypes, json
from mujoco.egl import egl_ext as egl
number_p = ctypes.POINTER(ctypes.c_ssize_t)
function = ctypes.CFUNCTYPE(egl.EGLBoolean, egl.EGLDeviceEXT, egl.EGLint, number_p)
cuda_number_of = function(egl.eglGetProcAddress("eglQueryDeviceAttribEXT"))
found = []
for number, device in enumerate(egl.eglQueryDevicesEXT()):
    cuda_number = ctypes.c_ssize_t()
    if cuda_number_of(device, 0x323A, ctypes.byref(cuda_number)):  # EGL_CUDA_DEVICE_NV; Mesa's devices have none
        found.append((cuda_number.value, number))
print(json.dumps(found))
"""


class FlatFrameError(RuntimeError):
    """A rendered frame has no content: the GL context is not the one that was drawn into."""


def use_backend() -> str:
    """Choose the GL backend of this process and its children, and return its name (`egl`, `osmesa`, ...).

    Must run before a library that draws by `mujoco` is imported; where `mujoco` itself is, it draws with the chosen one
    from then on. Later calls return the same name. Raises UserError where nothing renders.
    """
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    if named and os.environ.get(_PROBED) == named:
        return named
    if not named and (drawing := [library for library in DRAWING if library in sys.modules]):
        raise UserError(
            f"{drawing[0]} was imported before a GL backend was chosen; set MUJOCO_GL=egl (or osmesa) in the shell."
        )
    reasons = {}
    for name in [named] if named else BACKENDS:
        reason = why_not(name)
        if not reason:
            os.environ.update({"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name, _PROBED: name})
            if chosen_at_import := sys.modules.get("mujoco.gl_context"):
                importlib.reload(chosen_at_import)
            if not named:
                print(f"rendering with {name} (set MUJOCO_GL to choose another backend)", file=sys.stderr)
            return name
        reasons[name] = reason
    tried = ", ".join(f"{name}: {reason}" for name, reason in reasons.items())
    cure = " or unset MUJOCO_GL to try egl and osmesa" if named else ""
    raise UserError(f"no GL backend renders here ({tried}); run `{APT_LINE}`{cure}.")


def check_frame(image: np.ndarray, name: str) -> np.ndarray:
    """Returns `image` (uint8 [H, W, 3]). Raises FlatFrameError where it is black or of one colour."""
    if float(image.std()) < MIN_FRAME_STD:
        raise FlatFrameError(
            f"{name}: the rendered frame is flat (std {image.std():.2f}); keep one live env per process."
        )
    return image


def why_not(name: str) -> str:
    """Why a subprocess cannot draw with this backend: the last line of its error. Empty if it can."""
    environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"no image within {_PROBE_TIMEOUT_S} s"
    if probe.returncode == 0:
        return ""
    return last_words(probe.stderr) or f"exit status {probe.returncode}"


def last_words(stderr: str) -> str:
    """The line that says what ended a process: the last one before those that destructors print afterwards."""
    said = stderr.partition("Exception ignored in")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""


def gpus() -> tuple[int, ...]:
    """EGL's numbers of the GPUs that `CUDA_VISIBLE_DEVICES` leaves to this process, in its order.

    Empty where there is no choice to make: without EGL or a GPU, and where `MUJOCO_EGL_DEVICE_ID` is set. Empty too
    where the GPUs cannot be told apart; then a line on stderr says so.
    """
    import torch

    if os.environ.get("MUJOCO_GL") != "egl" or os.environ.get(_DEVICE) or not torch.cuda.device_count():
        return ()
    # Some drivers number only the visible GPUs, others all of them; without the variable both number all.
    environment = {name: value for name, value in os.environ.items() if name != _VISIBLE}
    asked = subprocess.run(
        [sys.executable, "-c", _GPUS], env=environment, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S
    )
    egl_numbers = dict(json.loads(asked.stdout)) if asked.returncode == 0 else {}
    chosen = visible_gpus(egl_numbers, os.environ.get(_VISIBLE))
    if not chosen:
        print(f"all workers render on EGL's first device; set {_DEVICE} to choose another", file=sys.stderr)
    return chosen


def visible_gpus(egl_numbers: Mapping[int, int], visible: str | None) -> tuple[int, ...]:
    """egl_numbers: CUDA's number of a GPU -> EGL's (they differ), all GPUs. visible: `CUDA_VISIBLE_DEVICES`, None where
    it is not set. Empty where that names a GPU by its UUID, or one that is not in egl_numbers."""
    if visible is None:
        return tuple(egl_numbers[number] for number in sorted(egl_numbers))
    names = [name.strip() for name in visible.split(",")]
    if not all(name.isdecimal() and int(name) in egl_numbers for name in names):
        return ()
    return tuple(egl_numbers[int(name)] for name in names)


def gpu_of(worker: int, gpus: Sequence[int]) -> int | None:
    """The GPU that worker number `worker` draws on; None where there is none to choose."""
    return gpus[worker % len(gpus)] if gpus else None


def use_gpu(number: int) -> None:
    """This process, which has not drawn yet and uses no CUDA, draws on EGL's device `number`.

    `CUDA_VISIBLE_DEVICES` is unset, because `number` counts all GPUs, and robosuite refuses a number that is not in it.
    """
    os.environ[_DEVICE] = str(number)
    os.environ.pop(_VISIBLE, None)


if __name__ == "__main__":
    sys.exit(exit_status(lambda _: int(not use_backend()), sys.argv[1:]))
