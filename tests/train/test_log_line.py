"""Why: speed, waiting, memory and MFU are what a run is tuned by, and first_batch.png what it is trusted by; all of
them could have been anything. One run on a clock that the test turns, each number worked out by hand."""

import json
import resource
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from la4vla.config import load
from la4vla.model import flops
from la4vla.model.presets import preset
from la4vla.train import checkpoint, loop, report, run
from la4vla.train.learners import policy_learner
from tests.train.launch import STEPS, write_config

pytestmark = pytest.mark.slow

STEP_S, SAVE_S, STAGE_S, VALIDATE_S = 2.0, 1000.0, 500.0, 300.0
PEAK = 1e12  # operations a second


class Watched:
    """A run's clock, and the steps that it was turned for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.steps = 50.0, []
        patch.setattr(report, "time", SimpleNamespace(perf_counter=lambda: self.now))
        patch.setattr(report, "_peak_flops", lambda device, precision: PEAK)
        for owner, name, seconds in (
            (loop, "train_step", STEP_S),
            (checkpoint, "save", SAVE_S),
            (run.Run, "enter_stage", STAGE_S),
            (policy_learner.PolicyLearner, "validate", VALIDATE_S),
        ):
            patch.setattr(owner, name, self.taking(getattr(owner, name), seconds))

    def taking(self, function, seconds: float):
        def timed(*given, **named):
            self.now += seconds
            if seconds == STEP_S:
                self.steps.append(given[1])
            return function(*given, **named)

        return timed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log_line")


def test_every_number_of_a_log_line(folder, shards, in_process, monkeypatch):
    """Saving, validating and the beginning of a stage are no training: with any of them samples_per_s would be below
    0.1, and data_wait_ratio and mfu as wrong."""
    watched = Watched(monkeypatch)
    config = write_config(folder, shards, "watched")
    ended = in_process(str(config), "validate.every_steps=3", "data.augment=0.0")
    assert ended.codes == (0,), ended.stderr
    rows = [json.loads(line) for line in (Path(load(config).run.dir) / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(watched.steps) == STEPS
    for row, step in zip(rows, watched.steps, strict=True):
        assert row["samples_per_s"] == pytest.approx(sum(step.samples.values()) / STEP_S) == pytest.approx(4.0)
        assert row["data_wait_ratio"] == pytest.approx(step.wait_s / STEP_S)
        assert row["mfu"] == pytest.approx(operations(load(config), step) / STEP_S / PEAK)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert rows[-1]["memory_gb"] == pytest.approx(highest, rel=0.05) and highest > 0.1
    shown = [
        image.permute(1, 2, 0).numpy() for b in watched.steps[0].batches if b.kind == "vla" for image in b.images_NCHW
    ]
    check_sheet(Path(load(config).run.dir) / "first_batch.png", shown)


def operations(config, step) -> float:
    """Sample by sample, each with its one image or none."""
    size, train = preset(config.model.preset), config.stages[step.stage].train
    return sum(
        batch.rows
        * flops.training(
            flops.forward(size, config.model.readout, int(batch.kind == "vla"), batch.input_ids_BL.shape[1]), train
        )
        for batch in step.batches
    )


def check_sheet(path: Path, shown: list[np.ndarray]) -> None:
    """Eight in a row, upright, in RGB. The shards' images are dark in their upper left quarter and nowhere else."""
    sheet = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    side = shown[0].shape[0]
    for number, image in enumerate(shown):
        top, left = side * (number // 8), side * (number % 8)
        tile = sheet[top : top + side, left : left + side]
        assert np.array_equal(tile, image)
        dark = tile.max(axis=2) < 25
        assert dark[: side // 2 - 2, : side // 2 - 2].mean() > 0.9
        assert not dark[side // 2 + 2 :].any() and not dark[:, side // 2 + 2 :].any()
