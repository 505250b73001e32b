"""Answers that the model writes: batched, with the library's key and value cache, and random numbers that have names.

Token n of draw d of a prompt is drawn with the n-th number of rng(seed, WRITE, the prompt's key, d): the same number
alone or in any company. The tokens are the same, too, but where two of them are as likely to the last digits, since a
batch changes how sums are rounded. The draw is ours (temperature, then top-p, then the inverse of the cumulative
distribution), the loop over tokens and the cache are transformers'. Special tokens are never written but for the ends
of a turn: a row with an image token and no image could not be read again.

Refuses: writing in training mode (dropout would be on).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from la4vla.rng import RngUse, generator
from la4vla.types import UserError
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import ChatEncoder, EncodedText


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    max_tokens   of an answer, its end included
    temperature  0: always the likeliest token
    top_p        in (0, 1]; the likeliest tokens that hold this much probability are drawn from, at least one
    stop         an answer ends behind the first of these texts, where the model has not ended it before
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or "" in self.stop:
            raise UserError(
                f"an answer of {self.max_tokens} tokens at temperature {self.temperature} and top-p {self.top_p}; "
                "give at least one token, a temperature of at least 0, a top-p in (0, 1], and no empty stop text."
            )


@dataclass(frozen=True)
class WrittenAnswer:
    """What the model wrote.

    key        of the prompt
    draw       number of the draw
    text       without special tokens and surrounding white space, up to the stop text where one ended it
    ids        its tokens; the last one ends the turn where `ended` is `turn`
    log_probs  one a token, under the model itself (temperature 1, special tokens among the others)
    ended      by the model's own end of turn, by a stop text, or by max_tokens
    """

    key: str
    draw: int
    text: str
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    ended: Literal["turn", "stop", "length"]


def write(
    vlm: VlmModel,
    encoder: ChatEncoder,
    prompts: Sequence[EncodedText],
    writing: Writing,
    seed: int = 0,
    draws: Sequence[int] = (0,),
    rows_at_once: int = 16,
) -> list[WrittenAnswer]:
    """One answer for each prompt and draw, prompt by prompt. rows_at_once: a memory knob that changes no random number.

    prompts: as `encoder.prompt` or `encoder.question` makes them; their keys name the random numbers.
    """
    assert not vlm.training, "call vlm.eval() before writing"
    asked = [(prompt, draw) for prompt in prompts for draw in draws]
    answers: list[WrittenAnswer] = []
    for first in range(0, len(asked), rows_at_once):
        answers += _write_batch(vlm, encoder, asked[first : first + rows_at_once], writing, seed)
    return answers


@torch.no_grad()
def _write_batch(
    vlm: VlmModel, encoder: ChatEncoder, asked: Sequence[tuple[EncodedText, int]], writing: Writing, seed: int
) -> list[WrittenAnswer]:
    batch = encoder.batch([prompt for prompt, _ in asked], side="left").to(vlm.device)
    given = batch.input_ids_BL.shape[1]
    numbers = [generator(seed, RngUse.WRITE, prompt.key, draw).random(writing.max_tokens) for prompt, draw in asked]
    sampler = _Sampler(torch.from_numpy(np.stack(numbers)).to(vlm.device), writing, given, encoder)
    ids_BL = vlm.network.generate(  # pyright: ignore[reportCallIssue]
        input_ids=batch.input_ids_BL,
        attention_mask=batch.text_mask_BL.long(),
        **batch.images,
        generation_config=_greedy(writing, encoder),
        logits_processor=LogitsProcessorList([sampler]),
        stopping_criteria=StoppingCriteriaList([_StopTexts(encoder, writing.stop, given)] if writing.stop else []),
    )
    log_probs_BL = torch.stack(sampler.log_probs, dim=1).tolist()
    return [
        _answer(encoder, prompt.key, draw, ids, log_probs, writing.stop)
        for (prompt, draw), ids, log_probs in zip(asked, ids_BL[:, given:].tolist(), log_probs_BL, strict=True)
    ]


def _greedy(writing: Writing, encoder: ChatEncoder) -> GenerationConfig:
    """What is left to the library: it takes the one token that _Sampler leaves. Said in full, so that nothing of the
    model's own generation_config.json applies."""
    return GenerationConfig(
        max_new_tokens=writing.max_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=encoder.pad_token_id,
        eos_token_id=list(encoder.end_token_ids),
    )


def _answer(
    encoder: ChatEncoder, key: str, draw: int, ids: Sequence[int], log_probs: Sequence[float], stop: Sequence[str]
) -> WrittenAnswer:
    """Cuts what the batch's longer answers appended."""
    ended: Literal["turn", "stop", "length"] = "length"
    length = next((place + 1 for place, number in enumerate(ids) if number in encoder.end_token_ids), None)
    if length is not None:
        ended = "turn"
    text = encoder.decode(ids[:length])
    ends = [text.index(end) + len(end) for end in stop if end in text]
    if ends:
        text, ended = text[: min(ends)], "stop"
        length = next(n for n in range(1, len(ids) + 1) if any(end in encoder.decode(ids[:n]) for end in stop))
    return WrittenAnswer(key, draw, text, tuple(ids[:length]), tuple(log_probs[:length]), ended)


class _Sampler(LogitsProcessor):
    """Draws each row's next token with that row's own number, and leaves it alone in the scores."""

    def __init__(self, numbers_BT: Tensor, writing: Writing, given: int, encoder: ChatEncoder) -> None:
        self.numbers_BT = numbers_BT
        self.never = torch.tensor(encoder.never_written, dtype=torch.int64, device=numbers_BT.device)
        self.known = len(encoder.tokenizer)  # embedding tables are often longer
        self.writing = writing
        self.given = given
        self.log_probs: list[Tensor] = []  # [B] a token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = scores.index_fill(1, self.never, -torch.inf)
        allowed[:, self.known :] = -torch.inf
        token_B = draw(allowed, self.numbers_BT[:, input_ids.shape[1] - self.given], self.writing)
        log_probs_BV = scores.float().log_softmax(dim=-1)
        self.log_probs.append(log_probs_BV.gather(1, token_B[:, None])[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, token_B[:, None], 0.0)


def draw(logits_BV: Tensor, numbers_B: Tensor, writing: Writing) -> Tensor:
    """[B] int64 tokens. numbers_B: float64 in [0, 1), one a row."""
    if writing.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probs_BV = (logits_BV.double() / writing.temperature).softmax(dim=-1)
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    kept_BV = sorted_BV.where(before_BV < writing.top_p, 0.0)
    reached_BV = kept_BV.cumsum(dim=-1)
    place_B1 = (reached_BV <= numbers_B[:, None] * reached_BV[:, -1:]).sum(dim=-1, keepdim=True)
    last_B1 = (kept_BV > 0).sum(dim=-1, keepdim=True) - 1  # rounding may reach past the last token that is left
    return order_BV.gather(1, place_B1.minimum(last_B1))[:, 0]


class _StopTexts(StoppingCriteria):
    def __init__(self, encoder: ChatEncoder, stop: Sequence[str], given: int) -> None:
        self.encoder, self.stop, self.given = encoder, stop, given

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        texts = [self.encoder.decode(ids) for ids in input_ids[:, self.given :].tolist()]
        return torch.tensor([any(end in text for end in self.stop) for text in texts], device=input_ids.device)
