"""Cost estimates of the VLM proposer and of the annotator `endpoint`, made before anything is sent (--dry-run).

Image tokens are counted as Qwen3-VL does (FACTS 1.3.4): patches of 32 pixels, and two frames of a video as one image.
Text counts 4 characters a token, an answer counts the paper's mean. Retries are not included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simplejpeg

from la4vla.config import ConstructConfig, VlmConfig
from la4vla.construct import steps
from la4vla.construct.episodes import Dataset
from la4vla.construct.ledger import Ledger, LedgerRow
from la4vla.construct.propose import prompt
from la4vla.construct.propose.keyframes import Keyframe, prompt_lines
from la4vla.construct.propose.vlm import CACHE, version
from la4vla.construct.texts import write
from la4vla.construct.texts.endpoint import Log, request_text
from la4vla.types import UserError

PAPER_OUTPUT_TOKENS = 354  # an episode, mean of the paper's 9,560 (FACTS 1.3.4)
ROW_TOKENS = 22  # of one [dx, dy, dz, gripper] in an answer: five digits or signs a number, brackets and commas
STEPS, STEP_TOKENS = 6, 110  # of an episode, and the words of each: as in the paper's example (appendix B.1)
_PATCH = 32  # pixels; side of the square that becomes one token (FACTS 1.3.4)
_CHARACTERS = 4  # in a token of English text


@dataclass(frozen=True)
class CostEstimate:
    """The cost of all episodes without a finished row.

    episodes     number of episodes to ask about
    done         number of finished episodes
    frames       number of frames shown, all views together
    tokens_in    input tokens
    answer       output tokens of one episode
    """

    episodes: int
    done: int
    frames: int
    tokens_in: int
    answer: int = PAPER_OUTPUT_TOKENS

    @property
    def tokens_out(self) -> int:
        return self.episodes * self.answer

    def text(self, config: VlmConfig) -> str:
        """The estimate as a text table."""
        each = max(self.episodes, 1)
        lines = [
            f"episodes       {self.episodes} to ask {config.model} about, {self.done} done",
            f"frames shown   {self.frames / each:.1f} an episode, all views, as {config.frames_as}",
            f"input tokens   {self.tokens_in / each / 1e3:.3f} K an episode, {self.tokens_in / 1e6:.2f} M in all",
            f"output tokens  {self.tokens_out / each / 1e3:.3f} K an episode, {self.tokens_out / 1e6:.2f} M in all",
        ]
        if config.input_price or config.output_price:
            price = (self.tokens_in * config.input_price + self.tokens_out * config.output_price) / 1e6
            lines.append(
                f"price          {price:.2f}, at {config.input_price:g} in and {config.output_price:g} out a M"
            )
        else:
            lines.append("price          unknown; set vlm.input_price and vlm.output_price, of a million tokens")
        lines.append(f"cached         questions answered in {CACHE} cost nothing, but are counted here")
        hours = self.episodes / config.requests_per_minute / 60
        pace = f"{config.requests_per_minute} requests a minute and {config.concurrency} at once"
        lines.append(f"time           {hours:.2f} h or more, at {pace}")
        return "\n".join(lines)


def input_tokens(text: str, shown: int, sizes: Sequence[tuple[int, int]], config: VlmConfig) -> int:
    """Input tokens of one request.

    text: all text of the request. shown: frames of each view. sizes: (height, width) in pixels of each view's images
    before they are resized.
    """
    images = math.ceil(shown / 2) if config.frames_as == "video" else shown
    tokens = len(text) / _CHARACTERS
    for size in sizes:
        height, width = prompt.fitted(*size, config)
        tokens += images * max(round(height / _PATCH), 1) * max(round(width / _PATCH), 1)
    return round(tokens)


def estimate(config: ConstructConfig, dataset: Dataset, hints: Ledger) -> CostEstimate:
    """The cost of the questions that are left. hints: ledger of steps.detect_keyframes. Raises UserError."""
    if config.proposer != "vlm":
        raise UserError(
            f"--dry-run estimates the cost of proposer=vlm, and proposer={config.proposer} costs nothing; leave "
            "--dry-run out."
        )
    digests = steps.candidate_digests(config, dataset, hints, version(config))
    ledger = Ledger(Path(config.out_dir) / steps.CANDIDATES)
    left = [key for key, of in digests.items() if ledger.get(key, of) is None]
    if not left:
        return CostEstimate(0, len(digests), 0, 0)
    like = dataset.read(left[0])
    prompt.check_views(like)
    sizes = [_size(like.frames(view, [0])[0]) for view in like.views]
    about = {row["key"]: row for row in Ledger(Path(config.out_dir) / steps.READ)}
    keyframes_of = {row["key"]: row["keyframes"] for row in hints}
    frames = tokens = 0
    for key in left:
        row = about[key]
        shown = len(prompt.shown_frames(row["frames"], row["fps"], like.frame_stride, config.vlm.fps))
        frames += shown * len(sizes)
        tokens += input_tokens(_text(row, like.views, keyframes_of[key]), shown, sizes, config.vlm)
    return CostEstimate(len(left), len(digests) - len(left), frames, tokens)


def estimate_texts(config: ConstructConfig, dataset: Dataset) -> CostEstimate:
    """The cost of the annotations that are left, of the episodes that were filtered. Raises UserError."""
    if config.texts.annotator != "endpoint":
        raise UserError(
            f"--dry-run estimates the cost of texts.annotator=endpoint, and {config.texts.annotator} costs nothing; "
            "leave --dry-run out."
        )
    out = Path(config.out_dir)
    chosen = {row["key"]: row for row in steps.rows(Ledger(out / steps.KEPT), dataset)}
    if not chosen:
        raise UserError(f"{out}: no episode has been filtered yet; run `la4vla construct filter` first.")
    views = config.texts.views or dataset.read(next(iter(chosen))).views
    digests = write.annotation_digests(write.annotator_of(config, views), chosen)
    ledger = Ledger(out / write.annotations_name(config))
    left = [key for key, of in digests.items() if ledger.get(key, of) is None]
    frames = tokens = answers = 0
    for key in left:
        episode = dataset.read(key)
        log = Log.of(episode, config.vlm.fps)
        sizes = [_size(episode.frames(view, [0])[0]) for view in views]
        frames += len(log.frames) * len(sizes)
        tokens += input_tokens(request_text(log, episode.instruction), len(log.frames), sizes, config.vlm)
        answers += ROW_TOKENS * len(log.rows) + STEPS * STEP_TOKENS
    each = round(answers / max(len(left), 1))
    return CostEstimate(len(left), len(digests) - len(left), frames, tokens, each)


def _size(jpeg: bytes) -> tuple[int, int]:
    """(height, width) in pixels."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    return int(height), int(width)


def _text(row: LedgerRow, views: Sequence[str], keyframes: Sequence[Any]) -> str:
    """All text of an episode's request. row: of steps.READ. keyframes: [[frame, kind] ...]."""
    lines = prompt_lines([Keyframe(*values) for values in keyframes], row["fps"])
    return prompt.system_text() + prompt.episode_text(row["instruction"], row["frames"] / row["fps"], views, lines)
