"""What a set of labelled clips holds, in numbers: actions, lengths, instructions, qualities. From labels alone.

Every number of a page about clips is made here, so that candidates, kept clips and shard folders are counted alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 24  # of the histogram of lengths, up to its 99th percentile; the last bin is open
TOP = 20  # instructions that are listed
WORD = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Label:
    """A clip without its numbers.

    frames   its length
    fps      frames a second
    quality  0 .. 3
    """

    primitive: str
    status: str
    instruction: str
    frames: int
    fps: float
    quality: float


def contents(labels: Sequence[Label]) -> dict[str, Any]:
    """JSON-able numbers of the labels; of none, the counts are 0 and the means and lists are empty or None.

    primitives, status: name -> {clips, frames}, the most clips first. lengths: frames, with a histogram of
    {from, to, clips}, `to` exclusive and None in the last bin. instructions: entropy in bits of a clip's instruction;
    effective: 2 to the power of it, the number of equally frequent ones that would be as diverse.
    """
    return {
        **sizes(labels),
        "primitives": _shares(labels, [item.primitive or "(none)" for item in labels]),
        "status": _shares(labels, [item.status or "(none)" for item in labels]),
        "lengths": _lengths([item.frames for item in labels]),
        "instructions": _instructions([item.instruction for item in labels]),
        "quality": _quality([item.quality for item in labels]),
    }


def sizes(labels: Sequence[Label]) -> dict[str, Any]:
    """clips, frames, and the mean of frames and of seconds a clip, None where there is no clip."""
    frames = sum(item.frames for item in labels)
    return {
        "clips": len(labels),
        "frames": frames,
        "frames_per_clip": frames / len(labels) if labels else None,
        "seconds_per_clip": float(np.mean([item.frames / item.fps for item in labels])) if labels else None,
    }


def _shares(labels: Sequence[Label], names: Sequence[str]) -> dict[str, dict[str, int]]:
    clips, frames = Counter(names), Counter[str]()
    for name, item in zip(names, labels, strict=True):
        frames[name] += item.frames
    order = sorted(clips, key=lambda name: (-clips[name], name))
    return {name: {"clips": clips[name], "frames": frames[name]} for name in order}


def _lengths(frames: Sequence[int]) -> dict[str, Any]:
    if not frames:
        return {"min": None, "median": None, "max": None, "histogram": []}
    width = max(1, -(-int(np.percentile(frames, 99) + 1) // BINS))
    bins = np.minimum(np.array(frames) // width, BINS - 1)
    counts = np.bincount(bins)
    histogram = [
        {"from": number * width, "to": (number + 1) * width if number < BINS - 1 else None, "clips": int(count)}
        for number, count in enumerate(counts)
    ]
    return {"min": min(frames), "median": float(np.median(frames)), "max": max(frames), "histogram": histogram}


def _instructions(texts: Sequence[str]) -> dict[str, Any]:
    counts = Counter(texts)
    share = np.array(list(counts.values())) / max(len(texts), 1)
    entropy = float(-(share * np.log2(share)).sum()) + 0.0  # + 0.0: never -0.0
    words = [word for text in texts for word in WORD.findall(text.lower())]
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    return {
        "distinct": len(counts),
        "entropy_bits": entropy,
        "effective": 2**entropy if texts else 0.0,
        "words": len(set(words)),
        "words_per_instruction": len(words) / len(texts) if texts else None,
        "top": [{"instruction": text, "clips": clips} for text, clips in top],
    }


def _quality(values: Sequence[float]) -> dict[str, Any]:
    """histogram: rounded down to halves of the scale 0 .. 3 -> clips."""
    counts = Counter(int(value * 2) / 2 for value in values)
    return {
        "mean": float(np.mean(values)) if values else None,
        "histogram": [{"quality": half / 2, "clips": counts[half / 2]} for half in range(7)],
    }
