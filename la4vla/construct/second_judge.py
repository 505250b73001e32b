"""The second judge: a learned score of how well a candidate's sentence fits its motion (GPLA, FACTS 2.1).

A clip is longer than what a scorer takes, so it is scored in windows, each from a frame with an image on, and its score
is their mean. Scores of different scorers have different scales. The judge of rules (propose/judge.py) says what is
physically wrong; this one says what is unlike the motions that it has learned such sentences from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from la4vla import manifest
from la4vla.config import SecondJudgeConfig
from la4vla.construct.episodes import BadEpisode, Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.candidates import Proposal
from la4vla.page.strips import evenly
from la4vla.types import Deed, Scorer, UserError

VERSION = 1
"""Raised when the same candidates and scorer would get other scores."""


class SecondJudge:
    """The scorer of a config; opened when it is first asked."""

    def __init__(self, config: SecondJudgeConfig) -> None:
        """Raises UserError where the config names none."""
        if not config.scorer:
            raise UserError("there is no second judge; set grounding.scorer to a run of learner grounding.")
        self._config = config

    @cached_property
    def scorer(self) -> Scorer:
        from la4vla.grounding.load import load_scorer

        return load_scorer(self._config.scorer, self._config.device)

    @property
    def digest(self) -> str:
        """Changes whenever the same candidate may get another score."""
        settings = {name: value for name, value in asdict(self._config).items() if name != "device"}
        return digest(VERSION, settings, _stamp(self._config.scorer))

    def scores(self, episode: Episode, items: Mapping[str, Proposal]) -> dict[str, float]:
        """Of the candidates of an episode, by key. Raises UserError for an episode without images, BadEpisode."""
        deeds = {key: self.deeds(episode, key, item) for key, item in items.items()}
        scored = iter(self.scorer.scores([deed for windows in deeds.values() for deed in windows]))
        return {key: float(np.mean([next(scored) for _ in windows])) for key, windows in deeds.items()}

    def deeds(self, episode: Episode, key: str, item: Proposal) -> list[Deed]:
        """The windows of a candidate: evenly from its start on, `grounding.windows` at most, one at least."""
        if not episode.views:
            raise UserError(f"{episode.key} has no images, and a second judge sees the scene; set read.images=true.")
        view, stride = episode.views[0], episode.frame_stride
        every = self._config.window
        starts = [start for start in range(item.start, item.end, every) if start + every <= item.end] or [item.start]
        starts = [starts[place] for place in evenly(len(starts), self._config.windows)]
        shown = {start: start // stride * stride for start in starts}
        images = episode.frames(view, sorted(set(shown.values())))
        return [
            Deed(
                f"{key}/{start}",
                item.instruction,
                _decoded(episode.key, images[shown[start]]),
                episode.action[start : min(start + every, item.end)],
            )
            for start in starts
        ]


def _decoded(key: str, jpeg: bytes) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    except ValueError as error:
        raise BadEpisode(f"{key}: an image does not decode ({error}).") from error


def _stamp(scorer: str) -> Any:
    """What tells the scorer's weights from others in the same place."""
    folder = Path(scorer.rpartition(":")[2])
    if (folder / manifest.MANIFEST).is_file() or (folder / manifest.CHECKPOINTS).is_dir():
        return manifest.read(manifest.resolve(folder)).weights_sha256
    files: Sequence[Path] = sorted(folder.glob("*")) if folder.is_dir() else ()
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
