"""Why: the loss is what is learned. Its weights by kind, by samples and by valid values are worked out by hand here; a
run compared with another run of the same code would never show that one of them is missing."""

from dataclasses import replace

import pytest
import torch

from la4vla.config import StageConfig, TrainConfig
from la4vla.data.reader import StepData
from la4vla.train import loop
from la4vla.train.dist import World
from la4vla.train.optim import OTHERS
from la4vla.types import KINDS, Batch


class Recorder:
    """An engine that is told squared errors and remembers what it is asked to descend."""

    def __init__(self, squared_errors):
        self.squared_errors, self.losses, self.last = iter(squared_errors), [], []

    def forward(self, batch):
        return torch.tensor(next(self.squared_errors)), torch.tensor(0.0)

    def backward(self, loss, last):
        self.losses.append(float(loss))
        self.last.append(last)

    def step(self, lr):
        return torch.tensor(1.0)


def batch(kind, rows, valid):
    """rows rows with `valid` action values together."""
    mask = torch.zeros(rows, 4, 3, dtype=torch.bool)
    mask.view(-1)[:valid] = True
    none, ids = torch.zeros(rows, 4, 3), torch.zeros(rows, 1, dtype=torch.long)
    zeros = none[:, 0, 0]
    return Batch(kind, ids, ids == 0, None, None, none[:, 0], none, none, mask, none, zeros, ids[:, 0], ("key",) * rows)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, (0.25, 0.5, 2.0)), (3.0, (0.75, 1.5, 2.0))])
def test_the_loss_of_a_mixed_step(monkeypatch, weight, expected):
    """LA: 4 of 8 rows, 6 + 2 valid values, errors 4 and 8: 4/8 x (4 + 8)/8 = 0.25 + 0.5. VLA: 4 of 8 rows, 10 values,
    error 40: 4/8 x 40/10 = 2. A kind's weight multiplies its own part alone."""
    monkeypatch.setattr(loop, "sum_over_ranks", lambda totals: totals)
    config = TrainConfig(stages={"one": StageConfig(steps=4, warmup_steps=0, lr=0.5)})
    config.stages["one"] = replace(config.stages["one"], loss_weights={**dict.fromkeys(KINDS, 1.0), "la": weight})
    parts = (batch("la", 2, 6), batch("la", 2, 2), batch("vla", 4, 10))
    engine = Recorder([4.0, 8.0, 40.0])
    data = StepData(stage="one", stage_step=2, step=9, batches=parts, samples={}, bad_samples=0, wait_s=0.0)
    result = loop.train_step(engine, data, config, KINDS, World(0, 0, 1, torch.device("cpu"), None), stop=False)
    assert engine.losses == pytest.approx(expected)
    assert engine.last == [False, False, True]
    assert result.rates == {OTHERS: pytest.approx(0.25)}, (
        "half of the cosine of this stage, whatever steps the stages before it had"
    )
