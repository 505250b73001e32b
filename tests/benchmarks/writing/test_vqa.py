"""Why: what a public harness says of an exported folder is worth more than our own word, but it exits 0 when it fails.
So its result file is judged, and where lmms-eval is installed the exported tiny model really goes through it."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from benchmarks.__main__ import main
from benchmarks.writing import vqa
from la4vla.cli import main as la4vla
from la4vla.data.shards.texts import StoredImage, TextRecord
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import Turn, UserError
from tests.fixtures import write_texts
from tests.hand_checkpoint import write_vlm_checkpoint

PYTHON = "LA4VLA_LMMS_EVAL"
"""Environment variable: the Python that has lmms-eval."""


@pytest.fixture
def texts(tmp_path):
    rows = []
    for number, (name, colour) in enumerate((("red", (230, 30, 30)), ("blue", (30, 30, 230)), ("red", (200, 20, 20)))):
        jpeg = simplejpeg.encode_jpeg(np.full((112, 112, 3), colour, np.uint8), quality=95)
        turns = (Turn("user", "What colour is it?", (0,)), Turn("assistant", name))
        rows.append(TextRecord(f"row-{number}", turns, (StoredImage("front", 0, jpeg),), "scene_colour"))
    write_texts(tmp_path / "texts", rows, shards=1)
    return tmp_path / "texts"


def test_a_folder_becomes_a_task(texts, tmp_path):
    assert main(["vqa-task", str(texts), "--out", str(tmp_path / "task")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "task/la4vla_scenes.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["red", "blue", "red"]
    assert all(Path(path).is_file() for row in rows for path in row["images"])
    spelled = (tmp_path / "task/la4vla_scenes.yaml").read_text()
    assert f"test: {tmp_path}/task/la4vla_scenes.jsonl" in spelled and "!function utils.doc_to_text" in spelled
    compile((tmp_path / "task/utils.py").read_text(), "utils.py", "exec")
    with pytest.raises(UserError, match="exists already"):
        vqa.write_task(texts, tmp_path / "task")


def said(folder, samples):
    folder.mkdir(parents=True)
    results = {"la4vla_scenes": {"alias": "la4vla_scenes", "exact,none": 0.25, "exact_stderr,none": 0.1, "samples": 4}}
    numbers = {"results": results, "n-samples": {"la4vla_scenes": {"original": 4, "effective": samples}}}
    (folder / "20260101_000000_results.json").write_text(json.dumps(numbers))


def test_results_are_judged_by_file_and_sample_count(tmp_path, capsys):
    with pytest.raises(UserError, match="whatever its exit status"):
        vqa.results(tmp_path, {"la4vla_scenes": 4})
    said(tmp_path / "out/model", 4)
    assert main(["vqa-results", str(tmp_path / "out"), "la4vla_scenes=4"]) == 0
    assert capsys.readouterr().out == "la4vla_scenes: exact 0.25\n"
    assert main(["vqa-results", str(tmp_path / "out"), "la4vla_scenes"]) == 0
    for wanted, words in (("la4vla_scenes=5", "has 4 samples, not 5"), ("mme", "has 0 samples, not some")):
        with pytest.raises(UserError, match=words):
            main(["vqa-results", str(tmp_path / "out"), wanted])
    with pytest.raises(UserError, match="number of samples"):
        main(["vqa-results", str(tmp_path / "out"), "mme=all"])


@pytest.mark.slow
@pytest.mark.thorough
def test_an_exported_folder_runs_in_lmms_eval(texts, tmp_path):
    python = os.environ.get(PYTHON)
    if not python:
        pytest.skip(f"lmms-eval is not here; set {PYTHON} to the Python of its environment (docs/measuring_writing.md)")
    checkpoint = write_vlm_checkpoint(tmp_path / "run", EMBODIMENT, {})
    assert la4vla(["export", str(checkpoint), str(tmp_path / "exported")]) == 0
    count = vqa.write_task(texts, tmp_path / "task")
    model = f"pretrained={tmp_path}/exported,device=cpu,device_map=cpu,max_patches=1"
    command = [python, "-m", "lmms_eval", "--model", "internvl_hf", "--model_args", model, "--tasks", vqa.NAME]
    command += ["--include_path", str(tmp_path / "task"), "--batch_size", "1", "--output_path", str(tmp_path / "out")]
    quiet = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, env={**quiet, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0
    assert 0 <= vqa.results(tmp_path / "out", {vqa.NAME: count})[vqa.NAME]["exact"] <= 1, done.stderr[-2000:]
