"""Keyframes of an episode, from its states alone: moments of low arm motion and gripper transitions (FACTS 1.3.1).

Keyframes are hints for whatever cuts the episode; they are no clips themselves. If the states have no gripper, its
commands stand for it. Pure functions of one episode; every number is in config.KeyframeConfig, because the paper's own
numbers were lost in print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import savgol_filter
from scipy.spatial.transform import Rotation

from la4vla.config import KeyframeConfig
from la4vla.construct.robots.arms import ArmView
from la4vla.types import ROTATION, TRANSLATION, VectorSpec

KeyframeKind = Literal["static", "gripper_open", "gripper_close"]
VERSION = 2
"""Raised when the same states and settings would give other keyframes."""


@dataclass(frozen=True)
class Keyframe:
    """A moment of an episode.

    frame    index into the episode
    kind     what happens there
    arm      left or right, of a robot with two arms
    """

    frame: int
    kind: KeyframeKind
    arm: str = ""


def detect_all(arms: Sequence[ArmView], config: KeyframeConfig) -> list[Keyframe]:
    """The keyframes of each arm as detect() finds them, in the order of time."""
    found = [
        replace(item, arm=view.name)
        for view in arms
        for item in detect(view.state, view.robot.embodiment.state, config, view.opening_T)
    ]
    return sorted(found, key=lambda item: item.frame)


def as_row(keyframe: Keyframe) -> list[int | str]:
    """As the ledger has it: frame, kind, and the arm of a robot with two."""
    return [keyframe.frame, keyframe.kind, *([keyframe.arm] if keyframe.arm else [])]


def detect(
    state_TS: np.ndarray, spec: VectorSpec, config: KeyframeConfig, commanded_T: np.ndarray | None = None
) -> list[Keyframe]:
    """Static and gripper-transition keyframes, in the order of time.

    state_TS: float [T, S], units of `spec`, T >= 1. commanded_T: commanded opening, 1 open, 0 closed; it counts if the
    state has no gripper. An episode of one frame has no keyframes.
    """
    statics = [Keyframe(frame, "static") for frame in static_frames(motion(state_TS, spec, config), config)]
    return sorted(statics + gripper_events(state_TS, spec, config, commanded_T), key=lambda item: item.frame)


def prompt_lines(keyframes: Sequence[Keyframe], fps: float) -> list[str]:
    """Lines such as `- 1.20s: static`, as the paper's prompt has them. fps: frames a second."""
    return [f"- {item.frame / fps:.2f}s: {item.kind}" + f" ({item.arm} arm)" * bool(item.arm) for item in keyframes]


def motion(state_TS: np.ndarray, spec: VectorSpec, config: KeyframeConfig) -> np.ndarray:
    """Scalar motion between adjacent frames, float64 [T - 1], each in [0, 1].

    1. Differences of all dims but the gripper and a contact flag, wrap-safe for rotations.
    2. A Savitzky-Golay filter over time.
    3. Each dim is divided by its own largest magnitude (symmetric min-max), but by no less than `scale_floor` of the
       largest magnitude of its kind. Otherwise the noise of a dim that stands still would get full size.
    4. The weighted mean of the magnitudes. Constant dims count as 0.
    """
    change_TD, weight_D, kind_D = _differences(state_TS, spec, config)
    steps, dims = change_TD.shape
    if steps == 0 or dims == 0:
        return np.zeros(steps)
    window = _odd_at_most(min(config.smooth_window, steps))
    order = min(config.smooth_order, window - 1)
    smooth_TD = np.asarray(savgol_filter(change_TD, window, order, axis=0, mode="interp"))
    largest_D = np.abs(smooth_TD).max(axis=0)
    floor_D = np.array([largest_D[kind_D == kind].max() for kind in kind_D]) * config.scale_floor
    scale_D = np.maximum(largest_D, floor_D)
    relative_TD = np.abs(smooth_TD) / np.where(scale_D > 0, scale_D, 1.0)
    return relative_TD @ (weight_D / weight_D.sum())


def threshold(motion_T: np.ndarray, config: KeyframeConfig) -> float:
    """Motion below which a frame of this episode is at rest: a fraction of the mean, or a quantile (FACTS 1.3.1)."""
    if len(motion_T) == 0:
        return 0.0
    if config.rule == "quantile":
        return float(np.quantile(motion_T, config.quantile))
    return config.threshold * float(motion_T.mean())


