"""Videos: the frames that an MP4's index lists, and single frames as JPEG. Raises BadEpisode, never guesses.

Frames are found by their time stamps, not by counting: frame n is the one with the n-th time stamp of the index. In a
long file, decoding starts at the last key frame before the wanted frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from la4vla.construct.episodes import BadEpisode, Frames
from la4vla.construct.readers.checks import encode, stat_of

REORDER = 16  # frames; H.264 and AV1 hold back no more than this to reorder them


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a file.

    times_N     float64, seconds of each frame since the first, ascending
    stamps_N    int, the file's own time stamps
    starts_K    int64, numbers of the frames at which decoding can start
    size        (height, width) in pixels
    """

    times_N: np.ndarray
    stamps_N: list[int]
    starts_K: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.times_N)

    def nearest(self, seconds: float) -> int:
        """The number of the frame nearest to a time."""
        after = min(int(np.searchsorted(self.times_N, seconds)), len(self) - 1)
        before = max(after - 1, 0)
        return before if seconds - self.times_N[before] < self.times_N[after] - seconds else after

    def entry(self, number: int) -> int:
        """The frame at which decoding must start to get frame `number`, which may be stored REORDER frames early."""
        before = self.starts_K[self.starts_K <= max(number - REORDER, 0)]
        return int(before[-1]) if len(before) else 0


def video_index(path: Path) -> VideoIndex:
    """The index in a file's header; nothing is decoded. Raises BadEpisode."""
    if not path.is_file():
        raise BadEpisode(f"video {path} is missing; get it, or read without images (read.images=false).")
    return _index(path, tuple(stat_of(path)))


def video_size(path: Path) -> tuple[int, int]:
    """(height, width) of a file's images in pixels. Raises BadEpisode."""
    return video_index(path).size


def deep_grey(pixel_format: str) -> bool:
    """Whether a video's pixels have one channel of more than 8 bits, as depth maps have."""
    return re.match(r"gray(9|1\d)", pixel_format) is not None


def locate(path: Path, from_s: float | None, to_s: float | None, before: int, frames: int, fps: float) -> int:
    """The number of an episode's first frame in its file. Checks place, frame count and time stamps.

    from_s, to_s: the episode's span in the file, None if it has the file for itself. before: number of frames that the
    episodes before it have in the file. frames, fps: length and rate of the table. Raises BadEpisode.

    The span must begin where the episodes before it end, to half a frame. A span that begins elsewhere shows other
    moments, or another episode, however well its length fits.
    """
    index = video_index(path)
    if from_s is None or to_s is None:
        first, count = 0, len(index)
    else:
        first, count = before, min(round((to_s - from_s) * fps), len(index) - before)
        due_s = float(index.times_N[before]) if before < len(index) else before / fps
        if abs(from_s - due_s) > 0.5 / fps:
            raise BadEpisode(
                f"video {path}: meta/ lets the episode begin at {from_s:.3f} s, but the episodes before it end at "
                f"{due_s:.3f} s, so that its images would be of other moments or of another episode; correct meta/, "
                "or leave the episode out (read.max_bad_episodes)."
            )
    if count != frames:
        raise BadEpisode(
            f"video {path} has {count} frames of the episode, but the table has {frames}; get both anew or drop the "
            "episode."
        )
    due_T = (from_s or 0.0) + np.arange(frames) / fps
    drift_T = np.abs(index.times_N[first : first + frames] - due_T)
    if drift_T.max() > 0.5 / fps:
        frame = int(np.argmax(drift_T > 0.5 / fps))
        raise BadEpisode(
            f"video {path} drifts: frame {frame} of the episode is {drift_T[frame]:.3f} s off, more than half a frame "
            f"at {fps:g} fps; encode it at the table's rate or drop the episode."
        )
    return first


def read_frames(path: Path, first: int, numbers: Sequence[int], quality: int) -> Frames:
    """JPEGs of an episode's frames `numbers`. first: number of the episode's frame 0 in the file. Raises BadEpisode."""
    index = video_index(path)
    wanted = sorted(first + number for number in numbers)
    found: dict[int, bytes] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            assert stream.time_base is not None
            origin = stream.start_time or 0
            for run in _runs(wanted, index):
                container.seek(index.stamps_N[index.entry(run[0])], stream=stream)
                left = set(run)
                for frame in container.decode(stream):
                    if frame.pts is None:
                        continue
                    number = index.nearest(float((frame.pts - origin) * stream.time_base))
                    if number in left:
                        found[number - first] = encode(frame.to_ndarray(format="rgb24"), quality)
                        left.remove(number)
                    if not left or number > run[-1]:
                        break
    except (FFmpegError, OSError) as error:
        raise BadEpisode(f"video {path} does not decode ({error}); get it anew or drop the episode.") from error
    if missing := [number for number in numbers if number not in found]:
        raise BadEpisode(f"video {path}: frame {missing[0]} does not decode; get it anew or drop the episode.")
    return found


def _runs(wanted: Sequence[int], index: VideoIndex) -> list[list[int]]:
    """The wanted frames in runs that are decoded in one go. A new run begins where a seek saves decoding."""
    runs: list[list[int]] = []
    for number in wanted:
        if runs and index.entry(number) <= runs[-1][-1] + REORDER:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


@lru_cache(maxsize=64)
def _index(path: Path, stat: tuple[int, ...]) -> VideoIndex:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadEpisode(f"video {path} has no video stream; get it anew or drop the episode.")
            stream = container.streams.video[0]
            if not stream.codec_context:
                raise BadEpisode(f"video {path} has a codec that is not installed; encode it as H.264 or AV1.")
            if deep_grey(str(stream.codec_context.pix_fmt)):
                raise BadEpisode(f"video {path} holds depth, not a camera's images; name the cameras in read.views.")
            size = (stream.codec_context.height, stream.codec_context.width)
            entries = [item for item in stream.index_entries if not item.is_discard]
            stamps = [item.timestamp for item in entries]
            starts = [number for number, item in enumerate(entries) if item.is_keyframe]
            base = float(stream.time_base or 0)
    except (FFmpegError, OSError) as error:
        raise BadEpisode(f"video {path} cannot be opened ({error}); get it anew or drop the episode.") from error
    if not stamps:
        raise BadEpisode(f"video {path} has no frames in its index; encode it as MP4 or drop the episode.")
    # The index has decoding stamps. At a constant rate they equal those of the images, except for a constant offset.
    times_N = (np.array(stamps, np.float64) - stamps[0]) * base
    return VideoIndex(times_N, stamps, np.array(starts, np.int64), size)
