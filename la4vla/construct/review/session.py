"""The review session: what the review page shows of a candidate, and which answers about it are accepted.

It reads the ledgers of out_dir once, at the start; later proposals show after a restart. Episodes are read one at a
time, because readers need not be safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Dataset, Episode, Frames
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidates_of
from la4vla.construct.review import assign
from la4vla.construct.review.assign import Progress
from la4vla.construct.robots.arms import ArmView
from la4vla.construct.scores import REVIEWS, Reviews, Score, episode_digests, proposal_digest
from la4vla.construct.steps import CANDIDATES, KEYFRAMES, READ, grounding_scores, rows
from la4vla.types import ROTATION, TRANSLATION, UserError

EPISODES_AT_HAND = 4  # episodes kept in memory; the page goes through an episode clip by clip
LEAST_POSITION = 0.05  # in the state's unit, usually m; least span of the axis
LEAST_ROTATION = 0.2  # rad; least span of the axis


class ReviewSession:
    """The candidates of a config's out_dir, their reviews and their episodes. Safe to share between threads.

    Raises UserError if nothing was proposed yet, or if the reviews belong to another dataset.
    """

    def __init__(self, config: ConstructConfig, dataset: Dataset) -> None:
        out = Path(config.out_dir)
        self.config = config
        digests = episode_digests(Ledger(out / READ))
        self.candidates: dict[str, tuple[str, Candidate]] = {}
        for row in rows(Ledger(out / CANDIDATES), dataset):
            if row["key"] in digests:
                self.candidates |= {key: (row["key"], item) for key, item in candidates_of(row).items()}
        if not self.candidates:
            raise UserError(f"{out}: no candidates to review; run `la4vla construct propose` first.")
        self._grounding = grounding_scores(config)
        self._keyframes = {row["key"]: row["keyframes"] for row in Ledger(out / KEYFRAMES)}
        self._of = {key: proposal_digest(item) for key, (_, item) in self.candidates.items()}
        self._shares = assign.shares(self.candidates, config.review, config.seed)
        self._read = lru_cache(EPISODES_AT_HAND)(dataset.read)
        self._reading = Lock()
        self._reviews = Reviews.open(out / REVIEWS, digests)

    def close(self) -> None:
        self._reviews.close()

    def queue(self, annotator: str) -> list[str]:
        """An annotator's candidates, in the order to look at them. Raises UserError for an unknown annotator."""
        return assign.queue(self._share(annotator), self._standing(), annotator)

    def progress(self, annotator: str) -> tuple[Progress, Progress]:
        """(the annotator's progress, everybody's)."""
        scores = self._standing()
        return (
            assign.progress(self._share(annotator), scores, annotator),
            assign.progress(self.candidates, scores),
        )

    def progress_table(self) -> str:
        """Progress as text: of the configured annotators, of others who have scored, and of all together."""
        scores = self._standing()
        guests = sorted({score.annotator for score in scores} - set(self._shares))
        lines = [assign.progress(share, scores, name) for name, share in self._shares.items()]
        lines += [assign.progress(self.candidates, scores, name) for name in guests]
        return "\n".join(item.text() for item in [*lines, assign.progress(self.candidates, scores)])

    def clip(self, key: str, annotator: str) -> dict[str, Any]:
        """What the page shows of a candidate, JSON-able, without images. Spans and keyframes are frames of the episode.

        `first` and `last` are the span that is shown, the candidate with its context; `scores` are the judge's of rules
        and the second judge's, or None; `answer` is the annotator's own score, or None. Raises UserError, BadEpisode.
        """
        episode, item = self._find(key)
        first, last = self._window(episode, item)
        mine = [score for score in self._standing() if score.candidate == key and score.annotator == annotator]
        return {
            "key": key,
            "task": episode.task,
            "task_instruction": episode.instruction,
            **{name: item.to_dict()[name] for name in ("start", "end", "primitive", "status", "instruction")},
            "scores": {"rules": item.score, "grounding": self._grounding.get(key)},
            "grounded_below": self._grounded_below(key),
            "reasons": item.reasons,
            "frames": len(episode),
            "fps": episode.fps,
            "stride": episode.frame_stride,
            "first": first,
            "last": last,
            "views": episode.views,
            "keyframes": [mark for mark in self._keyframes.get(episode.key, []) if first <= mark[0] < last],
            "signals": signals(episode, first, last, item.start),
            "answer": mine[0].__dict__ if mine else None,
        }

    def images(self, key: str, view: str) -> Frames:
        """All images of a candidate and its context. Raises UserError for an unknown view, BadEpisode."""
        episode, item = self._find(key)
        if view not in episode.views:
            raise UserError(f"{episode.key} has no view {view}; it has {', '.join(episode.views) or 'none'}.")
        with self._reading:
            return episode.frames(view, range(*self._window(episode, item), episode.frame_stride))

    def put(self, score: Score) -> None:
        """Stores an answer. Raises UserError for an unknown annotator or an impossible span."""
        episode, _ = self._find(score.candidate)
        self._share(score.annotator)
        if not 0 <= score.start < score.end <= len(episode):
            raise UserError(
                f"{score.candidate}: frames {score.start} to {score.end} are no span of an episode of {len(episode)} "
                "frames; choose a start before the end, both inside the episode."
            )
        if score.start % episode.frame_stride:
            raise UserError(
                f"{score.candidate}: a clip must start at a frame with an image, and frame {score.start} has none; "
                f"choose a multiple of {episode.frame_stride}."
            )
        shortest = self.config.propose.min_clip_frames
        if score.end - score.start < shortest:
            raise UserError(
                f"{score.candidate}: {score.end - score.start} frames are too few for a clip; choose {shortest} or "
                "more (propose.min_clip_frames)."
            )
        self._reviews.put(replace(score, of=self._of[score.candidate]))

    def undo(self, annotator: str) -> Score | None:
        """Takes the annotator's newest answer back and returns it; None if there is none."""
        return self._reviews.undo(annotator)

    def _share(self, annotator: str) -> Sequence[str]:
        if not self._shares:
            return list(self.candidates)
        if annotator not in self._shares:
            raise UserError(f"{annotator} is no configured annotator; add the name to review.annotators.")
        return self._shares[annotator]

    def _standing(self) -> list[Score]:
        """The scores of candidates that have not changed since; as scores.standing, with the digests made once."""
        return [item for item in self._reviews.scores() if item.of in ("", self._of.get(item.candidate))]

    def _find(self, key: str) -> tuple[Episode, Candidate]:
        if key not in self.candidates:
            raise UserError(f"{key} is no candidate; reload the page, as the proposals may have changed.")
        name, item = self.candidates[key]
        with self._reading:
            return self._read(name), item

    def _grounded_below(self, key: str) -> float | None:
        """Share of the candidates that the second judge scores lower; None for one that it was not asked about."""
        mine = self._grounding.get(key)
        if mine is None:
            return None
        return sum(score < mine for score in self._grounding.values()) / len(self._grounding)

    def _window(self, episode: Episode, item: Candidate) -> tuple[int, int]:
        """The frames that are shown, [first, last). `first` has an image."""
        context = round(self.config.review.context_s * episode.fps)
        first = max(item.start - context, 0)
        return first - first % episode.frame_stride, min(item.end + context, len(episode))


