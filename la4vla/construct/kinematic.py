"""The kinematic labeller: cuts an episode into atomic actions and names each, from states and commands alone.

It claims only what motion and gripper can tell. Contact is out of its reach, so `push`, `pull` and `press` come out as
`move`; a closed gripper counts as HOLDING only where it came to rest on something (RobotFrame.closed_on_nothing).

Cuts: where a grasp or a release starts and ends; where the path bends (the point farthest from the straight line,
while farther than `bend_tolerance`: Ramer-Douglas-Peucker); static keyframes; where a held object is lost. Then
segments shorter than `min_clip_frames` join a neighbour, cuts snap to frames that have a picture, and each segment is
labelled by its measured displacement as the robot sees it. Segments that neither move, turn nor grasp are waits and
are left out. Cuts and displacements are shifted by the arm's lag behind its commands, so that words fit commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.config import ProposeConfig
from la4vla.construct.candidates import Proposal, Proposed
from la4vla.construct.episodes import Episode
from la4vla.construct.keyframes import ROTATION, TRANSLATION, Keyframe, opening
from la4vla.construct.ledger import digest
from la4vla.construct.robot import Robot, RobotFrame
from la4vla.construct.vocabulary import ObjectStatus, phrase, way
from la4vla.rng import RngUse, generator
from la4vla.types import UserError, VectorSpec

VERSION = 3
"""Counts changes of what the same episodes and settings are cut and labelled into."""

_REST_SPEED = 0.15  # of an event's top speed: below it the gripper has not started or has come to rest
_LEAD_FRAMES = 8  # a command precedes the motion it causes by no more than this (0.1 s at 80 Hz)
_REST_FRAMES = 10  # frames over which the resting opening is taken
_TEXT_OPENING = 0.25  # change of opening (1 = from closed to open) that an instruction mentions


@dataclass(frozen=True)
class Track:
    """An episode as the labeller and the judge see it.

    path_T3: (forward, left, up), m. open_T, command_T: gripper, 1 open, 0 closed. lag: frames by which the arm follows
    its commands.
    """

    path_T3: np.ndarray
    turn_T: Rotation | None
    open_T: np.ndarray
    command_T: np.ndarray
    frame: RobotFrame
    lag: int

    def __len__(self) -> int:
        return len(self.path_T3)

    def moved(self, start: int, end: int) -> np.ndarray:
        """Displacement [3] that the actions of [start, end) caused."""
        return self.path_T3[self.seen(end)] - self.path_T3[self.seen(start)]

    def seen(self, frame: int) -> int:
        """The frame whose state shows what was commanded up to `frame`."""
        return min(frame + self.lag, len(self) - 1)


@dataclass(frozen=True)
class _Segment:
    start: int
    end: int
    kind: Literal["", "grasp", "place"] = ""

    @property
    def frames(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Kinematic:
    """The labeller as a Proposer. seed: of the choice among phrasings."""

    config: ProposeConfig
    seed: int
    name: str = "kinematic"

    @property
    def version(self) -> str:
        return digest(self.name, VERSION, asdict(self.config), self.seed)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> Proposed:
        draws = generator(self.seed, RngUse.WORDING, episode.key)
        stride = episode.frame_stride
        return Proposed(
            tuple(propose(episode.state, episode.action, episode.robot, keyframes, self.config, stride, draws))
        )


def propose(
    state_TS: np.ndarray,
    action_TA: np.ndarray,
    robot: Robot,
    keyframes: Sequence[Keyframe],
    config: ProposeConfig,
    stride: int,
    generator: np.random.Generator,
) -> list[Proposal]:
    """Labelled segments in the order of time; they do not overlap and starts are multiples of `stride`.

    state_TS, action_TA: units of the embodiment. keyframes: of detect(). generator: chooses among phrasings only.
    Raises UserError for an embodiment without a position in its state.
    """
    track = track_of(state_TS, action_TA, robot)
    gripper = [item for item in keyframes if item.kind != "static"]
    phases, holding_T = _gripper_phases(track, gripper)
    cuts = [item.frame for item in keyframes if item.kind == "static"]
    cuts += [int(t) + 1 for t in np.flatnonzero(np.diff(holding_T.astype(np.int8)))]
    segments = _snap(_join_short(_cut(track, phases, cuts, config), track, config.min_clip_frames), stride)
    proposals = [_label(segment, track, holding_T, config, generator) for segment in segments]
    return [item for item in proposals if item is not None and item.end - item.start >= config.min_clip_frames]


def bends(path_N3: np.ndarray, tolerance: float) -> list[int]:
    """Interior points of the polyline that follows the path [N, 3] within `tolerance` (same unit), in order."""
    found, open_spans = [], [(0, len(path_N3) - 1)]
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        chord = path_N3[last] - path_N3[first]
        offset_N3 = path_N3[first + 1 : last] - path_N3[first]
        length = float(chord @ chord)
        along_N = np.clip(offset_N3 @ chord / length, 0.0, 1.0) if length > 0 else np.zeros(len(offset_N3))
        distance_N = np.linalg.norm(offset_N3 - along_N[:, None] * chord, axis=1)
        if distance_N.max() > tolerance:
            middle = first + 1 + int(distance_N.argmax())
            found.append(middle)
            open_spans += [(first, middle), (middle, last)]
    return sorted(found)


def track_of(state_TS: np.ndarray, action_TA: np.ndarray, robot: Robot) -> Track:
    """state_TS, action_TA: units of the embodiment. Raises UserError without a position in the state."""
    embodiment, spec, frame = robot.embodiment, robot.embodiment.state, robot.frame
    position, rotation = spec.dims(*TRANSLATION), spec.dims(*ROTATION)
    if len(position) < 3:
        raise UserError(f"embodiment `{embodiment.name}` has no x, y, z in its state; clips are cut by hand position.")
    path_T3 = frame.from_base(state_TS[:, position].astype(np.float64))
    turn_T = None
    if len(rotation) == 3 and spec.rotation == "euler_xyz":
        turn_T = Rotation.from_euler("xyz", state_TS[:, rotation])
    elif len(rotation) == 3 and spec.rotation == "axis_angle":
        turn_T = Rotation.from_rotvec(state_TS[:, rotation])
    open_T, command_T = opening(state_TS, spec), opening(action_TA, embodiment.action)
    if open_T is None or command_T is None:
        open_T = command_T = np.ones(len(state_TS))
    return Track(path_T3, turn_T, open_T, command_T, frame, _lag(path_T3, action_TA, embodiment.action, frame))


def _lag(path_T3: np.ndarray, action_TA: np.ndarray, spec: VectorSpec, frame: RobotFrame) -> int:
    """Frames after which motion is most like the commands; 0 where commands are not translations in the base frame.

    A clip's words must fit its commands, and a compliant arm shows them late: cut by states alone, the last tenth of a
    second of `forward` would be commands to go down.
    """
    dims = spec.dims(*TRANSLATION)
    if len(dims) < 3 or spec.reference != "delta" or spec.frame != "base":
        return 0
    command_T3 = frame.from_base(action_TA[:, dims].astype(np.float64))
    velocity_T3 = np.diff(path_T3, axis=0)
    likeness = [
        float((command_T3[: len(velocity_T3) - lag] * velocity_T3[lag:]).sum())
        for lag in range(min(_LEAD_FRAMES + 1, len(velocity_T3)))
    ]
    return int(np.argmax(likeness)) if likeness else 0


def _gripper_phases(track: Track, events: Sequence[Keyframe]) -> tuple[list[_Segment], np.ndarray]:
    """The grasps and releases among the gripper events, and whether something is held, bool [T].

    A closing that ends at rest on nothing and an opening of an empty gripper are no phases of their own.
    """
    frames = len(track)
    holding_T = np.zeros(frames, bool)
    holding_T[:] = _rests_on_something(track, 0, events[0].frame if events else frames)
    phases: list[_Segment] = []
    earliest = 0
    for number, event in enumerate(events):
        until = events[number + 1].frame if number + 1 < len(events) else frames
        start, end = _event_span(track, event, earliest, until)
        held_before = bool(holding_T[start])
        held_after = event.kind == "gripper_close" and _rests_on_something(track, end, until)
        if held_before != held_after:
            phases.append(_Segment(start, end, "grasp" if held_after else "place"))
        holding_T[end:] = held_after
        earliest = end
        if held_after:
            holding_T[_lost(track, end, until) : until] = False
    return [item for item in phases if item.frames > 0], holding_T


def _event_span(track: Track, event: Keyframe, earliest: int, until: int) -> tuple[int, int]:
    """[start, end) of a gripper motion: from its command, or else its first movement, until it comes to rest."""
    sign = 1.0 if event.kind == "gripper_open" else -1.0
    speed_T = sign * np.diff(track.open_T, append=track.open_T[-1])
    near = slice(max(event.frame - _LEAD_FRAMES, earliest), min(event.frame + _LEAD_FRAMES, until))
    rest = _REST_SPEED * max(float(speed_T[near].max(initial=0.0)), 1e-6)
    end = event.frame
    while end < until and speed_T[end] > rest:
        end += 1
    start = event.frame
    while start > earliest and speed_T[start - 1] > rest:
        start -= 1
    commanded_T = track.command_T > 0.5 if event.kind == "gripper_open" else track.command_T < 0.5
    first_possible = max(start - _LEAD_FRAMES, earliest)
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
    """First frame from which on a held object is gone because the gripper has closed fully, or `until`."""
    empty_T = track.open_T[start:until] <= track.frame.closed_on_nothing + track.frame.hold_margin
    held = np.flatnonzero(~empty_T)
    last = start + int(held[-1]) + 1 if len(held) else start
    return last if until - last >= _REST_FRAMES // 2 else until


def _cut(track: Track, phases: Sequence[_Segment], cuts: Sequence[int], config: ProposeConfig) -> list[_Segment]:
    segments: list[_Segment] = []
    position = 0
    for phase in [*phases, _Segment(len(track), len(track))]:
        path_N3 = track.path_T3[track.seen(position) : track.seen(phase.start)]
        inside = [bend + position for bend in bends(path_N3, config.bend_tolerance)]
        inside += [cut - track.lag for cut in cuts]
        edges = sorted({position, *(cut for cut in inside if position < cut < phase.start), phase.start})
        segments += [_Segment(first, last) for first, last in pairwise(edges)]
        if phase.frames:
            segments.append(phase)
        position = phase.end
    return segments


def _join_short(segments: list[_Segment], track: Track, min_frames: int) -> list[_Segment]:
    """Shortest first, segments below `min_frames` join the neighbour whose motion is most like theirs.

    A grasp or release takes up a neighbour but is itself never taken up by a motion.
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
        joined = _Segment(segments[first].start, segments[last].end, segments[target].kind)
        segments[first : last + 1] = [joined]
    return segments


