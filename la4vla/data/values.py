"""Which numbers of a clip cannot be what a robot did: those that are not finite, and those far outside the folder's own
statistics. Our writer refuses the first and computes the second, so such numbers come from another hand.

A single one makes a whole step's gradient NaN, or is clipped to 1 and learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from la4vla.data.normalize import NEAR_CONSTANT, FolderStats, Stats
from la4vla.data.shards.writer import Clip

FAR = 1.0
"""Widths of the recorded range (max - min) beyond it from which a value is taken for no measurement."""
OUTLYING = 10.0
"""Widths of q01 to q99 beyond them from which a recorded extreme is said to be far off; a heavy tail of real commands
(a gripper, a turn now and then) stays below."""


@dataclass(frozen=True)
class Limits:
    """How far numbers of a shard may lie.

    state, action  statistics of the folder, the action's as recorded
    """

    state: Stats
    action: Stats

    @staticmethod
    def of(stats: FolderStats) -> Limits:
        return Limits(stats.state, stats.action("recorded"))


@dataclass(frozen=True)
class BadFrames:
    """The frames of a clip with bad numbers.

    state, action  bool [T], True where one is bad
    what           frame -> what is wrong there, in words
    """

    state: np.ndarray
    action: np.ndarray
    what: dict[int, str]

    def within(self, frame: int, stop: int, every_state: bool) -> str:
        """What is wrong with the sample that starts at `frame` and takes the actions before `stop`; empty: nothing.
        every_state: it takes their states too, not the first alone."""
        used = self.action[frame:stop] | (self.state[frame:stop] & (every_state | (np.arange(stop - frame) == 0)))
        return self.what[frame + int(np.argmax(used))] if used.any() else ""


def bad_frames(clip: Clip, limits: Limits) -> BadFrames | None:
    """None for a clip whose numbers are all plausible, as nearly all are."""
    state, action = _bad(clip.state, limits.state), _bad(clip.action, limits.action)
    if not (state.any() or action.any()):
        return None
    of_state, of_action = np.asarray(state.any(axis=1)), np.asarray(action.any(axis=1))
    frames = np.flatnonzero(of_state | of_action)
    return BadFrames(of_state, of_action, {int(frame): _said(clip, int(frame), limits) for frame in frames})


def outliers(stats: Stats) -> Iterator[str]:
    """A phrase for each dimension whose recorded extreme lies far off from where 98 % of its frames are."""
    for name, low, q01, q99, high in zip(stats.names, stats.min, stats.q01, stats.q99, stats.max, strict=True):
        room = OUTLYING * (q99 - q01)
        if q99 - q01 >= NEAR_CONSTANT and (q01 - low > room or high - q99 > room):
            yield f"{name} reaches from {low:g} to {high:g}, and 98 % of its frames lie between {q01:g} and {q99:g}"


def _bad(values_TD: np.ndarray, stats: Stats) -> np.ndarray:
    """bool [T, D]. NaN compares as outside."""
    low, high = np.asarray(stats.min), np.asarray(stats.max)
    room = FAR * np.maximum(high - low, NEAR_CONSTANT)
    return ~((values_TD >= low - room) & (values_TD <= high + room))


def _said(clip: Clip, frame: int, limits: Limits) -> str:
    for what, values, stats in (("state", clip.state, limits.state), ("action", clip.action, limits.action)):
        for dim in np.flatnonzero(_bad(values[frame : frame + 1], stats)[0]):
            value, low, high = values[frame, dim], stats.min[dim], stats.max[dim]
            beyond = f" (the folder's statistics reach from {low:g} to {high:g})" if np.isfinite(value) else ""
            return f"{what} {stats.names[dim]} is {value:g} at frame {frame}{beyond}"
    raise AssertionError("a frame without a bad number")
