"""Cutting: where one action of an arm ends and the next begins, from states and commands alone.

The rules are those of `kinematic`, which names the segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from la4vla.config import ProposeConfig
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.propose.track import LEAD_FRAMES, Track, bends, command_jumps, track_of
from la4vla.construct.robots.robot import Robot

_REST_SPEED = 0.15  # of an event's top speed: below it the gripper has not started or has come to rest
_REST_FRAMES = 10  # frames over which the resting opening is taken


SegmentKind = Literal["", "grasp", "place"]


@dataclass(frozen=True)
class ArmSegment:
    """A span [start, end) of an arm's motion. kind: whether the gripper takes hold or lets go in it."""

    start: int
    end: int
    kind: SegmentKind = ""

    @property
    def frames(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class ArmCut:
    """An arm's episode in segments.

    track      its motion
    holding_T  bool, whether something is held
    segments   of the whole episode in the order of time; their starts are multiples of the stride
    """

    track: Track
    holding_T: np.ndarray
    segments: tuple[ArmSegment, ...]


def cut_arm(
    state_TS: np.ndarray,
    action_TA: np.ndarray,
    robot: Robot,
    keyframes: Sequence[Keyframe],
    config: ProposeConfig,
    stride: int,
) -> ArmCut:
    """state_TS, action_TA: of one arm, units of the embodiment. keyframes: as keyframes.detect() returns them.

    Raises UserError for an embodiment without a position in its state.
    """
    track = track_of(state_TS, action_TA, robot)
    gripper = [item for item in keyframes if item.kind != "static"]
    jumps = [] if track.steer_T3 is None else command_jumps(track.steer_T3, config.command_jump)
    phases, holding_T, edges = _gripper_phases(track, gripper, jumps, config)
    changes = [holding_T] if track.contact_T is None else [holding_T, track.contact_T]
    edges += [int(t) + 1 for flag_T in changes for t in np.flatnonzero(np.diff(flag_T.astype(np.int8)))]
    hints = [item.frame - track.lag for item in keyframes if item.kind == "static" and not jumps]
    cut = _cut(track, phases, [*jumps, *edges], hints, config)
    segments = _snap(_join_short(cut, track, config.min_clip_frames), stride, config.min_clip_frames)
    return ArmCut(track, holding_T, tuple(segments))


def _gripper_phases(
    track: Track, events: Sequence[Keyframe], jumps: Sequence[int], config: ProposeConfig
) -> tuple[list[ArmSegment], np.ndarray, list[int]]:
    """(grasps and releases among the gripper events, bool [T] whether something is held, starts of all events).

    A closing that comes to rest on nothing and an opening of an empty gripper are no phases of their own. A gripper
    that closes at once shows its motion in one frame only; its phase is extended to min_clip_frames, unless something
    else happens to the gripper before.
    """
    frames = len(track)
    holding_T = np.zeros(frames, bool)
    holding_T[:] = _rests_on_something(track, 0, events[0].frame if events else frames)
    phases: list[ArmSegment] = []
    starts: list[int] = []
    earliest = 0
    for number, event in enumerate(events):
        until = events[number + 1].frame if number + 1 < len(events) else frames
        start, end = _event_span(track, event, earliest, until)
        held_before = bool(holding_T[start])
        held_after = event.kind == "gripper_close" and _rests_on_something(track, end, until)
        lost = _lost(track, end, until) if held_after else until
        starts.append(start)
        if held_before != held_after:
            end = max(_last_of(track, start, end, lost, jumps, config), min(start + config.min_clip_frames, lost))
            phases.append(ArmSegment(start, end, "grasp" if held_after else "place"))
        holding_T[end:] = held_after
        holding_T[lost:until] = False
        earliest = end
    return [item for item in phases if item.frames > 0], holding_T, starts


def _last_of(track: Track, start: int, end: int, until: int, jumps: Sequence[int], config: ProposeConfig) -> int:
    """The frame at which a grasp or release [start, end) is over: the hand leaves, or else the gripper is at rest.

    Jumps of the commands show when the hand leaves; until then, waiting for the fingers belongs to the grasp. Without
    jumps, the hand leaves at its slowest moment if it has gone far by the time the gripper is at rest.
    """
    sooner = [jump for jump in jumps if start + config.min_clip_frames <= jump <= end]
    if sooner:
        return sooner[0]
    leaves = _slowest(track, start + config.min_clip_frames, end)
    if not jumps and float(np.linalg.norm(track.moved(leaves, end))) > config.min_move:
        return leaves
    later = next((jump for jump in jumps if end < jump <= until), end)
    return later if float(np.linalg.norm(track.moved(end, later))) < config.slight_move else end


def _slowest(track: Track, start: int, end: int) -> int:
    """The frame of [start, end] at whose command the hand moves least; `end` if the range is empty."""
    path_N3 = track.path_T3[track.seen(start) : track.seen(end) + 1]
    return start + int(np.linalg.norm(np.diff(path_N3, axis=0), axis=1).argmin()) if len(path_N3) > 1 else end


def _event_span(track: Track, event: Keyframe, earliest: int, until: int) -> tuple[int, int]:
    """[start, end) of a gripper motion: from its command, or else its first movement, until it comes to rest."""
    sign = 1.0 if event.kind == "gripper_open" else -1.0
    speed_T = sign * np.diff(track.open_T, append=track.open_T[-1])
    near = slice(max(event.frame - LEAD_FRAMES, earliest), min(event.frame + LEAD_FRAMES, until))
    rest = _REST_SPEED * max(float(speed_T[near].max(initial=0.0)), 1e-6)
    end = event.frame
    while end < until and speed_T[end] > rest:
        end += 1
    start = event.frame
    while start > earliest and speed_T[start - 1] > rest:
        start -= 1
    commanded_T = track.command_T > 0.5 if event.kind == "gripper_open" else track.command_T < 0.5
    first_possible = max(start - LEAD_FRAMES, earliest)
    while start > first_possible and commanded_T[start - 1]:
        start -= 1
    return start, end


def _rests_on_something(track: Track, start: int, until: int) -> bool:
    """Whether a closing command comes to rest on something at `start`."""
    rest = slice(start, max(min(start + _REST_FRAMES, until), start + 1))
    if start >= len(track):
        return False
    level, frame = float(np.median(track.open_T[rest])), track.frame
    closing = float(np.median(track.command_T[rest])) < 0.5
    return closing and frame.closed_on_nothing + frame.hold_margin < level < frame.open_from


def _lost(track: Track, start: int, until: int) -> int:
    """The first frame at which a held object is gone because the gripper has closed fully; `until` if it is not."""
    empty_T = track.open_T[start:until] <= track.frame.closed_on_nothing + track.frame.hold_margin
    held = np.flatnonzero(~empty_T)
    last = start + int(held[-1]) + 1 if len(held) else start
    return last if until - last >= _REST_FRAMES // 2 else until


def _cut(
    track: Track, phases: Sequence[ArmSegment], cuts: Sequence[int], hints: Sequence[int], config: ProposeConfig
) -> list[ArmSegment]:
    """The whole episode as segments. cuts: frames that begin a segment. hints: moments of rest, used like bends."""
    segments: list[ArmSegment] = []
    position = 0
    path_T6 = np.hstack([track.path_T3, config.turn_arm * track.spin_T3])
    for phase in [*phases, ArmSegment(len(track), len(track))]:
        hard = sorted({position, *(cut for cut in cuts if position < cut < phase.start), phase.start})
        for first, last in pairwise(hard):
            path_N6 = path_T6[track.seen(first) : track.seen(last)]
            inside = [bend + first for bend in bends(path_N6, config.bend_tolerance, config.bend_angle)]
            inside += [hint for hint in hints if first < hint < last]
            edges = sorted({first, *inside, last})
            segments += [ArmSegment(one, two) for one, two in pairwise(edges)]
        if phase.frames:
            segments.append(phase)
        position = phase.end
    return segments


def _join_short(segments: list[ArmSegment], track: Track, min_frames: int) -> list[ArmSegment]:
    """Joins segments below `min_frames`, shortest first, to the neighbour whose motion is most like theirs.

    A grasp or release may absorb a neighbour. It is never absorbed itself.
    """
    segments = list(segments)
    while len(segments) > 1:
        plain = [i for i, item in enumerate(segments) if not item.kind]
        if not plain:
            break
        short = min(plain, key=lambda i: segments[i].frames)
        if segments[short].frames >= min_frames:
            break
        beside = [i for i in (short - 1, short + 1) if 0 <= i < len(segments)]
        target = max(beside, key=lambda i: (not segments[i].kind, _likeness(segments[i], segments[short], track)))
        first, last = sorted((short, target))
        joined = ArmSegment(segments[first].start, segments[last].end, segments[target].kind)
        segments[first : last + 1] = [joined]
    return segments


def _likeness(one: ArmSegment, other: ArmSegment, track: Track) -> float:
    """Cosine between the displacements of two segments."""
    a, b = track.moved(one.start, one.end), track.moved(other.start, other.end)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _snap(segments: Sequence[ArmSegment], stride: int, min_frames: int) -> list[ArmSegment]:
    """The segments with their cuts moved to the nearest multiple of `stride`.

    A cut moves to the next multiple instead if its segment would become shorter than `min_frames`. The end of the
    episode stays.
    """
    if not segments:
        return []
    final = segments[-1].end
    edges = [0]
    for item in segments:
        end = max(round(item.end / stride) * stride, edges[-1])
        if end - edges[-1] < min_frames <= item.frames:
            end += stride
        edges.append(min(end, final))
    edges[-1] = final
    snapped = [replace(item, start=one, end=two) for item, (one, two) in zip(segments, pairwise(edges), strict=True)]
    return [item for item in snapped if item.frames > 0]
