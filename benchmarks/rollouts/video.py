"""Rollout videos: uint8 frames to a small H.264 mp4 and back."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

QUALITY = "26"  # x264 crf; 112 px rollouts come to 10-40 KB


def write(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """frames: uint8 RGB [H, W, 3] of one size, with even H and W (what yuv420p needs). Renamed when it is whole."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = frames[0].shape
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": QUALITY}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    part.rename(path)


def read(path: Path) -> list[np.ndarray]:
    """Every frame, uint8 RGB [H, W, 3]."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
