"""Preferences: two answers to one prompt, of which one is better, and SimPO, which teaches a model to prefer it.

A pair's loss is -log sigmoid(beta (mean log-probability of the chosen answer - that of the rejected one) - gamma). The
means are over an answer's tokens, its end among them: SimPO as GPLA's paper writes it (FACTS 2.1), length-normalised
and without a reference model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from la4vla.config import PreferenceConfig
from la4vla.types import TextBatch
from la4vla.vlm.rows import ChatEncoder, EncodedText


@dataclass(frozen=True)
class EncodedPair:
    """Two answers to one prompt.

    counts  False: the pair keeps its place in a micro-batch and teaches nothing
    """

    chosen: EncodedText
    rejected: EncodedText
    counts: bool


@dataclass(frozen=True)
class PreferenceBatch:
    """One micro-batch of P pairs, ready for a model that writes.

    kind      `preference`
    texts     2 P rows: the chosen answers, then the rejected ones in the same order
    counts_P  bool, EncodedPair.counts
    """

    kind: Literal["preference"]
    texts: TextBatch
    counts_P: Tensor

    @property
    def rows(self) -> int:
        """Pairs."""
        return self.counts_P.numel()

    @property
    def counted(self) -> int:
        """Pairs that count in the loss. Waits for the device where the batch is on one."""
        return int(self.counts_P.sum())

    @property
    def keys(self) -> tuple[str, ...]:
        return self.texts.keys[: self.rows]

    def to(self, device: torch.device | str) -> PreferenceBatch:
        return replace(self, texts=self.texts.to(device), counts_P=self.counts_P.to(device, non_blocking=True))

    def pin(self) -> PreferenceBatch:
        return replace(self, texts=self.texts.pin(), counts_P=self.counts_P.pin_memory())


def batch_pairs(pairs: Sequence[EncodedPair], encoder: ChatEncoder) -> PreferenceBatch:
    """One micro-batch."""
    texts = encoder.batch([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
    return PreferenceBatch("preference", texts, torch.tensor([pair.counts for pair in pairs]))


def mean_log_probs(log_probs_M: Tensor, batch: TextBatch) -> Tensor:
    """[B] fp32: of each row, the mean over its tokens that count. log_probs_M: as VlmModel.log_probs gives them."""
    row_M = batch.answer_index // batch.input_ids_BL.shape[1]
    sums_B = log_probs_M.new_zeros(batch.rows).index_add(0, row_M, log_probs_M)
    tokens_B = log_probs_M.new_zeros(batch.rows).index_add(0, row_M, torch.ones_like(log_probs_M))
    return sums_B / tokens_B


def simpo_losses(log_probs_M: Tensor, batch: PreferenceBatch, settings: PreferenceConfig) -> Tensor:
    """[P] fp32, 0 for pairs that do not count. log_probs_M: of `batch.texts`."""
    chosen_P, rejected_P = mean_log_probs(log_probs_M, batch.texts).chunk(2)
    losses_P = -functional.logsigmoid(settings.beta * (chosen_P - rejected_P) - settings.gamma)
    return torch.where(batch.counts_P, losses_P, 0.0)
