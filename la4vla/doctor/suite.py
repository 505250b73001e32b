"""A simulator suite against its reference: versions, LIBERO's assets, images, and initial states that settle.

Each tolerance lies between differences that were measured to be harmless and one that was measured to be a fault
(docs/evaluation.md).
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from la4vla.doctor.check import Check, Demand, failed
from la4vla.sim.device import last_words
from la4vla.sim.golden import SETTLE_STEPS, Measured, distance
from la4vla.sim.registry import SIMULATORS, Setting

TOLERANCE = 3.0  # grey levels of a block mean, a mean or a std
MAX_OFF = 0.005  # m by which a body's way while settling may differ from the reference's
MAX_LAST = 0.002  # m that a body may move in the last step
TIMEOUT_S = 600.0  # the slowest suite took 90 s on a busy CPU

PARTS = {"versions": dict, "renderer": str, "assets": str, "pictures": dict, "settling": dict}
"""Parts of a reference, which are compared or named where they differ, and their types."""


def suite_checks(suite: str, references: Mapping[str, Measured], demand: Demand | None) -> list[Check]:
    """Draws and steps the suite's scenes in a subprocess, at the demand's setting or the usual one, and compares."""
    if suite not in references:
        says = "the file of references has none of this suite."
        return [Check(f"{suite} images", "fail", says, remake(suite), suite)]
    reference = references[suite]
    if lacking := lacks(suite, reference):
        says = f"the reference has no {' and no '.join(lacking)}."
        return [Check(f"{suite} reference", "fail", says, remake(suite), suite)]
    checks = [*version_checks(suite, reference), pins_check(suite, reference)]
    setting = demand.setting if demand else SIMULATORS[suite].scenes.usual
    measured = measured_here(suite, setting)
    if isinstance(measured, str):
        cure = f"run `python -m la4vla.sim.golden {suite}` to see all that it says"
        return [*checks, failed(f"{suite} images", f"nothing is drawn: {measured}", cure, suite)]
    checks += assets_checks(suite, measured)
    return [*checks, image_check(suite, measured, reference, setting), settling_check(suite, measured, reference)]


def lacks(suite: str, reference: object) -> list[str]:
    """The parts that the suite's checks need and that a reference, which may be a user's own, does not have."""
    if not isinstance(reference, dict):
        return list(PARTS)
    lacking = [part for part, kind in PARTS.items() if not isinstance(reference.get(part), kind)]
    return lacking or [f"version of {name}" for name in SIMULATORS[suite].pins if name not in reference["versions"]]


def remake(suite: str) -> str:
    """The cure of a reference that does not hold what is needed."""
    made = f"python -m la4vla.sim.golden {suite} --write FILE"
    return f"{made}, where the results to compare with were made; then --golden"


def measured_here(suite: str, setting: Setting) -> Measured | str:
    """What sim.golden measures in a subprocess, or a sentence that says why it could not."""
    command = [sys.executable, "-m", "la4vla.sim.golden", suite, str(setting)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:.0f} s, killed; try another GL backend or EGL device."
    if done.returncode:
        return last_words(done.stderr) or f"exit status {done.returncode}."
    return json.loads(done.stdout.splitlines()[-1])


def version_checks(suite: str, reference: Measured) -> list[Check]:
    """Each package that decides images and physics, against the version the reference was made with."""
    checks = []
    for name, version in reference["versions"].items():
        have, cure = installed(name), f"pip install {name}=={version}"
        if have == version:
            checks.append(Check(name, "ok", f"{have}, as the {suite} reference.", suite=suite))
        else:
            says = f"{have or 'none'} is installed, the {suite} reference was made with {version}."
            checks.append(Check(name, "fail", says, cure, suite))
    return checks


def pins_check(suite: str, reference: Measured) -> Check:
    """Whether the installed metadata of la4vla pins what the reference was made with. After an update of the code it
    may be out of date."""
    has = pins()
    stale = [
        f"{name} ({has.get(name, 'no pin')}, reference {version})"
        for name, version in reference["versions"].items()
        if has.get(name) != version
    ]
    if stale:
        says = f"la4vla's installed metadata does not pin {', '.join(stale)}."
        return Check(f"{suite} pins", "warn", says, f'install la4vla again: pip install "la4vla[{suite}]"', suite)
    return Check(f"{suite} pins", "ok", "the extra pins what the reference was made with.", suite=suite)


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


def assets_checks(suite: str, measured: Measured) -> Sequence[Check]:
    """Where LIBERO's config and assets are. Stand-in assets make results incomparable."""
    if not measured["assets_folder"]:
        return []
    config = f"la4vla's own, in {measured['config_folder']}; ~/.libero is neither read nor written."
    checks = [Check(f"{suite} config", "ok", config, suite=suite)]
    where = f"in {measured['assets_folder']}"
    if measured["standins"]:
        says = f"stand-in assets {where} (STANDINS.md lists them): comparable only with results on the same ones."
        cure = "set LA4VLA_LIBERO_ASSETS to LIBERO's own assets, or unset it to take the hub's"
        return [*checks, Check(f"{suite} assets", "fail", says, cure, suite)]
    return [*checks, Check(f"{suite} assets", "ok", f"no stand-ins, {where}.", suite=suite)]


