"""The candidates of a round: sentences that the high-level model writes, what the low-level policy makes of each, and
how well a scorer finds that they fit.

A pure function of (seed, round, weights): a sentence's tokens are drawn by (prompt, number of the draw), and all
sentences of a prompt are acted upon from the same noise, so that two chunks differ by their sentences alone.
`candidates/round_00000.jsonl` in the run's folder has a row a prompt:

    key, task, round, seed, weights    what was asked, and what identifies the weights that answered
    candidates                         [{text, score, log_prob, seed, ids, ended}], `seed` being the number of the draw
    chosen, rejected                   numbers of candidates, or null where the pair is left out
    margin                             between the highest and the lowest score, or null
    left_out                           why the pair teaches nothing, a word of LEFT_OUT, or empty
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from la4vla.config import CandidatesConfig
from la4vla.gpla.prompts import ClipStart
from la4vla.levels import Levels, told
from la4vla.questions.wordings import turns
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import Deed, Observation, Scorer, Turn, UserError
from la4vla.vlm.generate import Writing, WrittenAnswer, write
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import ChatEncoder, EncodedText

LEFT_OUT = {
    "same": "all sentences of the prompt were the same",
    "margin": "their scores differed by less than the margin",
    "empty": "fewer than two sentences had a word",
}


@dataclass(frozen=True)
class WrittenSentence:
    """A candidate.

    text      as it was written; without a word it is not judged
    score     None where it was not judged
    log_prob  of its tokens under the model that wrote it, temperature 1
    seed      number of the draw
    ids       its tokens; the end of the turn is the last one, unless `ended` is `length`
    ended     by the model (`turn`) or by candidates.max_tokens (`length`)
    """

    text: str
    score: float | None
    log_prob: float
    seed: int
    ids: tuple[int, ...]
    ended: Literal["turn", "stop", "length"]


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt with its candidates: a row of the file, whose fields are these."""

    key: str
    task: str
    round: int
    seed: int
    weights: str
    candidates: tuple[WrittenSentence, ...]
    chosen: int | None
    rejected: int | None
    margin: float | None
    left_out: str

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> JudgedPrompt:
        """Raises KeyError and TypeError for what is none."""
        sentences = tuple(WrittenSentence(**{**item, "ids": tuple(item["ids"])}) for item in raw["candidates"])
        return JudgedPrompt(**{**raw, "candidates": sentences})


class ChosenPair(NamedTuple):
    """Of JudgedPrompt, the fields that follow from its candidates."""

    chosen: int | None
    rejected: int | None
    margin: float | None
    left_out: str


def choose(candidates: Sequence[WrittenSentence], margin: float) -> ChosenPair:
    """The first candidate with the highest score and the first one with the lowest; none where scores are equal or
    differ by less than `margin`."""
    judged = {number: item.score for number, item in enumerate(candidates) if item.score is not None}
    if len(judged) < 2:
        return ChosenPair(None, None, None, "empty")
    if len({candidates[number].text for number in judged}) == 1:
        return ChosenPair(None, None, 0.0, "same")
    best, worst = max(judged, key=lambda n: (judged[n], -n)), min(judged, key=lambda n: (judged[n], n))
    apart = judged[best] - judged[worst]
    if apart == 0 or apart < margin:
        return ChosenPair(None, None, apart, "margin")
    return ChosenPair(best, worst, apart, "")


def to_jsonl(rows: Sequence[JudgedPrompt]) -> bytes:
    return b"".join(json.dumps(asdict(row)).encode() + b"\n" for row in rows)


def from_jsonl(data: bytes, where: str) -> list[JudgedPrompt]:
    """Raises UserError for a file that is damaged. where: its name."""
    try:
        return [JudgedPrompt.from_dict(json.loads(line)) for line in data.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} is damaged ({error}); remove it, and the round is sampled again.") from error


