"""`la4vla data stats DIR`: what a shard folder holds, in numbers a person can compare with a paper's table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from la4vla.data.delta import action_forms
from la4vla.data.inspect.conversations import describe_texts
from la4vla.data.normalize import FolderStats, Mode, Stats, range_of
from la4vla.data.shards.index import Index, read_index, read_stats
from la4vla.data.shards.read import read_shard
from la4vla.types import UserError

MODE: Mode = "q01_q99"  # the usual normalisation; min_max leaves nothing outside by definition
TextTokens = Callable[[str], int]
"""text -> number of its tokens"""


@dataclass(frozen=True)
class Facts:
    """What a folder holds.

    frames_by_primitive, clips_by_primitive  label -> count
    state_FS, actions                        all frames of the folder, raw
    """

    episodes: int
    clips_by_primitive: Counter[str]
    frames_by_primitive: Counter[str]
    instructions: Counter[str]
    lengths: tuple[int, ...]
    state_FS: np.ndarray
    actions: dict[str, np.ndarray]


def estimated_tokens(text: str) -> int:
    """About what a byte-pair tokenizer makes of English: one token a word and one a punctuation mark."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def describe(path: str | Path, image_tokens: int, text_tokens: TextTokens) -> str:
    """The report. image_tokens: of one view for the model in mind. Images are not read.

    Raises UserError for a folder that cannot be read.
    """
    index = read_index(path, None)
    if index.holds == "texts":
        return describe_texts(index, text_tokens)
    stats = read_stats(path)
    if not index.clips:
        raise UserError(f"{path}: holds no clip; write clips into it.")
    facts = _gather(index)
    return "\n".join(
        [
            *_counts(index, facts),
            *_primitives(facts),
            *_instructions(facts),
            *_tokens(index, facts, image_tokens, text_tokens),
            *_ranges(facts, stats),
        ]
    )


def _gather(index: Index) -> Facts:
    episodes: set[str] = set()
    clips, frames, instructions = Counter[str](), Counter[str](), Counter[str]()
    lengths: list[int] = []
    values: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(len(index.shards)):
        for clip in read_shard(index, number, ()):
            episodes.add(clip.episode)
            clips[clip.primitive] += 1
            frames[clip.primitive] += len(clip)
            instructions[clip.instruction] += len(clip)
            lengths.append(len(clip))
            values.append((clip.state, clip.action))
    state_FS = np.concatenate([state for state, _ in values])
    action_FA = np.concatenate([action for _, action in values])
    actions = action_forms(index.embodiment, state_FS, action_FA)
    return Facts(len(episodes), clips, frames, instructions, tuple(lengths), state_FS, actions)


def _counts(index: Index, facts: Facts) -> Iterable[str]:
    views = ", ".join(f"{name} {view.height}x{view.width}" for name, view in index.views.items()) or "none"
    size = sum(shard.size for shard in index.shards) / 2**20
    hz = index.embodiment.control_hz
    lengths = facts.lengths
    yield f"{index.location}: embodiment {index.embodiment.name}, {hz:g} Hz, views {views}, stride {index.frame_stride}"
    yield f"  {facts.episodes:,} episodes  {len(lengths):,} clips  {index.frames:,} frames  {index.samples:,} samples"
    if index.left_out:
        yield f"  {index.left_out:,} idle samples are left out"
    least, most = min(shard.samples for shard in index.shards), max(shard.samples for shard in index.shards)
    yield f"  {len(index.shards)} shards, {size:,.1f} MiB, {least:,} to {most:,} samples each"
    yield (
        f"  frames a clip: min {min(lengths)}, median {np.median(lengths):g}, mean {np.mean(lengths):.2f} "
        f"({np.mean(lengths) / hz:.2f} s), max {max(lengths)}"
    )


def _primitives(facts: Facts) -> Iterable[str]:
    yield f"\n{'primitive':<20}{'clips':>10}{'frames':>12}{'share':>8}"
    for name, frames in facts.frames_by_primitive.most_common():
        share = frames / len(facts.state_FS)
        yield f"{name or '(none)':<20}{facts.clips_by_primitive[name]:>10,}{frames:>12,}{share:>8.1%}"


def _instructions(facts: Facts) -> Iterable[str]:
    frames = list(facts.instructions.values())
    yield (
        f"\n{len(frames):,} distinct instructions; frames an instruction: min {min(frames):,}, "
        f"median {np.median(frames):,g}, max {max(frames):,}"
    )
    for text, count in facts.instructions.most_common(5):
        yield f"  {count:>8,}  {text}"


def _tokens(index: Index, facts: Facts, image_tokens: int, text_tokens: TextTokens) -> Iterable[str]:
    total = sum(text_tokens(text) * frames for text, frames in facts.instructions.items())
    text = total / len(facts.state_FS)
    yield f"\ntext tokens a sample: {text:.1f}"
    if index.views:
        images = image_tokens * len(index.views)
        yield f"image tokens a sample: {images}, image : text = {images / text:.1f} : 1"


def _ranges(facts: Facts, stats: FolderStats) -> Iterable[str]:
    yield f"\noutside [-1, 1] after {MODE}, and the raw range"
    yield from _range_table("state", facts.state_FS, stats.state)
    for name, values in facts.actions.items():
        yield from _range_table(f"action ({name})", values, stats.action(name))


def _range_table(what: str, values_FD: np.ndarray, stats: Stats) -> Iterable[str]:
    offset, scale = range_of(MODE, stats)
    outside = (np.abs((values_FD - offset) / scale) > 1 + 1e-6).mean(0)
    for dim, name in enumerate(stats.names):
        yield f"  {what} {name:<12}{outside[dim]:>7.2%}   {stats.min[dim]:.4g} .. {stats.max[dim]:.4g}"
