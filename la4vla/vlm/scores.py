"""How likely a model finds given answers: the token log-probabilities that preferences and `la4vla eval likelihood`
compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from la4vla.types import TextRow
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import ChatEncoder, EncodedText, without_images


@dataclass(frozen=True)
class AnswerScore:
    """The last answer of a row under a model.

    key        of the row
    question   its type
    log_probs  one a token, the end of the turn last
    """

    key: str
    question: str
    log_probs: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.log_probs)

    @property
    def mean(self) -> float:
        """A token: what a longer answer is not punished for."""
        return self.total / len(self.log_probs)


@torch.no_grad()
def token_log_probs(
    vlm: VlmModel, encoder: ChatEncoder, prepared: Sequence[EncodedText], rows_at_once: int = 16
) -> list[tuple[float, ...]]:
    """Of each row, the log-probabilities of its tokens that count, equal to those of a plain forward."""
    assert not vlm.training, "call vlm.eval() before scoring"
    found: list[tuple[float, ...]] = []
    for first in range(0, len(prepared), rows_at_once):
        batch = encoder.batch(prepared[first : first + rows_at_once])
        rows = (batch.answer_index // batch.input_ids_BL.shape[1]).tolist()
        log_probs = vlm.log_probs(batch.to(vlm.device)).tolist()
        lines: list[list[float]] = [[] for _ in batch.keys]
        for row, value in zip(rows, log_probs, strict=True):
            lines[row].append(value)
        found += [tuple(line) for line in lines]
    return found


def score_answers(
    vlm: VlmModel, encoder: ChatEncoder, rows: Sequence[TextRow], blind: bool = False, rows_at_once: int = 16
) -> list[AnswerScore]:
    """The last answer of each row. blind: without its images. Raises UserError as ChatEncoder.prepare."""
    shown = [without_images(row) for row in rows] if blind else rows
    values = token_log_probs(vlm, encoder, [encoder.prepare(row, answers="last") for row in shown], rows_at_once)
    return [AnswerScore(row.key, row.question, log_probs) for row, log_probs in zip(rows, values, strict=True)]
