"""`la4vla doctor`: whether success rates made here can be compared with those made elsewhere, and what to cure if not.

Simulators are asked in subprocesses: a dead GL library cannot take the doctor along. A suite that is not installed is a
note. What is neither installed nor given (checkpoint, shards) is not judged.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.cuda import nccl

from la4vla import manifest
from la4vla.data.transforms import chain_from_dicts
from la4vla.data.verify import verify
from la4vla.sim.golden import Measured, references
from la4vla.sim.render import APT_LINE, BACKENDS, why_not
from la4vla.types import Embodiment, UserError

PACKAGES = {"metaworld": "metaworld", "libero": "hf-libero"}  # suite -> the distribution that brings it
TOLERANCE = 4.0  # grey levels of a block mean; egl and osmesa on CPUs are identical, GPUs round differently
MAX_MOVED = 0.15  # m over 20 zero actions; measured: 0.032 MetaWorld's arm, 0.072 a bowl of LIBERO
MAX_LAST = 0.005  # m in the last of them; measured: 0.0007
MIN_DISK, MIN_SHM = 10e9, 1e9  # bytes below which a warning is due

Status = Literal["ok", "note", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of the table. says: a sentence, with the cure where the status is not ok."""

    name: str
    status: Status
    says: str


def doctor(checkpoint: Path | None, data: Sequence[str]) -> list[Check]:
    """Every check, in the order printed. Takes 10 seconds and the time to read the shards and the weights."""
    checks = [*backends(), *machine(), *versions()]
    for suite, package in PACKAGES.items():
        if installed(package):
            checks.extend(suite_checks(suite))
        else:
            checks.append(Check(suite, "note", f'is not installed; pip install "la4vla[{suite}]" to evaluate on it.'))
    if checkpoint is not None:
        checks.append(checkpoint_check(checkpoint))
    return [*checks, *(shards_check(folder) for folder in data)]


def verdict(checks: Sequence[Check]) -> str:
    """`comparable: yes|no, because ...`: yes where nothing failed and the pictures of a suite match a reference."""
    failed = [f"{check.name}: {check.says}" for check in checks if check.status == "failed"]
    if failed:
        return f"comparable: no, because {failed[0]}" + (f" ({len(failed) - 1} more)" if failed[1:] else "")
    seen = [check.name.split()[0] for check in checks if check.name.endswith("pictures") and check.status == "ok"]
    if not seen:
        return "comparable: no, because no suite's pictures match a reference."
    return f"comparable: yes, because versions, pictures and settling of {' and '.join(seen)} match the references."


def table(checks: Sequence[Check]) -> str:
    return "\n".join(f"{check.status:8}{check.name:22}{check.says}" for check in checks)


def backends() -> list[Check]:
    """Which GL backends draw; the one that evaluations will use must."""
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    reasons = {name: why_not(name) for name in ([wanted] if wanted else BACKENDS)}
    chosen = next((name for name, reason in reasons.items() if not reason), "")
    checks = [Check(f"GL {name}", "note", f"does not draw: {why}.") for name, why in reasons.items() if why]
    if not chosen:
        return [*checks, Check("GL", "failed", f"no backend draws; run `{APT_LINE}` or unset MUJOCO_GL.")]
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID", "the first that works")
    return [*checks, Check("GL", "ok", f"{chosen} draws and is chosen; EGL device: {device}.")]


def machine() -> list[Check]:
    """torch and its devices, disk, shared memory."""
    if torch.cuda.is_available():
        about = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPUs, bf16 {torch.cuda.is_bf16_supported()}"
        checks = [Check("torch", "ok", f"{torch.__version__}, {about}, NCCL {nccl.version()}.")]
    else:
        checks = [Check("torch", "note", f"{torch.__version__}, no CUDA device: everything runs on the CPU.")]
    for name, place, least in (("disk", ".", MIN_DISK), ("shared memory", "/dev/shm", MIN_SHM)):
        if Path(place).is_dir():
            free = shutil.disk_usage(place).free
            cure = "." if free >= least else f"; less than {least / 1e9:.0f} GB: free some or enlarge it."
            checks.append(Check(name, "ok" if free >= least else "warning", f"{free / 1e9:.1f} GB free{cure}"))
    return checks


