"""Two arms that work in one episode: each is cut alone, and every span says which of them acts in it.

A cut of either arm is a cut of the episode, except inside a grasp or release of the other, where the other rests, and
where two cuts would leave less than a clip between them: then the end of a grasp or release counts. Each span is named
for each arm by its own motion. Where one arm acts, the sentence names it; where both act at once, it says what each
does, and the label is `both_arms` unless they do the same. Where neither acts there is no clip. An arm's rest begins
where its hand stops and ends where it leaves, so that a cut in its middle does not cut the other arm's motion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from la4vla.config import ProposeConfig
from la4vla.construct.arm_words import BOTH, with_arm, with_both
from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.propose.cutting import ArmCut, ArmSegment, SegmentKind
from la4vla.construct.propose.labels import label
from la4vla.construct.vocabulary import BOTH_ARMS, ObjectStatus
from la4vla.types import ARMS

NEAR = 1 / 3  # of the least move: within it a hand counts as at rest
_ANY = np.zeros(2)  # draws for a label whose words nobody reads


def label_both(
    cuts: Mapping[str, ArmCut], config: ProposeConfig, stride: int, generator: np.random.Generator
) -> list[Proposal]:
    """The proposals of an episode in the order of time, without overlaps. cuts: arm -> its segments.

    Draws twice for every span; the arms share the draws, so that they say the same in the same words.
    """
    cuts = {arm: replace(cut, segments=_without_rests(cut, config, stride)) for arm, cut in cuts.items()}
    proposals = []
    for start, end in pairwise(_edges(list(cuts.values()), config.min_clip_frames)):
        draws_2 = generator.random(2)
        found = {
            arm: label(ArmSegment(start, end, _kind(cut.segments, start, end)), cut, config, draws_2)
            for arm, cut in cuts.items()
        }
        acting = {arm: item for arm, item in found.items() if item is not None}
        if acting and end - start >= config.min_clip_frames:
            proposals.append(_joined(acting))
    return proposals


def _without_rests(cut: ArmCut, config: ProposeConfig, stride: int) -> tuple[ArmSegment, ...]:
    """The segments with waits that follow each other as one, which begin where the hand stops and end where it leaves:
    where an arm rests, its cuts say nothing, and the other one may be amid a motion."""
    joined: list[tuple[ArmSegment, bool]] = []
    for segment in cut.segments:
        waits = label(segment, cut, config, _ANY) is None
        if waits and joined and joined[-1][1]:
            joined[-1] = (replace(joined[-1][0], end=segment.end), True)
        else:
            joined.append((segment, waits))
    path_T6 = np.hstack([cut.track.path_T3, config.turn_arm * cut.track.spin_T3])
    for number in range(len(joined) - 1):
        (one, waits), (other, waits_next) = joined[number], joined[number + 1]
        edge = one.end
        if not waits and waits_next and not one.kind:
            edge = -(-_stops(path_T6, cut, one, config.min_move) // stride) * stride
        elif waits and not waits_next and not other.kind:
            edge = _leaves(path_T6, cut, other, config.min_move) // stride * stride
        if one.start < edge < other.end:
            joined[number : number + 2] = [(replace(one, end=edge), waits), (replace(other, start=edge), waits_next)]
    return tuple(segment for segment, _ in joined)


def _stops(path_T6: np.ndarray, cut: ArmCut, segment: ArmSegment, far: float) -> int:
    """The frame of a segment from which on the hand stays within a part of `far` m of where it ends."""
    seen = [cut.track.seen(frame) for frame in range(segment.start, segment.end + 1)]
    away = np.flatnonzero(np.linalg.norm(path_T6[seen] - path_T6[seen[-1]], axis=1) > NEAR * far)
    return segment.start + (int(away[-1]) + 1 if len(away) else 0)


def _leaves(path_T6: np.ndarray, cut: ArmCut, segment: ArmSegment, far: float) -> int:
    """The last frame of a segment until which the hand stays within a part of `far` m of where it begins."""
    seen = [cut.track.seen(frame) for frame in range(segment.start, segment.end + 1)]
    away = np.flatnonzero(np.linalg.norm(path_T6[seen] - path_T6[seen[0]], axis=1) > NEAR * far)
    return segment.start + (max(int(away[0]) - 1, 0) if len(away) else 0)


def _edges(cuts: Sequence[ArmCut], min_frames: int) -> list[int]:
    """Frames between which the episode is cut, its first and last among them."""
    phases = [segment for cut in cuts for segment in cut.segments if segment.kind]
    firm = {edge for item in phases for edge in (item.start, item.end)}
    every = {edge for cut in cuts for item in cut.segments for edge in (item.start, item.end)}
    kept: list[int] = []
    for edge in sorted(every):
        if edge not in firm and any(item.start < edge < item.end for item in phases):
            continue
        if not kept or edge - kept[-1] >= min_frames:
            kept.append(edge)
        elif edge in firm and kept[-1] not in firm and len(kept) > 1:
            kept[-1] = edge
    last = max(every)
    if kept[-1] != last:
        kept[-1:] = [last] if len(kept) > 1 else [kept[-1], last]
    return kept


def _kind(segments: Sequence[ArmSegment], start: int, end: int) -> SegmentKind:
    """What the gripper does in a span: the grasp or release most of which lies in it; empty if there is none."""
    for item in segments:
        inside = min(item.end, end) - max(item.start, start)
        if item.kind and 2 * inside > item.frames:
            return item.kind
    return ""


def _joined(acting: Mapping[str, Proposal]) -> Proposal:
    """One proposal of what the arms do in a span. acting: arm -> its own proposal."""
    if len(acting) == 1:
        ((arm, item),) = acting.items()
        return replace(item, instruction=with_arm(arm, item.instruction), arm=arm)
    left, right = (replace(acting[arm], arm=arm) for arm in ARMS)
    same = left.primitive == right.primitive and left.instruction == right.instruction
    status: ObjectStatus = "HOLDING" if "HOLDING" in (left.status, right.status) else left.status or right.status
    moved_3 = np.mean([left.displacement, right.displacement], axis=0)
    return Proposal(
        left.start,
        left.end,
        left.primitive if same else BOTH_ARMS.name,
        status,
        with_both(left.instruction, right.instruction),
        (float(moved_3[0]), float(moved_3[1]), float(moved_3[2])),
        arm=BOTH,
        parts=(left, right),
    )
