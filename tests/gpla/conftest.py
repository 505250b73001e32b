"""A hierarchical policy of random weights in checkpoints made by hand, clips, a scorer by rule, and rounds in this
process."""

import signal
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from la4vla.config import load
from la4vla.data.shards.writer import View
from la4vla.gpla import rounds
from la4vla.train import dist
from tests.fixtures import ARM, make_clip, write_shards
from tests.hand_checkpoint import write_checkpoint, write_vlm_checkpoint

CONFIG = """
schema: gpla
dir: {place}/{name}
seed: 5
high: {{config: {place}/high.yaml}}
low: {{config: {place}/low.yaml}}
scorer: by_rule
candidates: {{clips: {place}/clips, count: 3, max_tokens: 6, actions: 4, rows_at_once: 6}}
prefer:
  rounds: 3
  steps: 1
  global_batch: 4
  micro_batch: 2
  train: [llm, head]
  lora: {{targets: [llm]}}
  lr: 1.0e-3
checkpoint: {{every_steps: 2, keep_last: 9}}
"""


class RuleScorer:
    """The share of vowels in a sentence, and a little of where the motion goes: of every deed alone."""

    name = "by_rule"

    def __init__(self):
        self.deeds = []

    def scores(self, deeds):
        self.deeds += deeds
        vowels = [sum(letter in "aeiou" for letter in deed.sentence) / len(deed.sentence) for deed in deeds]
        return np.array(vowels, np.float32) + [0.01 * np.tanh(deed.actions.sum()) for deed in deeds]


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpla")
    views = {"front": View(32, 32)}
    clips = [replace(make_clip(number, 5, ARM, views), task=f"sort the blocks {number}") for number in range(8)]
    write_shards(folder / "clips", clips, 2, views)
    for name, learner in (("high", "vlm"), ("low", "policy")):
        run = folder / name
        (folder / f"{name}.yaml").write_text(
            f"learner: {learner}\nrun: {{dir: {run}}}\nmodel: {{preset: tiny_vlm}}\n"
            f"data: {{sources: {{some: {{path: nowhere, kind: {'text' if name == 'high' else 'vla'}}}}}, streams: 1}}\n"
            "stages: {only: {mixture: {some: 1}, steps: 7, global_batch: 1, train: [llm, head]}}\n"
        )
        where = run / "checkpoints" / "step_00000007"
        if name == "high":
            write_vlm_checkpoint(where, ARM, {})
        else:
            write_checkpoint(where, ARM, ("front",))
    return folder


def config_of(place: Path, name: str, *changes: str):
    path = place / f"{name}.yaml"
    path.write_text(CONFIG.format(place=place, name=name))
    return load(path, changes)


def run_here(config, scorer=None) -> int:
    """The rounds in this process, on the CPU and in one thread. Their exit status."""
    torch.set_num_threads(1)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with mock.patch.object(torch.cuda, "is_available", lambda: False):
            return rounds.run(config, scorer or RuleScorer())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        dist.stop()
