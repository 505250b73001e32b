"""The label and the sentence of a segment of one arm's motion, by what moved. `kinematic` has the rules."""

from __future__ import annotations

import numpy as np

from la4vla.config import ProposeConfig
from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.propose.cutting import ArmCut, ArmSegment
from la4vla.construct.propose.track import Track, turn_of
from la4vla.construct.vocabulary import ObjectStatus, phrase, way

_TEXT_OPENING = 0.25  # change of opening (1 = from closed to open) that an instruction mentions


def label_all(cut: ArmCut, config: ProposeConfig, generator: np.random.Generator) -> list[Proposal]:
    """The proposals of an arm's segments, without waits and what is too short. Draws twice for every segment."""
    labelled = [label(segment, cut, config, generator.random(2)) for segment in cut.segments]
    return [item for item in labelled if item is not None and item.end - item.start >= config.min_clip_frames]


def label(segment: ArmSegment, cut: ArmCut, config: ProposeConfig, draws_2: np.ndarray) -> Proposal | None:
    """The proposal for one segment, None for a wait. draws_2: in [0, 1), choose the words."""
    draw, grip_draw = draws_2
    track, holding_T = cut.track, cut.holding_T
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


def _grip_words(track: Track, segment: ArmSegment, draw: float) -> tuple[str, str]:
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
