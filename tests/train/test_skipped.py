"""Why: a bad number in the data or a gradient that is not finite must not take updates away in silence. What is skipped
is logged with its samples and counted over the whole run, across stages, kills and resumes; bad data is refused, or
masked where that is allowed, and then no update is lost."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from la4vla import manifest
from la4vla.config import load
from la4vla.train import loop
from tests.fixtures import spoil
from tests.train.launch import write_config

pytestmark = pytest.mark.slow


def rows(config: Path) -> list[dict]:
    return [json.loads(line) for line in (Path(load(config).run.dir) / "metrics.jsonl").read_text().splitlines()]


def test_skipped_steps_are_named_and_counted_over_stages_and_resumes(tmp_path, shards, in_process, monkeypatch):
    """Of ten steps the second and, in the next stage, the eighth have no finite loss; the run resumes from 6 and 8."""
    train_step = loop.train_step

    def poisoned(engine, data, *rest, **others):
        if data.step in (1, 7):
            batches = [replace(batch, actions_BTA=batch.actions_BTA * math.nan) for batch in data.batches]
            data = replace(data, batches=tuple(batches))
        return train_step(engine, data, *rest, **others)

    monkeypatch.setattr(loop, "train_step", poisoned)
    config = write_config(tmp_path, shards, "skips")
    for left in (10, 6, 8):
        for checkpoint in manifest.complete(load(config).run.dir):
            if manifest.read(checkpoint).step > left:
                shutil.rmtree(checkpoint)
        ended = in_process(str(config))
        assert ended.codes == (0,), ended.stderr
        assert [row["skipped_steps"] for row in rows(config)] == [0, 1, 1, 1, 1, 1, 1, 2, 2, 2]
        assert [row["loss"] is None for row in rows(config)] == [row["step"] in (2, 8) for row in rows(config)]
        said = [line for line in ended.stdout.splitlines() if "had no finite gradient and was skipped" in line]
        assert [line.split(" had")[0] for line in said] == {10: ["step 2", "step 8"], 6: ["step 8"], 8: []}[left]
        assert all("its samples: la/clip-0" in line and "whose loss is not finite" in line for line in said)
    assert [manifest.read(folder).skipped_steps for folder in manifest.complete(load(config).run.dir)][-3:] == [1, 2, 2]


def test_bad_numbers_are_refused_or_cost_no_update(tmp_path, shards, in_process):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    for number in range(0, 24, 4):
        spoil(copy / "la", f"clip-{number:05d}", "action", 1, 0, math.nan)
        spoil(copy / "la", f"clip-{number + 1:05d}", "state", 0, 2, math.inf)
    config = write_config(tmp_path, copy, "numbers")
    ended = in_process(str(config))
    (said,) = [line for line in ended.stderr.splitlines() if line.lstrip().startswith("error:")]
    assert ended.codes == (2,) and "at frame" in said and "raise data.max_bad_samples, now 0" in said
    ended = in_process(str(config), "data.max_bad_samples=1000")
    assert ended.codes == (0,), ended.stderr
    assert rows(config)[-1]["bad_samples"] > 0 and rows(config)[-1]["skipped_steps"] == 0
    assert all(row["loss"] is not None for row in rows(config))
