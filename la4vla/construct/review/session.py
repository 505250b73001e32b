"""The session: everything the review page shows of a candidate, and whether an answer about it can be.

Opens the ledgers of out_dir as they are at the start; what is proposed later shows after a restart. Episodes are read
one at a time, whatever the reader does inside.
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
from la4vla.construct.episodes import Episode, Frames, Dataset
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidate_key
from la4vla.construct.review import assign
from la4vla.construct.review.assign import Progress
from la4vla.construct.scores import REVIEWS, Reviews, Score, episode_digests, proposal_digest
from la4vla.construct.steps import CANDIDATES, KEYFRAMES, READ, rows
from la4vla.types import ROTATION, TRANSLATION, UserError

EPISODES_AT_HAND = 4  # read; the page goes through an episode clip by clip
LEAST_POSITION = 0.05  # of the state's unit, m as a rule
LEAST_ROTATION = 0.2  # rad


class ReviewSession:
    """The candidates of a config's out_dir, their reviews and their episodes. Safe to share between threads.

    Raises UserError if nothing was proposed yet, or the reviews are another dataset's.
    """

    def __init__(self, config: ConstructConfig, dataset: Dataset) -> None:
        out = Path(config.out_dir)
        self.config = config
        digests = episode_digests(Ledger(out / READ))
        self.candidates: dict[str, tuple[str, Candidate]] = {}
        for row in rows(Ledger(out / CANDIDATES), dataset):
            if row["key"] in digests:
                for raw in row["candidates"]:
                    item = Candidate.from_dict(raw)
                    self.candidates[candidate_key(row["key"], item.start)] = (row["key"], item)
        if not self.candidates:
            raise UserError(f"{out}: no candidates to review; run `la4vla construct propose` first.")
        self._keyframes = {row["key"]: row["keyframes"] for row in Ledger(out / KEYFRAMES)}
        self._of = {key: proposal_digest(item) for key, (_, item) in self.candidates.items()}
        self._shares = assign.shares(self.candidates, config.review, config.seed)
        self._read = lru_cache(EPISODES_AT_HAND)(dataset.read)
        self._reading = Lock()
        self._reviews = Reviews.open(out / REVIEWS, digests)

    def close(self) -> None:
        self._reviews.close()

    def queue(self, annotator: str) -> list[str]:
        """Candidates of an annotator in the order to look at them. Raises UserError for a stranger."""
        return assign.queue(self._share(annotator), self._standing(), annotator)

    def progress(self, annotator: str) -> tuple[Progress, Progress]:
        """The annotator's, and everybody's."""
        scores = self._standing()
        return (
            assign.progress(self._share(annotator), scores, annotator),
            assign.progress(self.candidates, scores),
        )

    def table(self) -> str:
        """Everybody's progress as text: the configured annotators, whoever else has scored, and all together."""
        scores = self._standing()
        guests = sorted({score.annotator for score in scores} - set(self._shares))
        lines = [assign.progress(share, scores, name) for name, share in self._shares.items()]
        lines += [assign.progress(self.candidates, scores, name) for name in guests]
        return "\n".join(item.text() for item in [*lines, assign.progress(self.candidates, scores)])

    def clip(self, key: str, annotator: str) -> dict[str, Any]:
        """What the page shows of a candidate, pictures apart, JSON-able. Spans and keyframes in frames of the episode.

        first, last: [first, last) is shown, the candidate with its context. answer: the annotator's own, or None.
        Raises UserError, BadEpisode.
        """
        episode, item = self._find(key)
        first, last = self._window(episode, item)
        mine = [score for score in self._standing() if score.candidate == key and score.annotator == annotator]
        return {
            "key": key,
            "task": episode.task,
            "task_instruction": episode.instruction,
            **{name: item.to_dict()[name] for name in ("start", "end", "primitive", "status", "instruction")},
            "score": item.score,
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

    def pictures(self, key: str, view: str) -> Frames:
        """All pictures of a candidate and its context. Raises UserError, BadEpisode for those it cannot read."""
        episode, item = self._find(key)
        if view not in episode.views:
            raise UserError(f"{episode.key} has no view {view}; it has {', '.join(episode.views) or 'none'}.")
        with self._reading:
            return episode.frames(view, range(*self._window(episode, item), episode.frame_stride))

    def put(self, score: Score) -> None:
        """Stores an answer. Raises UserError for a stranger or a span that cannot be."""
        episode, _ = self._find(score.candidate)
        self._share(score.annotator)
        if not 0 <= score.start < score.end <= len(episode):
            raise UserError(
                f"{score.candidate}: frames {score.start} to {score.end} are no span of an episode of {len(episode)}; "
                "start before end, both inside."
            )
        if score.start % episode.frame_stride:
            raise UserError(
                f"{score.candidate}: a clip starts where a picture is, and frame {score.start} has none; choose a "
                f"multiple of {episode.frame_stride}."
            )
        shortest = self.config.propose.min_clip_frames
        if score.end - score.start < shortest:
            raise UserError(
                f"{score.candidate}: {score.end - score.start} frames are no clip; choose a span of {shortest} or more "
                "(propose.min_clip_frames)."
            )
        self._reviews.put(replace(score, of=self._of[score.candidate]))

    def undo(self, annotator: str) -> Score | None:
        """The annotator's newest answer, taken back."""
        return self._reviews.undo(annotator)

    def _share(self, annotator: str) -> Sequence[str]:
        if not self._shares:
            return list(self.candidates)
        if annotator not in self._shares:
            raise UserError(f"{annotator} is none of the annotators; add the name to review.annotators.")
        return self._shares[annotator]

    def _standing(self) -> list[Score]:
        """As reviews.standing, with digests at hand."""
        return [item for item in self._reviews.scores() if item.of in ("", self._of.get(item.candidate))]

    def _find(self, key: str) -> tuple[Episode, Candidate]:
        if key not in self.candidates:
            raise UserError(f"{key}: no such candidate; reload the page, proposals may have changed.")
        name, item = self.candidates[key]
        with self._reading:
            return self._read(name), item

    def _window(self, episode: Episode, item: Candidate) -> tuple[int, int]:
        """The frames shown [first, last), from one that has a picture."""
        context = round(self.config.review.context_s * episode.fps)
        first = max(item.start - context, 0)
        return first - first % episode.frame_stride, min(item.end + context, len(episode))


def signals(episode: Episode, first: int, last: int, zero: int) -> list[dict[str, Any]]:
    """What is drawn under the pictures: [{title, low, high, lines: [{name, values: [last - first]}]}] from top down.

    Position in the state's own unit, rotation in rad (Euler angles unwrapped) and whatever else the state holds, each
    as the change since frame `zero`; the gripper as it is, from 0 (closed) to 1 (open). low, high: what the axis spans.
    """
    spec = episode.embodiment.state
    state_TS = episode.state.astype(np.float64)
    rotation = spec.dims(*ROTATION)
    if spec.rotation == "euler_xyz":
        state_TS[:, rotation] = np.unwrap(state_TS[:, rotation], axis=0)
    known = {*TRANSLATION, *ROTATION, "gripper"}
    others = [name for name in spec.names if name not in known]
    plots = []
    for title, names, least in (
        (f"position change ({spec.unit})", TRANSLATION, LEAST_POSITION),
        ("rotation change (rad)", ROTATION, LEAST_ROTATION),
        ("change of state", others, 0.0),
    ):
        lines = {name: state_TS[:, spec.names.index(name)] for name in names if name in spec.names}
        plots.append(_plot(title, {name: values - values[zero] for name, values in lines.items()}, first, last, least))
    opening_T = spec.opening(state_TS)
    lines = {} if opening_T is None else {"opening": opening_T}
    plots.append(_plot("gripper (1 open, 0 closed)", lines, first, last, 1.0) | {"low": -0.1, "high": 1.1})
    return [plot for plot in plots if plot["lines"]]


def _plot(title: str, lines: Mapping[str, np.ndarray], first: int, last: int, least: float) -> dict[str, Any]:
    """least: what the axis spans at least, so that rest looks like rest and not like noise of full size."""
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