def _likeness(one: _Segment, other: _Segment, track: Track) -> float:
    """Cosine of two displacements."""
    a, b = track.moved(one.start, one.end), track.moved(other.start, other.end)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _snap(segments: Sequence[_Segment], stride: int) -> list[_Segment]:
    """Cuts moved to the nearest multiple of `stride`; the end of the episode stays."""
    if not segments:
        return []
    final = segments[-1].end
    snapped = [
        replace(item, start=round(item.start / stride) * stride, end=min(round(item.end / stride) * stride, final))
        for item in segments
    ]
    snapped[-1] = replace(snapped[-1], end=final)
    return [item for item in snapped if item.frames > 0]


def _label(
    segment: _Segment, track: Track, holding_T: np.ndarray, config: ProposeConfig, generator: np.random.Generator
) -> Proposal | None:
    """The proposal for one segment, or None for a wait. Draws twice from the generator, whatever comes out."""
    draw, grip_draw = generator.random(2)
    moved_3 = track.moved(segment.start, segment.end)
    distance = float(np.linalg.norm(moved_3))
    holding = bool(np.median(holding_T[segment.start : segment.end]))
    fields = {"way": way(moved_3, config.second_axis, config.slight_move)}
    turned, fields["turn"] = turn_of(track, segment.start, segment.end)
    fields["grip"], fields["acting"] = _grip_words(track, segment, grip_draw)
    moves = distance >= config.min_move
    if segment.kind:
        primitive = segment.kind
        instruction = phrase(f"{primitive}_moving" if moves else primitive, draw, **fields)
        holding = primitive == "grasp"
    elif turned > config.min_turn and turned * config.turn_arm > distance:
        about_up = fields["turn"] != ""
        primitive = {
            (True, True): "wrist_rotate",
            (True, False): "reorient",
            (False, True): "rotate_free",
            (False, False): "reorient_free",
        }[holding, about_up]
        instruction = phrase(primitive, draw, **fields)
    elif moves and holding:
        vertical = int(np.abs(moved_3).argmax()) == 2
        primitive = ("lift" if moved_3[2] > 0 else "lower") if vertical else "transport"
        instruction = phrase(primitive, draw, **fields)
    elif moves:
        primitive = "move"
        instruction = phrase("move_acting" if fields["acting"] else primitive, draw, **fields)
    else:
        return None
    status: ObjectStatus = "HOLDING" if holding else "EMPTY"
    displacement = (float(moved_3[0]), float(moved_3[1]), float(moved_3[2]))
    return Proposal(segment.start, segment.end, primitive, status, instruction, displacement)


