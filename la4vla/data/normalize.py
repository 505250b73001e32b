"""Statistics of states and actions, and the transform that uses them.

Owns `Stats`, `stats.json` and `Normalize`. Every frame counts once: windows would count a frame up to `horizon` times
and padding rows with it (FACTS 4.3 describes the released code, which does that). Refuses non-finite values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from la4vla.types import Sample, UserError

STATS = "stats.json"
Mode = Literal["q01_q99", "min_max", "mean_std"]

CLIP_MARGIN = 0.02
"""Of the half range, by which data must go beyond the statistics before it is said: quantiles are estimates."""
NEAR_CONSTANT = 1e-4
"""Half range (or std) below which a dimension is centred but not scaled: 0.1 mm or 0.1 mrad is below what a robot
measures, and dividing by it turns noise into numbers in the thousands (openpi#814)."""


@dataclass(frozen=True)
class Stats:
    """Per dimension, in raw units of the embodiment. std is with ddof 0.

    count  frames, each counted once
    """

    names: tuple[str, ...]
    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Stats:
        """Raises KeyError for what is missing, TypeError or ValueError for what is not one finite number per name."""
        names = tuple(raw["names"])
        values = {key: tuple(float(value) for value in raw[key]) for key in ("mean", "std", "min", "max", "q01", "q99")}
        for key, row in values.items():
            if len(row) != len(names) or not np.isfinite(row).all():
                raise ValueError(f"{key} is not one finite number for each of {' '.join(map(str, names))}")
        return Stats(names=names, count=int(raw["count"]), **values)


def compute_stats(names: tuple[str, ...], values_FD: np.ndarray) -> Stats:
    """Statistics of `values_FD` (float, F frames, one column a name). UserError for no frames or non-finite ones."""
    if not len(values_FD):
        raise UserError("statistics of no frames at all do not exist; write at least one clip.")
    if not np.isfinite(values_FD).all():
        raise UserError("a state or action is not finite; drop that clip before writing shards.")
    wide = values_FD.astype(np.float64)
    q01, q99 = np.quantile(wide, (0.01, 0.99), axis=0)

    def row(values: np.ndarray) -> tuple[float, ...]:
        return tuple(float(value) for value in values)

    return Stats(
        names=names,
        count=len(wide),
        mean=row(wide.mean(0)),
        std=row(wide.std(0)),
        min=row(wide.min(0)),
        max=row(wide.max(0)),
        q01=row(q01),
        q99=row(q99),
    )


@dataclass(frozen=True)
class FolderStats:
    """`stats.json`: the state, and the action in every form a run may ask for (`data.action`), by its name; of forms
    that depend on where a chunk begins by `NAME/HORIZON`."""

    state: Stats
    actions: Mapping[str, Stats]

    def action(self, form: str) -> Stats:
        """form: a key of `actions`. Raises UserError for one that is not there."""
        if form not in self.actions:
            name, _, horizon = form.partition("/")
            if horizon and len(self.actions) > 1:
                raise UserError(
                    f"data.action={name} has no statistics here for chunks of {horizon} steps; compute them once with "
                    f"`la4vla data chunk-stats FOLDER --horizon {horizon}`."
                )
            raise UserError(
                f"data.action={name} has no statistics here (this embodiment's actions are not absolute in the "
                f"dims of the state); set data.action to one of {', '.join(self.actions)}."
            )
        return self.actions[form]

    def to_json(self) -> str:
        actions = {name: stats.to_dict() for name, stats in self.actions.items()}
        return json.dumps({"state": self.state.to_dict(), "actions": actions}, indent=1)

    @staticmethod
    def from_json(text: str | bytes) -> FolderStats:
        raw = json.loads(text)
        actions = {name: Stats.from_dict(values) for name, values in raw["actions"].items()}
        return FolderStats(Stats.from_dict(raw["state"]), actions)


def range_of(mode: Mode, stats: Stats) -> tuple[np.ndarray, np.ndarray]:
    """(offset_D, scale_D) float64 such that (x - offset) / scale is the normalised value.

    `q01_q99` takes min and max for the `rare_dims`: by their quantiles they would be constant, and clipping would
    take away the very values that matter, such as a gripper that is closed in fewer than 1 % of the frames.
    """
    offset, spread = _offset_and_spread(mode, stats)
    return offset, np.where(spread < NEAR_CONSTANT, 1.0, spread)


def near_constant(mode: Mode, stats: Stats) -> list[str]:
    """Names of the dimensions that `range_of` does not scale."""
    _, spread = _offset_and_spread(mode, stats)
    return [name for name, value in zip(stats.names, spread, strict=True) if value < NEAR_CONSTANT]


def rare_dims(mode: Mode, stats: Stats) -> list[str]:
    """Names of the dimensions whose q01 and q99 agree while min and max do not; only `q01_q99` treats them apart."""
    rare = _is_rare(stats) if mode == "q01_q99" else np.zeros(len(stats.names), bool)
    return [name for name, flag in zip(stats.names, rare, strict=True) if flag]


def beyond(mode: Mode, stats: Stats, data: Stats) -> list[str]:
    """Names of the dimensions that `stats` clip in more than 1 % of the frames at one end, by q01 and q99 of `data`."""
    if mode == "mean_std":
        return []
    offset, scale = range_of(mode, stats)
    low, high = ((np.asarray(ends) - offset) / scale for ends in (data.q01, data.q99))
    clipped = (low < -1.0 - CLIP_MARGIN) | (high > 1.0 + CLIP_MARGIN)
    return [name for name, flag in zip(stats.names, clipped, strict=True) if flag]


def _is_rare(stats: Stats) -> np.ndarray:
    return (_halved(stats.q01, stats.q99)[1] < NEAR_CONSTANT) & (_halved(stats.min, stats.max)[1] >= NEAR_CONSTANT)


def _offset_and_spread(mode: Mode, stats: Stats) -> tuple[np.ndarray, np.ndarray]:
    if mode == "mean_std":
        return np.asarray(stats.mean), np.asarray(stats.std)
    extremes = _halved(stats.min, stats.max)
    if mode == "min_max":
        return extremes
    quantiles, rare = _halved(stats.q01, stats.q99), _is_rare(stats)
    return np.where(rare, extremes[0], quantiles[0]), np.where(rare, extremes[1], quantiles[1])


def _halved(low: Sequence[float], high: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half the width."""
    return (np.asarray(high) + np.asarray(low)) / 2, (np.asarray(high) - np.asarray(low)) / 2


@dataclass(frozen=True)
class Normalize:
    """Raw units -> about [-1, 1]. `q01_q99` and `min_max` are clipped to [-1, 1], `mean_std` is not (FACTS 4.3);
    `range_of` says where `q01_q99` falls back to min and max."""

    mode: Mode
    state: Stats
    action: Stats

    @cached_property
    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        return _float32(range_of(self.mode, self.state))

    @cached_property
    def _action(self) -> tuple[np.ndarray, np.ndarray]:
        return _float32(range_of(self.mode, self.action))

    @cached_property
    def _moved(self) -> np.ndarray:
        _, spread = _offset_and_spread(self.mode, self.action)
        return np.where(spread < NEAR_CONSTANT, 0.0, spread).astype(np.float32)

    def __call__(self, sample: Sample) -> Sample:
        state = self._forward(sample.state, self._state)
        if sample.action is None:
            return sample.but(state=state)
        action = self._forward(sample.action, self._action)
        action[~sample.action_valid] = 0.0
        return sample.but(state=state, action=action)

    def _forward(self, values: np.ndarray, offset_scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        offset, scale = offset_scale
        normal = (values - offset) / scale
        return normal if self.mode == "mean_std" else np.clip(normal, -1.0, 1.0, out=normal)

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Model units -> raw units, float32 [T, A]. Values beyond [-1, 1] are not clipped: the env knows its limits. A
        dimension that never moved stays where it was, whatever the model says of it."""
        offset, _ = self._action
        return action_TA * self._moved + offset

    def to_dict(self) -> dict[str, Any]:
        return {"mode": self.mode, "state": self.state.to_dict(), "action": self.action.to_dict()}

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Normalize:
        """The inverse of to_dict. Raises KeyError, TypeError or ValueError for what is no such dict."""
        if extra := set(raw) - {item.name for item in fields(Normalize)}:
            raise ValueError(f"unexpected {', '.join(sorted(extra))}")
        return Normalize(raw["mode"], Stats.from_dict(raw["state"]), Stats.from_dict(raw["action"]))


def _float32(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return pair[0].astype(np.float32), pair[1].astype(np.float32)