def signals(episode: Episode, first: int, last: int, zero: int) -> list[dict[str, Any]]:
    """The plots under the images, from top to bottom: [{title, low, high, lines: [{name, values: [last - first]}]}].

    Position in the state's own unit, rotation in rad (Euler angles unwrapped) and all other dims are drawn as changes
    since frame `zero`. The gripper is drawn as it is, from 0 (closed) to 1 (open). low, high: ends of the axis.
    Two arms have plots of their own.
    """
    return [plot for view in episode.arms for plot in _arm_signals(view, first, last, zero)]


def _arm_signals(view: ArmView, first: int, last: int, zero: int) -> list[dict[str, Any]]:
    spec = view.robot.embodiment.state
    state_TS = view.state.astype(np.float64)
    rotation = spec.dims(*ROTATION)
    if spec.rotation == "euler_xyz":
        state_TS[:, rotation] = np.unwrap(state_TS[:, rotation], axis=0)
    known = {*TRANSLATION, *ROTATION, "gripper"}
    others = [name for name in spec.names if name not in known]
    of = f"{view.name} arm, " if view.name else ""
    plots = []
    for title, names, least in (
        (f"{of}position change ({spec.unit})", TRANSLATION, LEAST_POSITION),
        (f"{of}rotation change (rad)", ROTATION, LEAST_ROTATION),
        (f"{of}change of state", others, 0.0),
    ):
        lines = {name: state_TS[:, spec.names.index(name)] for name in names if name in spec.names}
        plots.append(_plot(title, {name: values - values[zero] for name, values in lines.items()}, first, last, least))
    lines = {} if view.opening_T is None else {"opening": view.opening_T}
    plots.append(_plot(f"{of}gripper (1 open, 0 closed)", lines, first, last, 1.0) | {"low": -0.1, "high": 1.1})
    return [plot for plot in plots if plot["lines"]]


def _plot(title: str, lines: Mapping[str, np.ndarray], first: int, last: int, least: float) -> dict[str, Any]:
    """A plot. least: the least span of the axis; without it, an arm at rest would show noise of full size."""
    shown = {name: values[first:last] for name, values in lines.items()}
    low = min((values.min() for values in shown.values()), default=0.0)
    high = max((values.max() for values in shown.values()), default=0.0)
    middle, half = (low + high) / 2, max(high - low, least, 1e-6) / 2
    return {
        "title": title,
        "low": float(middle - half),
        "high": float(middle + half),
        "lines": [
            {"name": name, "values": [round(float(value), 5) for value in values]} for name, values in shown.items()
        ],
    }
