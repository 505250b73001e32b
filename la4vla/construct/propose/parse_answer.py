"""From a model's answer to proposals, and sentences that say what is wrong with the answer.

Owns the fields of a segment and how seconds become frames. `spans` decides which spans can be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from la4vla.chat.json_answer import last_list
from la4vla.construct.arm_words import arm_of, said_of
from la4vla.construct.episodes import Episode
from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.propose.spans import snap, validate
from la4vla.construct.vocabulary import ALIASES, BOTH_ARMS, PRIMITIVES, ObjectStatus

_FOREVER_S = 1e6  # s; longer than any demonstration, and far below the numbers that overflow
_EITHER = ("reorient", "rotate")  # labels that mean another primitive when something is held


def read_answer(text: str, episode: Episode, min_frames: int, slack: int) -> tuple[list[Proposal], list[str]]:
    """The usable proposals of an answer in the order of time, and a sentence for everything unusable in it.

    Displacements are 0; judge measures them if the state has a position. Starts are multiples of the episode's
    frame_stride. min_frames, slack: as spans.validate takes them.
    """
    items = last_list(text)
    if items is None:
        return [], ["it holds no complete JSON list of segments."]
    proposals, problems = _proposals(items, episode)
    usable, rejected = validate(proposals, len(episode), min_frames, slack)
    if not items:
        problems.append("the list is empty.")
    return usable, problems + rejected


def _proposals(items: Sequence[Mapping[str, Any]], episode: Episode) -> tuple[list[Proposal], list[str]]:
    """The segments whose fields can be read, with frames for seconds, and a sentence for each other segment."""
    proposals: list[Proposal] = []
    problems: list[str] = []
    held: ObjectStatus = "EMPTY"
    for number, item in enumerate(items, start=1):
        label, instruction, status = (item.get(name, "") for name in ("subaction", "instruction", "status"))
        start, end = _seconds(item.get("start")), _seconds(item.get("end"))
        if not isinstance(label, str) or not label.strip():
            problems.append(f"segment {number} has no `subaction`.")
        elif not isinstance(instruction, str) or not instruction.strip():
            problems.append(f"segment {number} has no `instruction`.")
        elif start is None or end is None or start >= end:
            problems.append(
                f"segment {number}: `start` {item.get('start')} and `end` {item.get('end')} are no span in seconds."
            )
        elif status not in ("HOLDING", "EMPTY", ""):
            problems.append(f"segment {number}: `status` is {status}, it must be HOLDING or EMPTY.")
        else:
            held = status or _usual_status(label.strip().lower(), held)
            words = " ".join(instruction.split()).rstrip(".")
            span = _frames(start, end, episode)
            arm = arm_of(words) if episode.robot.arms else ""
            if arm and len(set(said_of(words).values())) > 1:
                label = BOTH_ARMS.name
            proposals.append(Proposal(*span, label, held, words, (0.0, 0.0, 0.0), arm=arm))
    return proposals, problems


def _usual_status(label: str, held: ObjectStatus) -> ObjectStatus:
    """The status at the end of a segment that does not say its status. held: the status before the segment."""
    primitive = PRIMITIVES.get(ALIASES.get(label, label))
    return held if primitive is None or label in _EITHER else primitive.status or held


def _seconds(value: Any) -> float | None:
    """A finite number of seconds, given as a number or as a text that may end in `s`; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value.strip().removesuffix("s"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _FOREVER_S:
        return None
    return float(value)


def _frames(start: float, end: float, episode: Episode) -> tuple[int, int]:
    """Seconds as frames that have an image. An end close to the episode's end becomes the episode's end."""
    stride, last = episode.frame_stride, len(episode)
    first, stop = round(start * episode.fps), round(end * episode.fps)
    return snap(first, stride), last if abs(stop - last) < stride else snap(stop, stride)
