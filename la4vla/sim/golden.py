"""Golden frames: what a suite draws and how its scenes settle, as few numbers, against references in data/golden.json.

    python -m la4vla.sim.golden SUITE [VIEW,VIEW:SIZE:full|fast ...]     measures here, prints JSON
    python -m la4vla.sim.golden SUITE --write FILE                       measures all that a reference holds, writes it

One process has one live env, so each suite is measured in a process of its own. A reference carries what it was made
with: versions, GL renderer, and a fingerprint of LIBERO's assets. Its images can be compared only with those of the
same assets.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from la4vla.shell import exit_status
from la4vla.sim.device import names
from la4vla.sim.mujoco_env import MujocoEnv
from la4vla.sim.registry import SIMULATORS, Setting, Simulator, simulator
from la4vla.types import UserError

BLOCKS = 8  # a thumbnail has 8 x 8 block means
SETTLE_STEPS = 20  # zero actions after the reset; protocols wait for 10 at most
STANDINS = "STANDINS.md"  # in an assets folder: not all of its files are the benchmark's own

Measured = dict[str, Any]


def references(path: Path | None = None) -> dict[str, Measured]:
    """Suite -> what `measure` returned where the reference was made. path: another file than data/golden.json.

    Raises UserError where it is no such file.
    """
    try:
        text = (path or resources.files("la4vla.sim") / "data" / "golden.json").read_text()
        return dict(json.loads(text))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no file of references ({error}); write one by `python -m la4vla.sim.golden SUITE --write FILE`."
        ) from error


def measure(suite: str, settings: Sequence[Setting]) -> Measured:
    """Images of every setting (mean, std and thumbnail by channel), and the metres bodies move while settling.

    The scenes settle once, with the first setting. Raises UserError without a GL backend and where LIBERO or its assets
    are missing.
    """
    sim, images, settling, driver = SIMULATORS[suite], {}, {}, dict[str, str]()
    scenes = sim.scenes
    for number, setting in enumerate(settings):
        env = sim.make_env(setting.views, setting.size, SETTLE_STEPS + 1, setting.fast)
        assert isinstance(env, MujocoEnv)
        for task in scenes.drawn if number else scenes.settling:
            observation = env.reset(task, 0)
            driver["vendor"], driver["renderer"] = names()
            if task in scenes.drawn:
                for view in setting.views:
                    name = f"{task} {Setting((view,), setting.size, setting.fast)}"
                    images[name] = summary(observation.views[view])
            if number == 0:
                settling[task] = _settle(env)
        driver["backend"] = env.backend
        env.close()
    versions = {name: importlib.metadata.version(name) for name in sim.pins}
    return {"versions": versions, **driver, **_assets(sim), "settling": settling, "pictures": images}


def summary(image: np.ndarray) -> dict[str, Any]:
    """uint8 [H, W, 3] -> mean and std by channel, and 8 x 8 x 3 block means in hex, one byte each, rounded."""
    small = cv2.resize(image.astype(np.float32), (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA)
    return {
        "mean": image.mean((0, 1)).round(2).tolist(),
        "std": image.std((0, 1)).round(2).tolist(),
        "blocks": small.round().astype(np.uint8).tobytes().hex(),
    }


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest difference of two summaries in a block mean, a mean or a std; grey levels."""
    blocks = (np.frombuffer(bytes.fromhex(each["blocks"]), np.uint8).astype(float) for each in (one, other))
    wholes = (np.array([*each["mean"], *each["std"]]) for each in (one, other))
    return max(float(np.abs(np.subtract(*pair)).max()) for pair in (blocks, wholes))


def _settle(env: MujocoEnv) -> dict[str, float]:
    """moved: largest displacement of a body over SETTLE_STEPS zero actions; last: over the last one; metres."""
    places = [env.body_positions()]
    for _ in range(SETTLE_STEPS):
        env.step(np.zeros(len(env.embodiment.action.names)))
        places.append(env.body_positions())
    moved, last = (np.linalg.norm(places[-1] - other, axis=-1).max() for other in (places[0], places[-2]))
    return {"moved": round(float(moved), 5), "last": round(float(last), 5)}


def _assets(sim: Simulator) -> dict[str, Any]:
    """assets: fingerprint of the names and sizes of the simulator's files, empty where its package holds them.

    standins: whether the folder says that not all of them are the simulator's own. assets_folder, config_folder: of
    this machine, empty where the package holds the files.
    """
    folders = sim.asset_folders()
    if folders is None:
        return {"assets": "", "standins": False, "assets_folder": "", "config_folder": ""}
    folder, config = folders
    files = sorted(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.suffix in (".xml", ".msh", ".stl", ".obj", ".png")
    )
    fingerprint = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
    places = {"assets_folder": str(folder), "config_folder": str(config)}
    return {"assets": fingerprint, "standins": (folder / STANDINS).is_file(), **places}


def write(suite: str, path: Path) -> None:
    """Measures everything a reference holds and puts it into the file, beside those of other suites."""
    scenes = SIMULATORS[suite].scenes
    measured = measure(suite, (scenes.usual, *scenes.others))
    del measured["assets_folder"], measured["config_folder"]
    measured = {"made_by": f"python -m la4vla.sim.golden {suite} --write FILE", **measured}
    others = references(path) if path.is_file() else {}
    path.write_text(_laid_out({**others, suite: measured}) + "\n")


def _laid_out(everything: Mapping[str, Measured]) -> str:
    """JSON with one line for each value of a suite and each image."""

    def lines(values: Mapping[str, Any], indent: str) -> str:
        inner = [
            f"{indent} {json.dumps(key)}: "
            + (lines(value, f"{indent} ") if key in ("pictures", "settling", *everything) else json.dumps(value))
            for key, value in values.items()
        ]
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"

    return lines(everything, "")


def _main(arguments: Sequence[str]) -> int:
    suite, *rest = arguments or ("",)
    usual = simulator(suite, "golden frames").scenes.usual
    if len(rest) == 2 and rest[0] == "--write":
        write(suite, Path(rest[1]))
    else:
        print(json.dumps(measure(suite, [Setting.parse(text) for text in rest] or [usual])))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(_main, sys.argv[1:]))