def versions() -> list[Check]:
    """Simulator packages against the exact pins of la4vla's own extras, which the references were made with."""
    checks = []
    for name, wanted in sorted(pins().items()):
        have = installed(name)
        if have and have != wanted:
            says = f"{have} is installed, references were made with {wanted}; pip install {name}=={wanted}."
            checks.append(Check(name, "failed", says))
        elif have:
            checks.append(Check(name, "ok", f"{have}, as pinned."))
    return checks


def pins() -> dict[str, str]:
    """Distribution -> version, of every exact pin in la4vla's extras."""
    rows = importlib.metadata.requires("la4vla") or []
    return {m[1]: m[2] for row in rows if (m := re.match(r"([\w.-]+)==([\w.]+)", row))}


def installed(package: str) -> str:
    """Its version, empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def suite_checks(suite: str) -> list[Check]:
    """Draws and steps the suite's fixed scenes in a subprocess and compares with the reference."""
    done = subprocess.run([sys.executable, "-m", "la4vla.sim.golden", suite], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return [Check(f"{suite} pictures", "failed", last.removeprefix("error: "))]
    measured = json.loads(done.stdout.splitlines()[-1])
    return [picture_check(suite, measured, references()[suite]), settling_check(suite, measured)]


def picture_check(suite: str, measured: Measured, reference: Measured) -> Check:
    """Block means, means and stds of both qualities against the reference's."""
    name = f"{suite} pictures"
    if measured["assets"] != reference["assets"]:
        return Check(name, "warning", "no reference for these assets, so pictures cannot be vouched for.")
    worst = max(
        float(np.abs(np.subtract(measured["pictures"][quality][what], values)).max())
        for quality, numbers in reference["pictures"].items()
        for what, values in numbers.items()
    )
    if worst > TOLERANCE:
        says = f"pictures differ by {worst:.1f} grey levels (at most {TOLERANCE}); use the pinned versions."
        return Check(name, "failed", says)
    note = f" {reference['note']}" if reference["note"] else ""
    return Check(name, "ok", f"within {worst:.2f} grey levels of the reference ({reference['backend']}).{note}")


def settling_check(suite: str, measured: Measured) -> Check:
    moved, last = (max(row[what] for row in measured["settling"].values()) for what in ("moved", "last"))
    says = f"bodies move {100 * moved:.1f} cm in 20 zero actions, {1000 * last:.2f} mm in the last"
    if moved > MAX_MOVED or last > MAX_LAST:
        return Check(f"{suite} settling", "failed", f"{says}: objects fly; install the pinned versions.")
    return Check(f"{suite} settling", "ok", f"{says}.")


def checkpoint_check(path: Path) -> Check:
    """Complete, the weights its manifest names, an embodiment and a transform chain that rebuild."""
    try:
        folder = manifest.resolve(path)
        about = manifest.read(folder)
        weights = folder / manifest.WEIGHTS
        if not weights.is_file():
            raise UserError(f"{weights}: missing; copy the checkpoint again.")
        with weights.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != about.weights_sha256:
                raise UserError(f"{weights}: not the weights its manifest describes; copy the checkpoint again.")
        robot = Embodiment.from_dict(about.embodiment)
        chain_from_dicts(about.transforms)
    except UserError as error:
        return Check("checkpoint", "failed", str(error))
    return Check("checkpoint", "ok", f"{folder}: {robot.name}, views {', '.join(about.views) or 'none'}, whole.")


def shards_check(folder: str) -> Check:
    try:
        report = verify(folder)
    except UserError as error:
        return Check("shards", "failed", str(error))
    problems = [*report.folder_problems, *(f"{s.name}: {p}" for s in report.shards for p in s.problems)]
    if problems:
        return Check("shards", "failed", f"{folder}: {problems[0]} (`la4vla data verify {folder}` lists all).")
    return Check("shards", "ok", f"{folder}: all as the index says.")
