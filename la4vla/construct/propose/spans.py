"""Spans: which of an episode's proposals can be used. Looks at labels and times; `judge` looks at the motion.

Pure functions. Owns the rules of FACTS 1.3.4: the label is known, the span lies within the episode and is long enough,
spans are in order and overlap by a little at most.
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
    """The usable proposals in the order of time, without overlaps, and a sentence for each other proposal.

    frames: length of the episode. min_frames: shorter spans are refused. slack: a span may reach so many frames beyond
    the episode or into the next span; it is cut back. An alias becomes the primitive it means. Of two spans that
    overlap by more than `slack`, the one that starts later is refused; of two that start together, the longer one.
    """
    usable: list[Proposal] = []
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
        if usable and item.start < usable[-1].end:
            before = replace(usable[-1], end=item.start)
            if usable[-1].end - item.start > slack or before.end - before.start < min_frames:
                rejected.append(f"{_name(proposal)}: overlaps {_name(usable[-1])}.")
                continue
            if item.end - item.start >= min_frames:
                usable[-1] = before
        if item.end - item.start < min_frames:
            rejected.append(f"{_name(proposal)}: {item.end - item.start} frames, fewer than {min_frames}.")
            continue
        usable.append(item)
    return usable, rejected


def coverage(proposals: Sequence[Proposal], frames: int) -> float:
    """Share of the episode's frames that are in a span, 0 .. 1. proposals: usable ones, as validate() returns them."""
    return sum(item.end - item.start for item in proposals) / frames


def snap(frame: float, stride: int) -> int:
    """The nearest frame with an image, a multiple of `stride`."""
    return round(frame / stride) * stride


def _name(item: Proposal) -> str:
    return f"`{item.primitive}` of frames {item.start} to {item.end}"
