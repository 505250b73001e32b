"""Spans: which of an episode's proposals can be used as they stand. Pure; knows labels and times, not motion (judge).

Owns the rules of FACTS 1.3.4: a known label, within the episode, in order, at most a little overlap, long enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.vocabulary import canonical
from la4vla.types import UserError


def validate(
    proposals: Sequence[Proposal], frames: int, min_frames: int, slack: int
) -> tuple[list[Proposal], list[str]]:
    """The usable proposals in the order of time, none overlapping, and a sentence for each of the others.

    frames: of the episode. min_frames: shorter spans are refused. slack: frames a span may reach beyond the episode or
    into the next one; it is cut back. An alias becomes the primitive it means. Of two that overlap by more than
    `slack`, the one that starts later is refused, of two that start together the longer.
    """
    kept: list[Proposal] = []
    rejected: list[str] = []
    for proposal in sorted(proposals, key=lambda item: (item.start, item.end)):
        try:
            item = replace(proposal, primitive=canonical(proposal.primitive, proposal.status))
        except UserError as error:
            rejected.append(f"{_name(proposal)}: {error}")
            continue
        if item.start < -slack or item.end > frames + slack:
            rejected.append(f"{_name(proposal)}: outside the episode's {frames} frames.")
            continue
        item = replace(item, start=max(item.start, 0), end=min(item.end, frames))
        if kept and item.start < kept[-1].end:
            before = replace(kept[-1], end=item.start)
            if kept[-1].end - item.start > slack or before.end - before.start < min_frames:
                rejected.append(f"{_name(proposal)}: overlaps {_name(kept[-1])}.")
                continue
            if item.end - item.start >= min_frames:
                kept[-1] = before
        if item.end - item.start < min_frames:
            rejected.append(f"{_name(proposal)}: {item.end - item.start} frames, fewer than {min_frames}.")
            continue
        kept.append(item)
    return kept, rejected


def coverage(proposals: Sequence[Proposal], frames: int) -> float:
    """Share of the episode's frames that are in a span, 0 .. 1. proposals: of validate()."""
    return sum(item.end - item.start for item in proposals) / frames


def snap(frame: float, stride: int) -> int:
    """The nearest frame that has a picture: a multiple of `stride`."""
    return round(frame / stride) * stride


def _name(item: Proposal) -> str:
    return f"`{item.primitive}` of frames {item.start} to {item.end}"
