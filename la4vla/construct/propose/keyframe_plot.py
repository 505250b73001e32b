"""Draws what the keyframe detector measured in one episode: motion, threshold, rests, gripper and events."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from la4vla.config import KeyframeConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.propose.keyframes import detect, motion, static_runs, threshold
from la4vla.types import UserError

COLORS = {"static": "tab:blue", "gripper_open": "tab:green", "gripper_close": "tab:red"}


def draw(episode: Episode, config: KeyframeConfig, path: Path) -> None:
    """Writes the drawing of one episode as PNG. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('plots need matplotlib: pip install "la4vla[construct]", or set keyframes.plots=0.') from error
    spec = episode.embodiment.state
    motion_T, opening_T = motion(episode.state, spec, config), episode.opening_T
    figure = Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(np.arange(len(motion_T)), motion_T, color="black", linewidth=1, label="motion")
    above.axhline(threshold(motion_T, config), color="tab:orange", linestyle="--", label=f"threshold ({config.rule})")
    for number, (first, last) in enumerate(static_runs(motion_T, config)):
        above.axvspan(first, last + 1, color="tab:blue", alpha=0.2, label="" if number else "at rest")
    if opening_T is not None:
        below.plot(opening_T, color="black", linewidth=1)
    below.set(ylabel="gripper, 1 open", xlabel="frame", ylim=(-0.1, 1.1))
    above.set(ylabel="motion, 0 .. 1", title=f"{episode.key}, {episode.fps:g} frames/s", ylim=(0, None))
    for axes in (above, below):
        for item in detect(episode.state, spec, config, opening_T):
            axes.axvline(item.frame, color=COLORS[item.kind], linewidth=1.5, label=item.kind)
    named = dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
    above.legend(named.values(), named.keys(), loc="upper right", ncols=3, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
