"""The judge: an automatic score 0 .. 3 for every proposal on the annotators' scale, and why (FACTS 1.3.2, 1.3.5).

Each finding is a sentence with the highest score it allows. A proposal's score is the lowest of these, 3 without any
finding.

    0   the sentence cannot be used (lint), the motion is the opposite of the label, or a dim moves that no sentence
        describes (a second arm, a mobile base), or the arm that the sentence does not name
    1   direction, kind of motion or object status contradict what was measured; of two arms none is named
    2   acceptable: it fits loosely (crooked path, a boundary where nothing changes), or states cannot tell

Sentences that a dataset gives to its parts (proposer tasks) speak of objects and places: of them only those are found
fault with in whose frames nothing moves.

Of a robot with two arms each arm that a sentence names is held against what the sentence says of it.

The judge sees states and commands only. It catches what is physically wrong; people judge what the object does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from la4vla.config import ConstructConfig, JudgeConfig, ProposeConfig
from la4vla.construct.arm_words import said_of
from la4vla.construct.episodes import Episode
from la4vla.construct.notes import UNDESCRIBED
from la4vla.construct.propose.candidates import Candidate, Proposal
from la4vla.construct.propose.track import Track, track_of, turn_of, undescribed_motion
from la4vla.construct.propose.whole_episode import label
from la4vla.construct.robots.robot import Robot
from la4vla.construct.vocabulary import (
    BOTH_ARMS,
    PRIMITIVES,
    canonical,
    contradictions,
    lint,
    named_direction,
    words_of,
)
from la4vla.types import UserError

VERSION = 7
"""Raised when the same proposals and settings would be scored differently."""

Finding = tuple[float, str]
"""The highest score that it allows, and a sentence that says why."""

MOVES, MOVES_SHARE = 0.01, 0.05  # of the dim's own unit, and of its range in the episode; more is a motion

_VERTICAL = {"lift": 1.0, "lower": -1.0, "press": -1.0}
"""Primitive -> the sign of its motion along up."""
_CONTACT = ("push", "pull", "press")
_ROTATIONS = ("wrist_rotate", "reorient", "rotate_free", "reorient_free")
_GRIPPER = {"grasp": -1.0, "place": 1.0}
"""Primitive -> the sign of the change of its gripper's opening."""


def judge(proposals: Sequence[Proposal], episode: Episode, config: ConstructConfig) -> list[Candidate]:
    """Candidates: the proposals of an episode with their scores and measured displacements.

    proposals: usable ones, as spans.validate returns them. config: uses `judge`, and from `propose` the limits from
    which on something counts as a motion or a turn.
    """
    views = episode.arms
    tracks = {
        view.name: track_of(view.state, view.action, view.robot)
        for view in views
        if view.robot.embodiment.state.has_position
    }
    others, named_by_dataset = undescribed_motion(episode), config.proposer == "tasks"
    judged = []
    for proposal in proposals:
        item, findings = proposal, list[Finding]()
        if not named_by_dataset:
            findings += [(0.0, f"{fault}.") for fault in lint(item.instruction)]
            findings += [*_label(item), *_others(item, others, episode.robot)]
        if len(tracks) < len(views):
            findings.append((2.0, "The state has no position: the motion is not checked."))
        else:
            item = replace(item, displacement=_displacement(item, tracks))
            if named_by_dataset:
                findings += _still(item, tracks, config)
            elif not any(score == 0.0 for score, _ in findings):
                findings += _fits(item, tracks, config)
        score = min((score for score, _ in findings), default=3.0)
        judged.append(Candidate(**vars(item), score=score, reasons=tuple(reason for _, reason in findings)))
    return judged


def _displacement(proposal: Proposal, tracks: Mapping[str, Track]) -> tuple[float, float, float]:
    """(forward, left, up) in m, of the only arm or the mean of those that the sentence names; of all if it names none.

    tracks: arm -> its motion; the only arm has no name.
    """
    named = [arm for arm in said_of(proposal.instruction) if arm in tracks] or [*tracks]
    moved_3 = np.mean([tracks[arm].moved(proposal.start, proposal.end) for arm in named], axis=0)
    return float(moved_3[0]), float(moved_3[1]), float(moved_3[2])


def _fits(proposal: Proposal, tracks: Mapping[str, Track], config: ConstructConfig) -> Iterator[Finding]:
    """Whether each arm does what the sentence says of it, and nothing where it is not named."""
    if len(tracks) == 1:
        (track,) = tracks.values()
        yield from _arm(proposal, track, config)
        yield from _edges(proposal, [track], config.judge)
        yield from _gripper(proposal, track, config.judge) if track.gripper != "none" else ()
        return
    said = said_of(proposal.instruction)
    if not said:
        yield 1.0, "It does not say which arm; begin with `with the left arm,` or `with both arms,`."
        return
    parts = {item.arm: item for item in proposal.parts} or _parts(proposal, said)
    for arm, track in tracks.items():
        if arm not in said:
            if acts := _acts(proposal, track, config):
                yield 0.0, f"The {arm} arm acts as well ({acts}), and the sentence does not name it."
            continue
        part = replace(parts[arm], start=proposal.start, end=proposal.end)
        found = [*_arm(part, track, config), *(_gripper(part, track, config.judge) if track.gripper != "none" else ())]
        yield from ((score, f"Of the {arm} arm: {reason}") for score, reason in found)
    yield from _edges(proposal, list(tracks.values()), config.judge)


