"""GL backends and EGL devices, torch with CUDA and NCCL, disk and memory: what no simulator has to be opened for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch.cuda import nccl

from la4vla.doctor.check import Check
from la4vla.sim import device, render
from la4vla.sim.device import Rendering
from la4vla.sim.render import APT_LINE, BACKENDS

MIN_DISK, MIN_SHM = 10e9, 1e9  # bytes below which a warning is due
WRONG = "draws another image of a known scene than it should"


def machine_checks() -> list[Check]:
    return [*gl_checks(), *torch_checks(), *space_checks()]


def gl_checks() -> list[Check]:
    """A check of every backend (or of the one MUJOCO_GL names), of egl on every device, and whether any draws.

    The backend that is named as used is chosen as evaluations choose it, whether or not its image is right.
    """
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    checks: list[Check] = []
    chosen = ""
    for name in (named,) if named else BACKENDS:
        if name == "egl":
            checks += egl_checks()
        else:
            checks.append(backend_check(f"GL {name}", device.render_with(name), _install(name)))
        if not chosen and not render.why_not(name):
            chosen = name
    if not chosen:
        cure = f"{APT_LINE}{', or unset MUJOCO_GL to try egl and osmesa' if named else ''}"
        return [*checks, Check("GL", "fail", "no backend draws, so no image can be made here.", cure)]
    why = "MUJOCO_GL says so" if named else "the first that draws"
    return [*checks, Check("GL", "ok", f"{chosen} is used by evaluations: {why}.")]


def egl_checks() -> list[Check]:
    """One check for each EGL device (only for MUJOCO_EGL_DEVICE_ID, where it is set), and whether CUDA's GPUs draw."""
    number = device.count()
    if isinstance(number, str):
        return [Check("GL egl", "note", f"does not draw: {number}.", _install("egl"))]
    named = os.environ.get("MUJOCO_EGL_DEVICE_ID", "")
    if named and not named.isdigit():
        return [Check("GL egl", "note", f"MUJOCO_EGL_DEVICE_ID={named} is no number.", "unset it, or count from 0")]
    devices = [int(named)] if named else range(number)
    renderings = {index: device.render_with("egl", index) for index in devices}
    checks = [backend_check(f"GL egl device {index}", rendering, APT_LINE) for index, rendering in renderings.items()]
    hardware = sum(
        isinstance(rendering, Rendering) and rendering.right and not rendering.software
        for rendering in renderings.values()
    )
    gpus = min(torch.cuda.device_count(), len(devices)) if named else torch.cuda.device_count()
    if not gpus and not hardware:
        says = "there is no GPU: everything is drawn by the CPU."
        return [*checks, Check("EGL on GPUs", "note", says)]
    if hardware < gpus:
        cure = "install the driver's EGL library (libnvidia-gl), in containers with NVIDIA_DRIVER_CAPABILITIES=all"
        return [*checks, Check("EGL on GPUs", "warn", f"{hardware} of {gpus} GPUs draw, a CPU is slow.", cure)]
    return [*checks, Check("EGL on GPUs", "ok", f"{hardware} devices draw in hardware, CUDA has {gpus}.")]


def backend_check(name: str, rendering: Rendering | str, cure: str) -> Check:
    """rendering: what was drawn, or why nothing was."""
    if isinstance(rendering, str):
        return Check(name, "note", f"does not draw: {rendering.rstrip('.')}.", cure)
    says = f"{rendering.vendor}, {rendering.renderer}, {rendering.frame_ms:.1f} ms a frame"
    if not rendering.right:
        return Check(
            name, "warn", f"{says}, but {WRONG}: mean {rendering.mean}.", "update the driver or use another device"
        )
    return Check(name, "ok", f"{says}.")


def torch_checks() -> list[Check]:
    """torch and, on GPUs, whether each multiplies in bf16 and whether NCCL sums over them."""
    if not torch.cuda.is_available():
        return [Check("torch", "note", f"{torch.__version__}, no CUDA device: everything runs on the CPU.")]
    gpus = range(torch.cuda.device_count())
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in gpus}))
    says = f"{torch.__version__}, CUDA {torch.version.cuda}, {len(gpus)} x {names}"
    cure = "install the torch build for this driver (pytorch.org)"
    try:
        ones = [torch.ones(64, 64, dtype=torch.bfloat16, device=f"cuda:{index}") for index in gpus]
        wrong = [index for index, each in enumerate(ones) if float((each @ each).float().sum()) != 64**3]
    except RuntimeError as error:
        return [Check("torch", "warn", f"{says}, but a bf16 product fails: {_first_line(error)}.", cure)]
    if wrong:
        return [Check("torch", "warn", f"{says}, but a bf16 product is wrong on GPU {wrong}.", cure)]
    return [Check("torch", "ok", f"{says}, bf16 multiplies."), nccl_check(len(gpus))]


def nccl_check(gpus: int) -> Check:
    """A sum over all GPUs of this process."""
    version = ".".join(str(part) for part in nccl.version())
    ones = [torch.ones(8, device=f"cuda:{index}") for index in range(gpus)]
    try:
        nccl.all_reduce(ones)
        right = all(float(values.sum()) == 8 * gpus for values in ones)
    except RuntimeError as error:
        cure = "run with NCCL_DEBUG=INFO to see why; try NCCL_P2P_DISABLE=1"
        return Check("NCCL", "warn", f"{version}, but a sum over {gpus} GPUs fails: {_first_line(error)}.", cure)
    if not right:
        return Check("NCCL", "warn", f"{version}, but a sum over {gpus} GPUs is wrong.", "try NCCL_P2P_DISABLE=1")
    return Check("NCCL", "ok", f"{version}, sums over {gpus} GPUs.")


def space_checks() -> list[Check]:
    """Free bytes of the working folder's disk and of shared memory, which worker processes use."""
    checks = []
    for name, place, least in (("disk", ".", MIN_DISK), ("shared memory", "/dev/shm", MIN_SHM)):
        if Path(place).is_dir():
            free = shutil.disk_usage(place).free
            says = f"{free / 1e9:.1f} GB free"
            if free >= least:
                checks.append(Check(name, "ok", f"{says}."))
            else:
                cure = f"free some or enlarge it{' (docker: --shm-size)' if place != '.' else ''}"
                checks.append(Check(name, "warn", f"{says}, less than {least / 1e9:.0f} GB.", cure))
    return checks


def _install(backend: str) -> str:
    known = {"egl": APT_LINE, "osmesa": "apt-get install libosmesa6 (only needed where egl does not draw)"}
    return known.get(backend, "unset MUJOCO_GL, or set it to egl or osmesa")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
