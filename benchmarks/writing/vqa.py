"""lmms-eval, which runs in an environment of its own: scene questions as one of its tasks, and a judge of what it left.
It exits 0 on errors, so its result file and the number of samples in it say whether it ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from benchmarks.writing.models import read_rows
from la4vla.page import page
from la4vla.types import UserError

TEMPLATES = Path(__file__).parent / "templates"
NAME = "la4vla_scenes"
RESULTS = "*_results.json"
LONGEST = 16  # tokens of an answer


def write_task(texts: Path, out: Path, rows: int = 0) -> int:
    """Writes a task of lmms-eval into the new folder `out` (for its --include_path), and returns its number of
    questions. rows: at most; 0: all of the folder's questions about scenes."""
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or name another folder.")
    (out / "images").mkdir(parents=True)
    asked = read_rows(texts, ["scene_"], rows)
    lines = []
    for row in asked:
        paths = [out.resolve() / "images" / f"{row.key}_{number}.png" for number in range(len(row.images))]
        for path, image in zip(paths, row.images, strict=True):
            cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))
        question = {"question": row.turns[-2].text, "answer": row.answer, "images": list(map(str, paths))}
        lines.append(json.dumps(question, ensure_ascii=False))
    file = out.resolve() / f"{NAME}.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {"name": NAME, "texts": str(texts), "rows": len(asked), "file": str(file), "longest": LONGEST}
    page.write(out / f"{NAME}.yaml", page.render(TEMPLATES, "lmms_task.yaml.j2", values) + "\n")
    page.write(out / "utils.py", page.render(TEMPLATES, "lmms_utils.py.j2", {}) + "\n")
    return len(asked)


def results(folder: Path, tasks: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, out of the newest result file below a folder (lmms-eval's --output_path).

    tasks: those that must be there, with their number of samples; 0: any number but none. Raises UserError where there
    is no result file, a task is missing from it, or has another number of samples.
    """
    files = sorted(folder.rglob(RESULTS), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(
            f"{folder}: no {RESULTS} in it, so lmms-eval did not finish, whatever its exit status; read its log."
        )
    said = json.loads(files[-1].read_text())
    found = {}
    for task, wanted in tasks.items():
        samples = said.get("n-samples", {}).get(task, {}).get("effective", 0)
        if not samples or (wanted and samples != wanted):
            raise UserError(
                f"{files[-1]}: task {task} has {samples} samples, not {wanted or 'some'}; lmms-eval skipped some, "
                "read its log."
            )
        values = said["results"][task]
        found[task] = {
            name.partition(",")[0]: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and "stderr" not in name and name not in ("samples",)
        }
    return found
