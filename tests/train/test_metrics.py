"""Why: a curve with a step twice, a mean that depends on the number of ranks, or a run that dies after an hour because
a logger is not installed."""

import json
import math
import sys

import pytest
import torch

from la4vla.config import RunConfig, TrainConfig
from la4vla.train.dist import World
from la4vla.train.metrics import JsonLines, Meters, open_sinks
from la4vla.types import UserError


@pytest.fixture
def world(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield World(0, 0, 1, torch.device("cpu"), torch.distributed.HashStore())
    torch.distributed.destroy_process_group()


def test_a_resumed_run_cuts_its_lines_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, 0)
    for step in (2, 4, 6, 8):
        sink.write({"step": step, "loss": math.nan if step == 4 else 1.0})
    sink.close()
    with path.open("a") as file:
        file.write('{"step": 10, "lo')  # killed in the middle of a line
    sink = JsonLines(path, 6)
    sink.write({"step": 8, "loss": 3.0})
    sink.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert (rows[1]["loss"], rows[3]["loss"]) == (None, 3.0)


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 40, b'{"step": 4, "lo', b"\xff\xfe{}", b"[4]", b'{"loss": 1.0}', b'{"step": null}'],
    ids=["zeros", "half", "no text", "no record", "no step", "null"],
)
def test_an_unreadable_line_is_cut_with_all_behind_it_and_said(tmp_path, capsys, damage):
    """As a node leaves the file that went down, and not the process alone."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + damage + b'\n{"step": 6}\n{"step": 7}\n')
    sink = JsonLines(path, 6)
    assert (
        f"{path}: line 3 cannot be read; the file is cut there (2 lines behind it dropped)" in capsys.readouterr().out
    )
    sink.write({"step": 7})
    sink.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 7]


def test_meters_mean_weighs_and_a_mean_of_nothing_is_nan(world):
    meters = Meters(world, {"loss": "mean", "count": "sum", "wait": "max", "unused": "mean"})
    meters.add("loss", torch.tensor(2.0), torch.tensor(1.0))
    meters.add("loss", 0.0, 0.0)  # a skipped step
    meters.add("loss", 4.0)
    meters.add("count", 3)
    meters.add("count", 4)
    meters.add("wait", 0.5)
    meters.add("wait", 0.25)
    numbers = meters.collect()
    assert (numbers["loss"], numbers["count"], numbers["wait"]) == (3.0, 7.0, 0.75)
    assert math.isnan(numbers["unused"])
    assert math.isnan(meters.collect()["loss"])


@pytest.mark.parametrize(
    ("module", "setting", "extra"),
    [("torch.utils.tensorboard", {"tensorboard": True}, "tensorboard"), ("wandb", {"wandb_project": "p"}, "wandb")],
)
def test_a_missing_logger_is_said_with_its_cure(tmp_path, monkeypatch, module, setting, extra):
    monkeypatch.setitem(sys.modules, module, None)
    config = TrainConfig(run=RunConfig(dir=str(tmp_path)))
    for key, value in setting.items():
        setattr(config.log, key, value)
    with pytest.raises(UserError, match=rf"pip install 'la4vla\[{extra}\]'"):
        open_sinks(config, 0)


def test_tensorboard_holds_what_is_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TrainConfig(run=RunConfig(dir=str(tmp_path)))
    config.log.tensorboard = True
    sinks = open_sinks(config, 0)
    for sink in sinks:
        sink.write({"step": 3, "stage": "pretrain", "loss": 0.5})
        sink.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    """Offline; a resumed run must not begin a second curve."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = TrainConfig(run=RunConfig(dir=str(tmp_path)))
    config.log.wandb_project = "p"
    names = []
    for step in (3, 4):
        sinks = open_sinks(config, step - 1)
        for sink in sinks:
            sink.write({"step": step, "stage": "pretrain", "loss": 0.5})
            sink.close()
        names.append((tmp_path / "wandb_id").read_text())
    assert names[0] == names[1] != ""
    kept = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(kept) == 2 and all(names[0] in name for name in kept)
