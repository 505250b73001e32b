"""From a sample in the robot's units to what the model takes. One object for training, validation and serving.

It is made from a run's data or from a checkpoint, and holds all that both must share: the transforms with their
statistics, the tokenizer, the model's sizes, and the draws of the flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from la4vla.config import FlowConfig
from la4vla.data.collate import Encode, collate, draw_flow
from la4vla.data.transforms import Chain
from la4vla.types import Batch, InputSpec, Sample

TEXTS = 16384  # instructions whose tokens are kept, some 5 KB each


@dataclass(frozen=True)
class PreparedSample:
    """A transformed sample with its draws of the flow.

    sample  after the chain
    noise   float32 [T, A], where the flow starts
    time    in [0, 1], the flow time of the loss; 0 for a query
    place   number of its embodiment in the model
    error   why its images or numbers cannot be used, or empty; such a sample is masked
    """

    sample: Sample
    noise: np.ndarray
    time: float
    place: int
    error: str = ""


@dataclass(frozen=True)
class Processor:
    """Samples of one robot -> batches.

    chain   transforms and their statistics
    encode  (instruction, slots) -> token ids; must pickle where a loader process gets it
    spec    sizes of the model's input
    flow    distributions of noise and time
    place   number of the robot's embodiment in the model
    """

    chain: Chain
    encode: Encode
    spec: InputSpec
    flow: FlowConfig
    place: int

    def cached(self) -> Processor:
        """The same, which tokenizes an instruction once. Does not pickle."""
        return replace(self, encode=lru_cache(TEXTS)(self.encode))

    def prepare(self, sample: Sample, generator: np.random.Generator) -> PreparedSample:
        """Transforms a sample and draws its noise and its time."""
        noise, time = draw_flow(generator, self.spec.horizon, self.spec.action_dim, self.flow)
        return PreparedSample(self.chain(sample), noise, 0.0 if sample.action is None else time, self.place)

    def batch(self, prepared: Sequence[PreparedSample]) -> Batch:
        """One micro-batch of samples of one kind, prepared for any robot of the model. Raises UserError for a row
        longer than the model takes."""
        return collate(
            [item.sample for item in prepared],
            self.spec,
            self.encode,
            [item.noise for item in prepared],
            [item.time for item in prepared],
            [item.place for item in prepared],
        )
