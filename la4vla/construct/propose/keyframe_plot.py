"""Draws what the keyframe detector measured in one episode: motion, threshold, rests, gripper and events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from la4vla.config import KeyframeConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.propose.keyframes import detect, motion, static_runs, threshold
from la4vla.construct.robots.arms import ArmView
from la4vla.types import UserError

COLORS = {"static": "tab:blue", "gripper_open": "tab:green", "gripper_close": "tab:red"}


def draw(episode: Episode, config: KeyframeConfig, path: Path) -> None:
    """Writes the drawing of one episode as PNG. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('plots need matplotlib: pip install "la4vla[construct]", or set keyframes.plots=0.') from error
    arms = episode.arms
    figure = Figure(figsize=(10, 5 * len(arms)), layout="constrained")
    every = figure.subplots(2 * len(arms), 1, sharex=True, height_ratios=(2, 1) * len(arms))
    for view, above, below in zip(arms, every[::2], every[1::2], strict=True):
        _draw_arm(view, config, above, below)
        title = f"{episode.key}, {episode.fps:g} frames/s" + f", {view.name} arm" * bool(view.name)
        above.set(ylabel="motion, 0 .. 1", title=title, ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_arm(view: ArmView, config: KeyframeConfig, above: Any, below: Any) -> None:
    """What was measured of one arm. above, below: matplotlib's axes."""
    spec = view.robot.embodiment.state
    motion_T, opening_T = motion(view.state, spec, config), view.opening_T
    above.plot(np.arange(len(motion_T)), motion_T, color="black", linewidth=1, label="motion")
    above.axhline(threshold(motion_T, config), color="tab:orange", linestyle="--", label=f"threshold ({config.rule})")
    for number, (first, last) in enumerate(static_runs(motion_T, config)):
        above.axvspan(first, last + 1, color="tab:blue", alpha=0.2, label="" if number else "at rest")
    if opening_T is not None:
        below.plot(opening_T, color="black", linewidth=1)
    below.set(ylabel="gripper, 1 open", xlabel="frame", ylim=(-0.1, 1.1))
    for axes in (above, below):
        for item in detect(view.state, spec, config, opening_T):
            axes.axvline(item.frame, color=COLORS[item.kind], linewidth=1.5, label=item.kind)
    named = dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
    above.legend(named.values(), named.keys(), loc="upper right", ncols=3, fontsize="small")
