"""One image that shows every perturbation: a row each, on one scene of each simulator, at severities 1, 3 and 5.

la4vla eval perturbations --out perturbations.jpg
"""

from __future__ import annotations

import textwrap
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from benchmarks.perturb.perturb import CLEAN, PERTURBATIONS, Variant, perturb, scene_change
from la4vla.sim.registry import SIMULATORS
from la4vla.types import UserError

SHOWN = (1, 3, 5)
SIDE = 112  # pixels of one image of the sheet
MARGIN = 110  # pixels left of the images, for names
EPISODE, SEED = 1, 0


def write(path: Path) -> None:
    """Writes the sheet in the format that the path's suffix names.

    Raises UserError for a suffix that is no image's, a missing simulator, or a path that cannot be written.
    """
    if not cv2.haveImageWriter(str(path)):
        raise UserError(f"{path}: no image can be written under this name; end it in .jpg or .png.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: its folder cannot be made ({error.strerror}); give another --out.") from error
    names = [CLEAN.name, *PERTURBATIONS]
    sheet = np.full((len(names) * SIDE, MARGIN + len(SIMULATORS) * len(SHOWN) * SIDE, 3), 255, np.uint8)
    for row, name in enumerate(names):
        _write_text(sheet, name, 6, row * SIDE + SIDE // 2)
    for scene, simulator in enumerate(SIMULATORS.values()):
        view, task = simulator.views[0], simulator.scenes.figure
        with closing(simulator.make_env((view,), SIDE, 10, False)) as env:
            for row, name in enumerate(names):
                for column, severity in enumerate(SHOWN):
                    variant = Variant(name, severity) if name != CLEAN.name else CLEAN
                    observation = env.reset(task, EPISODE, scene_change(variant, SEED))
                    observation = perturb(observation, variant, SEED, simulator.name, task, EPISODE, 0)
                    top, left = row * SIDE, MARGIN + (scene * len(SHOWN) + column) * SIDE
                    if name == "language":
                        _write_text(sheet, textwrap.fill(observation.instruction, 18), left + 4, top + 14)
                    else:
                        sheet[top : top + SIDE, left : left + SIDE] = observation.views[view]
    if not cv2.imwrite(str(path), sheet[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 85)):
        raise UserError(f"{path}: cannot be written there; give another --out.")


def _write_text(sheet: np.ndarray, text: str, left: int, top: int) -> None:
    for line, words in enumerate(text.split("\n")):
        corner = (left, top + 13 * line)
        cv2.putText(sheet, words, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
