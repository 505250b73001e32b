"""The kinematic labeller: cuts an episode into atomic actions and names each, from states and commands alone.

It claims only what motion and gripper can tell. A closed gripper counts as HOLDING only if it came to rest on
something (RobotFrame.closed_on_nothing). If the state has no gripper, the commanded opening stands for it, and a closed
command alone gives no status. If the action has none either, no label has a status, and sentences say `arm`. `push`,
`pull` and `press` are claimed only if the state has a `contact` dimension (above 0.5: something is touched); otherwise
they are labelled `move`.

It cuts an episode
- where the commands jump,
- where a gripper motion begins, and where a grasp or release ends,
- where the path bends by more than `bend_angle`, turning included,
- where a held object is lost or contact changes,
- at static keyframes if the commands never jump (an arm that is sent from target to target rests when it arrives).

Then segments shorter than `min_clip_frames` join a neighbour, cuts snap to frames with an image, and each segment is
labelled by its displacement as the robot sees it. Segments that neither move, turn nor grasp are waits; they become no
clip. Bends, displacements and turns are shifted by the arm's lag behind its commands, so that words fit commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from la4vla.config import ProposeConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.candidates import Proposal, ProposerResult
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.propose.track import LEAD_FRAMES, Track, bends, command_jumps, track_of, turn_of
from la4vla.construct.robots.robot import Robot
from la4vla.construct.vocabulary import ObjectStatus, phrase, way
from la4vla.rng import RngUse, generator

VERSION = 10
"""Raised when the same episodes and settings would be cut or labelled differently."""

_REST_SPEED = 0.15  # of an event's top speed: below it the gripper has not started or has come to rest
_REST_FRAMES = 10  # frames over which the resting opening is taken
_TEXT_OPENING = 0.25  # change of opening (1 = from closed to open) that an instruction mentions


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
    """The labeller as a Proposer.

    seed  decides among phrasings
    """

    config: ProposeConfig
    seed: int
    name: str = "kinematic"

    @property
    def version(self) -> str:
        return digest(self.name, VERSION, asdict(self.config), self.seed)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        draws = generator(self.seed, RngUse.WORDING, episode.key)
        stride = episode.frame_stride
        return ProposerResult(
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
    """Labelled segments in the order of time, without overlaps. Their starts are multiples of `stride`.

    state_TS, action_TA: units of the embodiment. keyframes: as keyframes.detect() returns them. generator: chooses
    among phrasings, nothing else. Raises UserError for an embodiment without a position in its state.
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
    proposals = [_label(segment, track, holding_T, config, generator) for segment in segments]
    return [item for item in proposals if item is not None and item.end - item.start >= config.min_clip_frames]


def _gripper_phases(
    track: Track, events: Sequence[Keyframe], jumps: Sequence[int], config: ProposeConfig
) -> tuple[list[_Segment], np.ndarray, list[int]]:
    """(grasps and releases among the gripper events, bool [T] whether something is held, starts of all events).

    A closing that comes to rest on nothing and an opening of an empty gripper are no phases of their own. A gripper
    that closes at once shows its motion in one frame only; its phase is extended to min_clip_frames, unless something
    else happens to the gripper before.
    """
    frames = len(track)
    holding_T = np.zeros(frames, bool)
    holding_T[:] = _rests_on_something(track, 0, events[0].frame if events else frames)
    phases: list[_Segment] = []
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
            phases.append(_Segment(start, end, "grasp" if held_after else "place"))
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
    track: Track, phases: Sequence[_Segment], cuts: Sequence[int], hints: Sequence[int], config: ProposeConfig
) -> list[_Segment]:
    """The whole episode as segments. cuts: frames that begin a segment. hints: moments of rest, used like bends."""
    segments: list[_Segment] = []
    position = 0
    path_T6 = np.hstack([track.path_T3, config.turn_arm * track.spin_T3])
    for phase in [*phases, _Segment(len(track), len(track))]:
        hard = sorted({position, *(cut for cut in cuts if position < cut < phase.start), phase.start})
        for first, last in pairwise(hard):
            path_N6 = path_T6[track.seen(first) : track.seen(last)]
            inside = [bend + first for bend in bends(path_N6, config.bend_tolerance, config.bend_angle)]
            inside += [hint for hint in hints if first < hint < last]
            edges = sorted({first, *inside, last})
            segments += [_Segment(one, two) for one, two in pairwise(edges)]
        if phase.frames:
            segments.append(phase)
        position = phase.end
    return segments


def _join_short(segments: list[_Segment], track: Track, min_frames: int) -> list[_Segment]:
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
        joined = _Segment(segments[first].start, segments[last].end, segments[target].kind)
        segments[first : last + 1] = [joined]
    return segments


def _likeness(one: _Segment, other: _Segment, track: Track) -> float:
    """Cosine between the displacements of two segments."""
    a, b = track.moved(one.start, one.end), track.moved(other.start, other.end)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _snap(segments: Sequence[_Segment], stride: int, min_frames: int) -> list[_Segment]:
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


def _label(
    segment: _Segment, track: Track, holding_T: np.ndarray, config: ProposeConfig, generator: np.random.Generator
) -> Proposal | None:
    """The proposal for one segment, None for a wait. Always draws twice from the generator."""
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
    elif moves and track.contact_T is not None and np.median(track.contact_T[segment.start : segment.end]):
        primitive = _contact_name(moved_3)
        instruction = phrase(primitive, draw, **fields)
    elif moves:
        primitive = "move"
        instruction = phrase("move_acting" if fields["acting"] else primitive, draw, **fields)
    else:
        return None
    status: ObjectStatus = "HOLDING" if holding else "EMPTY"
    if track.gripper == "none":
        status, instruction = "", instruction.replace("gripper", "arm")
    elif track.gripper == "commanded" and not holding and track.command_T[segment.end - 1] < 0.5:
        status = ""  # a closed command does not tell whether something is in between
    displacement = (float(moved_3[0]), float(moved_3[1]), float(moved_3[2]))
    return Proposal(segment.start, segment.end, primitive, status, instruction, displacement)


def _contact_name(moved_3: np.ndarray) -> str:
    """The primitive of Table 8 by the largest of (forward, left, up): press if down, pull if towards the base, else
    push."""
    axis = int(np.abs(moved_3).argmax())
    if moved_3[axis] < 0 and axis != 1:
        return "pull" if axis == 0 else "press"
    return "push"


def _grip_words(track: Track, segment: _Segment, draw: float) -> tuple[str, str]:
    """(an adjective for the gripper if its opening does not change, `closing` or `opening` if it does)."""
    if track.gripper == "none":
        return "", ""
    last = min(segment.end, len(track) - 1)
    first_open, last_open = float(track.open_T[segment.start]), float(track.open_T[last])
    if abs(last_open - first_open) > _TEXT_OPENING:
        return "", "closing" if last_open < first_open else "opening"
    if min(first_open, last_open) >= track.frame.open_from:
        return ("open " if draw < 0.5 else "empty "), ""
    if max(first_open, last_open) <= track.frame.closed_on_nothing + track.frame.hold_margin:
        return "closed ", ""
    return "", ""