class CandidateMaker:
    """Who writes is handed over at every call, since it is training; who acts and who judges stay.

    views   that the high-level model is shown
    levels  how the low-level policy was told of its clips
    mixed   whether the high-level model computes in bf16
    """

    def __init__(
        self,
        config: CandidatesConfig,
        seed: int,
        views: Sequence[str],
        low: ServedPolicy,
        levels: Levels,
        scorer: Scorer,
        mixed: bool,
    ) -> None:
        self._config, self._seed, self._views = config, seed, tuple(views)
        self._low, self._scorer, self._mixed = low, scorer, mixed
        self._levels: Levels = levels

    @property
    def scorer_view(self) -> str:
        return self._config.view or self._views[0]

    def conversation(self, start: ClipStart) -> tuple[tuple[Turn, ...], tuple[np.ndarray, ...]]:
        """What the high-level model is asked, and the images it is shown."""
        shown = tuple(start.images(self._views).values())
        return turns(self._config.question, range(len(shown)), task=start.task), shown

    def prompt(self, start: ClipStart, round_number: int, encoder: ChatEncoder) -> EncodedText:
        """Its key names the random numbers of the answers. Raises UserError as `ChatEncoder.prompt`, and where no
        answer would fit behind it."""
        asked, shown = self.conversation(start)
        prompt = encoder.prompt(f"gpla/{round_number}/{start.key}", asked, shown)
        if prompt.tokens + self._config.max_tokens > encoder.max_tokens:
            raise UserError(
                f"clip {start.key}: its prompt has {prompt.tokens} tokens and the model takes {encoder.max_tokens}, "
                f"so that an answer of {self._config.max_tokens} does not fit; lower candidates.max_tokens."
            )
        return prompt

    def make(
        self, vlm: VlmModel, encoder: ChatEncoder, starts: Sequence[ClipStart], round_number: int, weights: str
    ) -> list[JudgedPrompt]:
        """The rows of these prompts, in order. The model is in eval mode meanwhile, and then as it was."""
        training = vlm.training
        vlm.eval()
        at_once = max(1, self._config.rows_at_once // self._config.count)
        rows = []
        for first in range(0, len(starts), at_once):
            some = starts[first : first + at_once]
            answers = self._written(vlm, encoder, [self.prompt(start, round_number, encoder) for start in some])
            scores = self._judged(some, answers)
            for start, written in zip(some, answers, strict=True):
                sentences = tuple(_sentence(answer, scores[start.key].get(answer.text)) for answer in written)
                pair = choose(sentences, self._config.margin)
                rows.append(
                    JudgedPrompt(
                        key=start.key,
                        task=start.task,
                        round=round_number,
                        seed=self._seed,
                        weights=weights,
                        candidates=sentences,
                        chosen=pair.chosen,
                        rejected=pair.rejected,
                        margin=pair.margin,
                        left_out=pair.left_out,
                    )
                )
        vlm.train(training)
        return rows

    def _written(
        self, vlm: VlmModel, encoder: ChatEncoder, prompts: Sequence[EncodedText]
    ) -> list[list[WrittenAnswer]]:
        """Of each prompt, its answers."""
        asked = self._config
        how = Writing(asked.max_tokens, asked.temperature, asked.top_p)
        with torch.autocast(vlm.device.type, torch.bfloat16, enabled=self._mixed):
            answers = write(vlm, encoder, prompts, how, self._seed, range(asked.count), asked.rows_at_once)
        return [answers[first : first + asked.count] for first in range(0, len(answers), asked.count)]

    def _judged(
        self, starts: Sequence[ClipStart], answers: Sequence[Sequence[WrittenAnswer]]
    ) -> dict[str, dict[str, float]]:
        """Key of the prompt -> sentence -> score. A sentence that was written twice is acted upon once: it makes the
        same chunk."""
        pairs = [
            (start, text)
            for start, written in zip(starts, answers, strict=True)
            for text in dict.fromkeys(answer.text for answer in written)
            if text.strip()
        ]
        found: dict[str, dict[str, float]] = {start.key: {} for start in starts}
        view = self.scorer_view
        shown = {start.key: start.images([view])[view] for start in starts}
        for first in range(0, len(pairs), self._config.rows_at_once):
            some = pairs[first : first + self._config.rows_at_once]
            deeds = [
                Deed(start.key, text, shown[start.key], chunk[: self._config.actions])
                for (start, text), chunk in zip(some, self._acted(some), strict=True)
            ]
            scores = np.asarray(self._scorer.scores(deeds), dtype=np.float32)
            if not np.isfinite(scores).all():
                raise UserError(f"scorer {self._scorer.name} gave a score that is no number; use another checkpoint.")
            for (start, text), score in zip(some, scores.tolist(), strict=True):
                found[start.key][text] = score
        return found

    def _acted(self, pairs: Sequence[tuple[ClipStart, str]]) -> list[np.ndarray]:
        """The chunk that the low-level policy makes of each sentence, raw units."""
        observations = [
            Observation(start.images(self._low.views), start.state, told(self._levels, start.task, text))
            for start, text in pairs
        ]
        return self._low.infer(observations, [NoiseKey(self._seed, start.key, 0, 0) for start, _ in pairs])


def _sentence(answer: WrittenAnswer, score: float | None) -> WrittenSentence:
    return WrittenSentence(answer.text, score, sum(answer.log_probs), answer.draw, answer.ids, answer.ended)