def _parts(proposal: Proposal, said: Mapping[str, str]) -> dict[str, Proposal]:
    """What each arm does by the sentence, where the proposer did not say it. said: of said_of."""
    if len(set(said.values())) == 1:
        return {arm: replace(proposal, instruction=text) for arm, text in said.items()}
    parts = {}
    for arm, text in said.items():
        primitive, status = label(text)
        parts[arm] = replace(proposal, instruction=text, primitive=primitive or "move", status=status)
    return parts


def _arm(proposal: Proposal, track: Track, config: ConstructConfig) -> Iterator[Finding]:
    """Whether an arm moves as the label and the words say. What its gripper does is _gripper's."""
    moved_3 = track.moved(proposal.start, proposal.end)
    yield from _motion(proposal, track, moved_3, config.propose)
    yield from _straight(proposal, track, moved_3, config.judge)


def _label(proposal: Proposal) -> Iterator[Finding]:
    """Whether the label exists and agrees with the object's status."""
    try:
        name = canonical(proposal.primitive, proposal.status)
    except UserError as error:
        yield 0.0, str(error)
        return
    if name == "wait":
        yield 0.0, "A wait teaches no action."
    if name != BOTH_ARMS.name and proposal.status and PRIMITIVES[name].status not in ("", proposal.status):
        yield 1.0, f"`{name}` ends {PRIMITIVES[name].status}, not {proposal.status}."


def _others(proposal: Proposal, others: Mapping[str, np.ndarray], robot: Robot) -> Iterator[Finding]:
    """Whether dims move in the span that no instruction describes. others: of undescribed_motion."""
    for name, path_T in others.items():
        span_T = path_T[proposal.start : proposal.end + 1]
        if np.ptp(span_T) > max(MOVES, MOVES_SHARE * float(np.ptp(path_T))):
            whole = "The mobile base's " if name.partition(" ")[2] in robot.mobile_base else ""
            yield 0.0, f"{whole}`{name}` {UNDESCRIBED}"


def _motion(proposal: Proposal, track: Track, moved_3: np.ndarray, config: ProposeConfig) -> Iterator[Finding]:
    """Whether the hand did what the label and the direction words say. moved_3: (forward, left, up), m."""
    name, distance = proposal.primitive, float(np.linalg.norm(moved_3))
    for problem in contradictions(proposal.instruction, moved_3):
        yield 1.0, f"{problem}."
    if name in _ROTATIONS:
        if track.turn_T is None:
            yield 2.0, "The state has no orientation: the turn is not checked."
            return
        turned, sense = turn_of(track, proposal.start, proposal.end)
        named = {word == "clockwise" for word in words_of(proposal.instruction) if word.endswith("clockwise")}
        if sense and named - {sense == "clockwise"}:
            yield 1.0, f"Seen from above it turned {sense}."
        if turned < config.min_turn or turned * config.turn_arm < distance:
            yield 1.0, f"`{name}`, but it turned {np.degrees(turned):.0f} degrees and moved {distance * 100:.1f} cm."
        return
    if name in _GRIPPER:
        return
    if name in _CONTACT:
        if track.contact_T is None:
            yield 2.0, f"Contact cannot be seen in states: `{name}` is for people to confirm."
        elif not track.contact_T[proposal.start : track.seen(proposal.end) + 1].any():
            yield 1.0, f"`{name}`, but nothing was touched."
    if distance < config.min_move:
        yield 1.0, f"`{name}`, but it moved only {distance * 100:.1f} cm."
        return
    sign = _VERTICAL.get(name, 0.0)
    vertical = int(np.abs(moved_3).argmax()) == 2
    if sign * moved_3[2] < 0:
        yield 0.0, f"`{name}`, but it went {'down' if sign > 0 else 'up'} by {abs(moved_3[2]) * 100:.1f} cm."
    elif sign and not vertical:
        yield 1.0, f"`{name}`, but most of the motion is horizontal."
    if name == "transport" and vertical:
        yield 1.0, "`transport`, but most of the motion is vertical."


def _still(proposal: Proposal, tracks: Mapping[str, Track], config: ConstructConfig) -> Iterator[Finding]:
    """Whether neither hand nor gripper of any arm does anything in the span."""
    if not any(_acts(proposal, track, config) for track in tracks.values()):
        reach = max(_reach(proposal, track) for track in tracks.values())
        yield 1.0, f"Nothing happens: the hand stays within {reach * 100:.1f} cm."


