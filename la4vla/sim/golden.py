"""What a suite draws and how its scenes settle, as few numbers, to be compared with the references in data/golden.json.

    python -m la4vla.sim.golden SUITE     measures in this process (one live env) and prints JSON

References hold for the assets whose fingerprint they carry; LIBERO's were drawn with stand-in assets and say so.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from la4vla.sim.libero import LiberoEnv, open_libero
from la4vla.sim.metaworld import MetaWorldEnv
from la4vla.types import UserError, exit_status

SCENES = {
    "metaworld": ("corner4", ("pick-place-v3", "drawer-open-v3", "hammer-v3")),
    "libero": ("agentview", ("libero_object_00", "libero_spatial_00", "libero_goal_00")),
}
"""Suite -> camera, and the tasks that must settle; the first one, episode 0, is drawn."""

IMAGE_SIZE = 112
BLOCKS = 8  # the thumbnail has 8 x 8 block means
SETTLE_STEPS = 20  # zero actions

Measured = dict[str, Any]


def references() -> dict[str, Measured]:
    """sim/data/golden.json: suite -> what `measure` returned where results were made, with a note."""
    return json.loads((resources.files("la4vla.sim") / "data" / "golden.json").read_text())


def thumbnail(image: np.ndarray) -> list[list[list[float]]]:
    """uint8 [112, 112, 3] -> block means [8][8][3], grey levels."""
    side = IMAGE_SIZE // BLOCKS
    return image.reshape(BLOCKS, side, BLOCKS, side, 3).mean((1, 3)).round(2).tolist()


def measure(suite: str) -> Measured:
    """Pictures at full quality and fast (mean, std, thumbnail by channel), and the metres bodies move while settling.

    Raises UserError for an unknown suite, without a GL backend, and where LIBERO or its assets are missing.
    """
    if suite not in SCENES:
        raise UserError(f"suite `{suite}` has no reference; use one of {', '.join(SCENES)}.")
    view, tasks = SCENES[suite]
    pictures, settling, backend = {}, {}, ""
    for quality in ("full", "fast"):
        build = MetaWorldEnv if suite == "metaworld" else LiberoEnv
        env = build((view,), IMAGE_SIZE, SETTLE_STEPS + 1, quality == "fast")
        backend = env.backend
        image = env.reset(tasks[0], 0).views[view]
        pictures[quality] = {
            "mean": image.mean((0, 1)).round(2).tolist(),
            "std": image.std((0, 1)).round(2).tolist(),
            "blocks": thumbnail(image),
        }
        if quality == "full":
            settling = {task: _settle(env, task) for task in tasks}
        env.close()
    return {"backend": backend, "assets": _fingerprint(suite), "pictures": pictures, "settling": settling}


def _settle(env: MetaWorldEnv | LiberoEnv, task: str) -> dict[str, float]:
    """moved: largest displacement of a body over SETTLE_STEPS zero actions; last: over the last one; metres."""
    env.reset(task, 0)
    places = [_bodies(env)]
    for _ in range(SETTLE_STEPS):
        env.step(np.zeros(len(env.embodiment.action.names)))
        places.append(_bodies(env))
    moved, last = (np.linalg.norm(places[-1] - other, axis=-1).max() for other in (places[0], places[-2]))
    return {"moved": round(float(moved), 5), "last": round(float(last), 5)}


def _bodies(env: MetaWorldEnv | LiberoEnv) -> np.ndarray:
    data = env._scene.data if isinstance(env, MetaWorldEnv) else env._scene.sim.data._data
    return data.xpos.copy()


def _fingerprint(suite: str) -> str:
    """Empty for MetaWorld, whose package holds its assets; else of names and sizes of LIBERO's asset files."""
    if suite == "metaworld":
        return ""
    open_libero()
    import libero.libero  # pyright: ignore[reportMissingImports]

    folder = Path(libero.libero.get_assets_path())
    files = sorted(
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in folder.rglob("*")
        if path.suffix in (".xml", ".msh", ".stl", ".obj", ".png")
    )
    return hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]


def _main(arguments: Sequence[str]) -> int:
    print(json.dumps(measure(arguments[0] if arguments else "")))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(_main, sys.argv[1:]))