def static_runs(motion_T: np.ndarray, config: KeyframeConfig) -> list[tuple[int, int]]:
    """First and last index of each run of low motion: frames below the threshold whose window is mostly below it."""
    if len(motion_T) == 0:
        return []
    low_T = motion_T < threshold(motion_T, config)
    low_share_T = _window_mean(low_T.astype(np.float64), config.static_window)
    return runs(low_T & (low_share_T >= config.static_share))


def static_frames(motion_T: np.ndarray, config: KeyframeConfig) -> list[int]:
    """The midpoints of static_runs."""
    return [(first + last) // 2 for first, last in static_runs(motion_T, config)]


def gripper_events(
    state_TS: np.ndarray, spec: VectorSpec, config: KeyframeConfig, commanded_T: np.ndarray | None = None
) -> list[Keyframe]:
    """Frames where the mean opening crosses the threshold, at least `min_event_distance` apart.

    An event is a frame with the mean opening before it on one side of the threshold and the mean after it on the other.
    """
    measured_T = spec.opening(state_TS)
    opening_T = commanded_T if measured_T is None else measured_T
    if opening_T is None or len(opening_T) < 2 or np.ptp(opening_T) < config.gripper_min_range:
        return []
    level_T = (opening_T - opening_T.min()) / np.ptp(opening_T)
    before_T, after_T = _side_means(level_T, config.gripper_window)
    tau = config.gripper_threshold
    hits: dict[KeyframeKind, np.ndarray] = {
        "gripper_open": (before_T < tau) & (after_T >= tau),
        "gripper_close": (before_T >= tau) & (after_T < tau),
    }
    events = [Keyframe((first + last) // 2, kind) for kind, hit_T in hits.items() for first, last in runs(hit_T)]
    apart: list[Keyframe] = []
    for event in sorted(events, key=lambda item: item.frame):
        if not apart or event.frame - apart[-1].frame >= config.min_event_distance:
            apart.append(event)
    return apart


def runs(flags_T: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags_T, [False]]).astype(np.int8)))
    return [(int(first), int(stop) - 1) for first, stop in zip(edges[::2], edges[1::2], strict=True)]


def _differences(
    state_TS: np.ndarray, spec: VectorSpec, config: KeyframeConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes [T - 1, D] of the arm's dims, their weights [D], their kinds [D]: 0 translation, 1 rotation, 2 other."""
    rotation = spec.dims(*ROTATION)
    kinds = {"gripper": -1, "contact": -1, **dict.fromkeys(TRANSLATION, 0), **dict.fromkeys(ROTATION, 1)}
    kind_S = np.array([kinds.get(name, 2) for name in spec.names])
    values_TS = state_TS.astype(np.float64)
    if spec.rotation == "euler_xyz":
        values_TS[:, rotation] = np.unwrap(values_TS[:, rotation], axis=0)
    change_TS = np.diff(values_TS, axis=0)
    if spec.rotation == "axis_angle" and len(rotation) == 3 and len(change_TS):
        turns = Rotation.from_rotvec(values_TS[:, rotation])
        change_TS[:, rotation] = (turns[1:] * turns[:-1].inv()).as_rotvec()
    arm = kind_S >= 0
    weight_S = np.where(kind_S == 1, config.rotation_weight, 1.0)
    return change_TS[:, arm], weight_S[arm], kind_S[arm]


def _odd_at_most(number: int) -> int:
    return number if number % 2 else number - 1


def _window_mean(values_T: np.ndarray, window: int) -> np.ndarray:
    """Mean over a centred window; at the ends, over those of its frames that exist."""
    total = uniform_filter1d(values_T, window, mode="constant")
    count = uniform_filter1d(np.ones_like(values_T), window, mode="constant")
    return total / count + 1e-9  # 4 of 5 must reach a share of 0.8 in spite of rounding


def _side_means(values_T: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of up to `window` frames before t, and of as many from t on. At t = 0, its own value is the mean before."""
    frames = np.arange(len(values_T))
    total = np.concatenate([[0.0], np.cumsum(values_T)])
    first, last = np.maximum(frames - window, 0), np.minimum(frames + window, len(values_T))
    before_T = np.where(frames > 0, (total[frames] - total[first]) / np.maximum(frames - first, 1), values_T[0])
    return before_T, (total[last] - total[frames]) / (last - frames)