def _reach(proposal: Proposal, track: Track) -> float:
    """m from where the hand begins that it gets in the span."""
    inside = slice(track.seen(proposal.start), track.seen(proposal.end) + 1)
    return float(np.linalg.norm(track.path_T3[inside] - track.path_T3[inside][0], axis=1).max())


def _acts(proposal: Proposal, track: Track, config: ConstructConfig) -> str:
    """What an arm does in the span, in words; empty if it rests."""
    inside = slice(track.seen(proposal.start), track.seen(proposal.end) + 1)
    reach = _reach(proposal, track)
    turned = float(np.linalg.norm(track.spin_T3[inside] - track.spin_T3[inside][0], axis=1).max())
    if reach >= config.propose.min_move:
        return f"{reach * 100:.1f} cm"
    if turned >= config.propose.min_turn:
        return f"{np.degrees(turned):.0f} degrees"
    grips = track.gripper != "none" and np.ptp(track.open_T[inside]) >= config.judge.min_gripper_change
    return "its gripper" if grips else ""


def _gripper(proposal: Proposal, track: Track, config: JudgeConfig) -> Iterator[Finding]:
    """Whether the gripper moved as the label says and rests as the status says."""
    name, frame = proposal.primitive, track.frame
    first, last = proposal.start, track.seen(proposal.end)
    inside_T = track.open_T[first : last + 1]
    if name in _GRIPPER:
        change_T = _GRIPPER[name] * (inside_T - inside_T[0])
        if change_T.max() < config.min_gripper_change:
            yield 0.0, f"`{name}`, but the gripper does not {'close' if name == 'grasp' else 'open'}."
        later = min(last + config.edge_frames, len(track) - 1)
        if _GRIPPER[name] * (track.open_T[later] - track.open_T[last]) > config.min_gripper_change:
            yield 2.0, f"The gripper is still on its way at the end, frame {proposal.end}."
        inside_T = inside_T[-1:]
    if track.gripper == "commanded":
        return  # a command does not tell whether something is in between
    rest, closed = float(np.median(inside_T)), frame.closed_on_nothing + frame.hold_margin
    commanded_T = track.command_T[first : proposal.end] < 0.5
    if proposal.status == "HOLDING" and rest >= frame.open_from:
        yield 1.0, "HOLDING, but the gripper is open."
    if proposal.status == "HOLDING" and rest <= closed:
        yield 1.0, "HOLDING, but the gripper is closed on nothing."
    if proposal.status == "EMPTY" and ((closed < inside_T) & (inside_T < frame.open_from)).all() and commanded_T.all():
        yield 1.0, "EMPTY, but the closing gripper rests on something."


def _straight(proposal: Proposal, track: Track, moved_3: np.ndarray, config: JudgeConfig) -> Iterator[Finding]:
    """How tightly the words fit the way. No finding here makes a clip unacceptable."""
    first, last = track.seen(proposal.start), track.seen(proposal.end)
    distance = float(np.linalg.norm(moved_3))
    if proposal.primitive not in _ROTATIONS and proposal.primitive not in _GRIPPER and distance > 0:
        named_3 = named_direction(proposal.instruction)
        if not named_3.any():
            yield 2.0, "No direction is named."
        elif named_3 @ moved_3 < config.direction_cosine * distance * np.linalg.norm(named_3):
            yield 2.0, "The direction named is only a part of the motion."
        length = float(np.linalg.norm(np.diff(track.path_T3[first : last + 1], axis=0), axis=1).sum())
        if distance < config.straightness * length:
            yield 2.0, f"The path is crooked, {length / distance:.1f} times the straight line: perhaps two actions."


def _edges(proposal: Proposal, tracks: Sequence[Track], config: JudgeConfig) -> Iterator[Finding]:
    """Whether an arm begins or ends something at the boundaries."""
    for frame in (proposal.start, proposal.end):
        if not any(_changes(track, track.seen(frame), config) for track in tracks):
            yield 2.0, f"Nothing changes at frame {frame}: the action goes on there."


def _changes(track: Track, frame: int, config: JudgeConfig) -> bool:
    """Whether hand or gripper move differently before and after a frame. True near the ends of the episode."""
    before, after = frame - config.edge_frames, frame + config.edge_frames
    if before < 0 or after >= len(track):
        return True
    steps_23 = np.diff(track.path_T3[[before, frame, after]], axis=0)
    largest = np.linalg.norm(steps_23, axis=1).max()
    gripper_2 = np.diff(track.open_T[[before, frame, after]])
    bends = float(np.linalg.norm(steps_23[1] - steps_23[0])) >= config.edge_change * largest
    return bends or abs(float(gripper_2[1] - gripper_2[0])) >= config.min_gripper_change