def image_check(suite: str, measured: Measured, reference: Measured, setting: Setting) -> Check:
    """Every image's block means, means and stds against the reference's."""
    name = f"{suite} images"
    if measured["assets"] != reference["assets"]:
        says = "the reference was drawn with other assets, so images are not vouched for."
        return Check(name, "fail", says, remake(suite), suite)
    missing = measured["pictures"].keys() - reference["pictures"].keys()
    if missing:
        says = f"the reference has no images like {setting}, so they are not vouched for."
        return Check(name, "fail", says, "run a protocol that ships; its images are all in the reference", suite)
    try:
        off = {key: distance(image, reference["pictures"][key]) for key, image in measured["pictures"].items()}
    except (KeyError, TypeError, ValueError) as error:
        says = f"the reference's images are damaged ({type(error).__name__}: {error})."
        return Check(name, "fail", says, remake(suite), suite)
    worst = max(off, key=lambda key: off[key])
    how = f"{len(off)} of {setting}, {off[worst]:.2f} grey levels off at most ({TOLERANCE} allowed)"
    if off[worst] > TOLERANCE:
        drawn = f"drawn by {measured['renderer']}, the reference by {reference['renderer']}"
        says = f"{how}, {worst.partition(' ')[0]} most; {drawn}."
        return Check(name, "fail", says, "use the reference's versions; then try another GL backend or device", suite)
    return Check(name, "ok", f"{how}; drawn by {measured['renderer']}.", suite=suite)


def settling_check(suite: str, measured: Measured, reference: Measured) -> Check:
    """How far bodies move while nothing is commanded, against the reference; and that they have come to rest."""
    name, settled = f"{suite} settling", measured["settling"]
    try:
        off = {task: abs(row["moved"] - reference["settling"][task]["moved"]) for task, row in settled.items()}
    except (KeyError, TypeError) as error:
        says = f"the reference does not tell how all of {', '.join(settled)} settle ({type(error).__name__}: {error})."
        return Check(name, "fail", says, remake(suite), suite)
    worst = max(off, key=lambda task: off[task])
    restless = max(settled, key=lambda task: settled[task]["last"])
    last = settled[restless]["last"]
    how = f"{len(settled)} initial states, {SETTLE_STEPS} zero actions"
    if off[worst] > MAX_OFF or last > MAX_LAST:
        moved, before = settled[worst]["moved"], reference["settling"][worst]["moved"]
        says = f"{how}: a body of {worst} moves {100 * moved:.1f} cm (reference {100 * before:.1f}), one of {restless} "
        says += f"{1000 * last:.1f} mm in the last step ({1000 * MAX_LAST:.0f} allowed)."
        return Check(name, "fail", says, "use the reference's versions of MuJoCo and the suite", suite)
    says = f"{how}: ways as the reference's to {1000 * off[worst]:.1f} mm, {1000 * last:.2f} mm in the last step."
    return Check(name, "ok", says, suite=suite)
