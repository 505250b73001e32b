"""The only randomness of the project: every draw has a use, a seed and integer coordinates.

`generator(seed, RngUse.FLOW, source, 17)` is the same stream of numbers on every machine, rank, thread and resume.
Global generators (`random.*`, `np.random.*`, `torch.rand` without a generator) are used nowhere.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class RngUse(IntEnum):
    """What a draw is for. Values are part of the format of a run: append, never renumber."""

    SHARDS = 1  # order of a stream's shards in one pass
    SAMPLES = 2  # order of a block's samples
    FLOW = 3  # noise and time of a training sample
    AUGMENT = 4  # image augmentation of a training sample
    INIT = 5  # fresh weights
    DROPOUT = 6  # dropout, per rank and step
    SERVE = 7  # noise of a served chunk
    RECORD = 8  # action noise of a scripted expert
    WORDING = 12  # choice among the phrasings of an instruction
    EXAMPLES = 13  # clips that a page shows
    REVIEW = 14  # who reviews a candidate
    PERTURB = 15  # what a perturbation does to a picture
    BOOTSTRAP = 16  # units of a confidence interval
    CASES = 17  # clips, other frames and paraphrases of a probe's cases
    RESAMPLE = 18  # clips of a probe's intervals
    VALIDATE = 19  # noise and time of a held-out sample
    WRITE = 20  # tokens of a written answer, by its prompt's key and the number of the draw
    TEXTS = 25  # wordings, negatives and splits of conversations
    PAIRS = 30  # order of a round's pairs in one pass
    CONTRAST = 40  # sentences of a group, and the sample of each
    CORRUPT = 41  # what a spoiled pair of a motion and a sentence gets instead


def name_id(name: str) -> int:
    """A stable integer for a name (Python's own hash changes from process to process)."""
    return zlib.crc32(name.encode())


def seed_sequence(seed: int, use: RngUse, *coordinates: int | str) -> np.random.SeedSequence:
    """The root of one named stream. Coordinates are non-negative integers or names."""
    parts = [name_id(part) if isinstance(part, str) else int(part) for part in coordinates]
    return np.random.SeedSequence([seed, int(use), *parts])


def generator(seed: int, use: RngUse, *coordinates: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_sequence(seed, use, *coordinates)))


def torch_generator(
    seed: int, use: RngUse, *coordinates: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    import torch  # only here: a simulator's process draws without it

    state = seed_sequence(seed, use, *coordinates).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