def turn_of(track: Track, start: int, end: int) -> tuple[float, str]:
    """Angle in rad, and (counter-)clockwise as seen from above if the axis is within 45 degrees of vertical."""
    if track.turn_T is None:
        return 0.0, ""
    last = min(end, len(track) - 1)
    vector = (track.turn_T[last] * track.turn_T[start].inv()).as_rotvec()
    angle = float(np.linalg.norm(vector))
    up = float(track.frame.from_base(vector)[2])
    if angle == 0.0 or abs(up) < angle * np.sqrt(0.5):
        return angle, ""
    return angle, "counter-clockwise" if up > 0 else "clockwise"


def _grip_words(track: Track, segment: _Segment, draw: float) -> tuple[str, str]:
    """An adjective for the gripper where it does not change, else what it does meanwhile."""
    last = min(segment.end, len(track) - 1)
    first_open, last_open = float(track.open_T[segment.start]), float(track.open_T[last])
    if abs(last_open - first_open) > _TEXT_OPENING:
        return "", "closing" if last_open < first_open else "opening"
    if min(first_open, last_open) >= track.frame.open_from:
        return ("open " if draw < 0.5 else "empty "), ""
    if max(first_open, last_open) <= track.frame.closed_on_nothing + track.frame.hold_margin:
        return "closed ", ""
    return "", ""
