"""Answers of a language model: from its text to proposals, and in words what is wrong with it.

Owns what a model may wrap its JSON in and how seconds become frames. Which spans can be used is decided by spans.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from la4vla.construct.episodes import Episode
from la4vla.construct.propose.candidates import Proposal
from la4vla.construct.propose.spans import snap, validate
from la4vla.construct.vocabulary import ALIASES, PRIMITIVES, ObjectStatus

_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)  # some servers cut the opening tag off
_FOREVER_S = 1e6  # no demonstration is so long, and numbers that overflow are far beyond
_EITHER = ("reorient", "rotate")  # labels that mean another primitive when something is held


def read_answer(text: str, episode: Episode, min_frames: int, slack: int) -> tuple[list[Proposal], list[str]]:
    """The usable proposals of an answer in the order of time, and a sentence for everything that is not.

    Displacements are 0: judge measures them, where the state has a position. Starts are multiples of the episode's
    frame_stride. min_frames, slack: of spans.validate.
    """
    items = segments(text)
    if items is None:
        return [], ["it holds no complete JSON list of segments."]
    found, problems = _proposals(items, episode)
    kept, rejected = validate(found, len(episode), min_frames, slack)
    if not items:
        problems.append("the list is empty.")
    return kept, problems + rejected


def segments(text: str) -> list[dict[str, Any]] | None:
    """The last complete list of objects in the text, bare or as a value of an object; None if there is none.

    Whatever is around it is passed over: fences, talk, the thoughts before `</think>`. An empty list counts only where
    there is no other.
    """
    text = _THOUGHT.sub("", text)
    decoder, found, position = json.JSONDecoder(), None, 0
    while bracket := re.compile(r"[\[{]").search(text, position):
        position = bracket.start() + 1
        try:
            value, end = decoder.raw_decode(text, bracket.start())
        except RecursionError:  # a model that went on writing brackets
            break
        except ValueError:
            continue
        values = [value] if isinstance(value, list) else list(value.values())
        lists = [item for item in values if isinstance(item, list) and all(isinstance(entry, dict) for entry in item)]
        if full := [item for item in lists if item]:
            found, position = full[0], end
        elif lists and found is None:
            found = lists[0]
    return found


def _proposals(items: Sequence[Mapping[str, Any]], episode: Episode) -> tuple[list[Proposal], list[str]]:
    """Those segments whose fields can be read, with frames for seconds, and a sentence for each of the others."""
    found: list[Proposal] = []
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
            found.append(Proposal(*span, label, held, words, (0.0, 0.0, 0.0)))
    return found, problems


def _usual_status(label: str, held: ObjectStatus) -> ObjectStatus:
    """What the gripper does with the object at the end of a segment that does not say. held: before it."""
    primitive = PRIMITIVES.get(ALIASES.get(label, label))
    return held if primitive is None or label in _EITHER else primitive.status or held


def _seconds(value: Any) -> float | None:
    """A finite number, also as text and with its unit."""
    if isinstance(value, str):
        try:
            value = float(value.strip().removesuffix("s"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _FOREVER_S:
        return None
    return float(value)


def _frames(start: float, end: float, episode: Episode) -> tuple[int, int]:
    """Seconds as frames that have a picture; the end of the episode stays what it is."""
    stride, last = episode.frame_stride, len(episode)
    first, stop = round(start * episode.fps), round(end * episode.fps)
    return snap(first, stride), last if abs(stop - last) < stride else snap(stop, stride)
