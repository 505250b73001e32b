"""The words of atomic actions: primitives, object status, direction words per robot, phrasings, and the lint.

Primitives and their definitions follow the paper's Table 8 (FACTS 1.3.2). Instructions name an action type, a
direction, and optionally the object's status; identity, appearance, material and surroundings never. Directions are
meant as the robot sees them: forward is away from its base, left is its own left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from la4vla.directions import ARM_WORDS, DIRECTION_SPELLINGS, DIRECTIONS, words_of
from la4vla.types import UserError

ObjectStatus = Literal["HOLDING", "EMPTY", ""]
"""Of the object in the gripper; empty if nothing tells."""


@dataclass(frozen=True)
class Primitive:
    """An atomic action.

    name          one word
    definition    the paper's
    status        of the object at the end; empty if it may be either
    """

    name: str
    definition: str
    status: ObjectStatus


PRIMITIVES = {
    item.name: item
    for item in (
        Primitive("grasp", "Align with a target object and close the gripper to establish a grasp.", "HOLDING"),
        Primitive("place", "Move a held object to a target pose or support and open the gripper.", "EMPTY"),
        Primitive("lift", "Move a held object primarily upward.", "HOLDING"),
        Primitive("lower", "Move a held object primarily downward.", "HOLDING"),
        Primitive("transport", "Move a held object in the horizontal plane.", "HOLDING"),
        Primitive("wrist_rotate", "Rotate a held object around the tool axis.", "HOLDING"),
        Primitive("reorient", "Adjust a held object's orientation toward a target state.", "HOLDING"),
        Primitive("push", "Apply contact to move an object away from the end effector.", ""),
        Primitive("pull", "Apply contact to move an object toward the end effector.", ""),
        Primitive("press", "Apply downward contact force to activate or depress a target.", ""),
        Primitive("move", "Move the empty gripper in free space.", "EMPTY"),
        Primitive("rotate_free", "Rotate the empty gripper in free space around its axis.", "EMPTY"),
        Primitive("reorient_free", "Adjust the empty gripper's orientation toward a target state.", "EMPTY"),
        Primitive("wait", "Neither move nor turn.", ""),
    )
}
"""Status is that at the end of the segment. Table 8 has no `wait`, the paper's prompt has (FACTS 1.3.2)."""

BOTH_ARMS = Primitive("both_arms", "Both arms act at once, each in its own way.", "")
"""Of robots with two arms alone; the paper has no such label."""

ALIASES = {"rotate": "rotate_free", "release": "place", "place/release": "place"}


def canonical(name: str, status: ObjectStatus) -> str:
    """The primitive that a label means. `reorient` of an empty gripper is `reorient_free`.

    Raises UserError for an unknown label.
    """
    name = ALIASES.get(name.strip().lower(), name.strip().lower())
    if name == BOTH_ARMS.name:
        return name
    if name == "reorient" and status == "EMPTY":
        name = "reorient_free"
    if name == "rotate_free" and status == "HOLDING":
        name = "wrist_rotate"
    if name not in PRIMITIVES:
        raise UserError(f"`{name}` is not an atomic action; use one of {', '.join([*PRIMITIVES, *ALIASES])}.")
    return name


PHRASINGS: dict[str, tuple[str, ...]] = {
    "move": ("move the {grip}gripper {way}", "move {way} with the {grip}gripper", "bring the {grip}gripper {way}"),
    "move_acting": (
        "move {way} while {acting} the gripper",
        "move the gripper {way} while {acting} it",
        "bring the gripper {way} while {acting} it",
    ),
    "grasp": (
        "close the gripper to grasp the object",
        "grasp the object by closing the gripper",
        "grasp and hold the object",
    ),
    "grasp_moving": (
        "move {way} and close the gripper to grasp the object",
        "align with and grasp the object while moving {way}",
        "grasp the object while moving {way}",
    ),
    "place": (
        "open the gripper to release the object",
        "release the held object by opening the gripper",
        "let go of the held object",
    ),
    "place_moving": (
        "move {way} and open the gripper to release the object",
        "release the held object while moving {way}",
    ),
    "lift": ("lift the object {way} while holding it", "lift the held object {way}", "raise the held object {way}"),
    "lower": ("lower the object {way} while holding it", "lower the held object {way}"),
    "transport": (
        "transport the object {way} while holding it",
        "transport the held object {way}",
        "carry the held object {way}",
    ),
    "push": ("push the object {way}", "push {way} with the {grip}gripper", "move {way} pushing the object"),
    "pull": ("pull the object {way}", "pull {way} with the {grip}gripper", "move {way} pulling the object"),
    "press": ("press the object {way}", "press {way} with the {grip}gripper"),
    "wrist_rotate": ("rotate the held object {turn}", "turn the wrist {turn} while holding the object"),
    "reorient": ("reorient the held object", "change the orientation of the held object"),
    "rotate_free": ("rotate the {grip}gripper {turn}", "turn the {grip}gripper {turn}"),
    "reorient_free": ("reorient the {grip}gripper", "change the orientation of the {grip}gripper"),
}
"""way: direction words. grip: `open `, `closed ` or nothing. turn: (counter-)clockwise as seen from above.
acting: `closing` or `opening`."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


VERBS = _set(
    "move bring grasp close open align release let place lift raise lower transport carry rotate turn reorient tilt "
    "change push pull press keep hold wait approach reach adjust slide continue maintain retract ascend descend "
    "pick apply depress establish point"
)

VERB_LABELS = {
    **dict.fromkeys(("grasp", "close", "pick"), "grasp"),
    **dict.fromkeys(("place", "release", "open", "let"), "place"),
    **dict.fromkeys(("lift", "raise"), "lift"),
    **{"lower": "lower", "transport": "transport", "carry": "transport"},
    **{"push": "push", "pull": "pull", "press": "press", "depress": "press"},
    **dict.fromkeys(("rotate", "turn"), "rotate"),
    **dict.fromkeys(("reorient", "tilt"), "reorient"),
    **dict.fromkeys(
        ("move", "bring", "approach", "reach", "align", "adjust", "slide", "retract", "ascend", "descend"), "move"
    ),
    "wait": "wait",
}
"""Verb -> the label that it means, before `canonical`."""

NEUTRAL = _set(
    "the a an it and or to of by with while in from at as its then slightly gripper object wrist held holding empty "
    "closed closing opening opened moving lifting lowering releasing grasping turning rotating pushing pulling "
    "pressing keeping go orientation upright flat vertical horizontal vertically horizontally clockwise "
    "counter-clockwise counterclockwise straight diagonally again back away toward towards end effector end-effector "
    "arm tool axis target approaching keeping maintaining slowly gently fully further before after until without "
    "position pose around about on robot grasped gripped lifted contact force free space plane state pointing "
    "primarily firmly cm degrees"
)

APPEARANCE = _set(
    "red green blue yellow orange purple pink black white gray grey brown cyan golden silver dark light bright "
    "transparent shiny striped coloured colored wooden wood metal metallic plastic glass ceramic paper cardboard "
    "rubber cloth fabric steel stone leather"
)

SCENE = _set(
    "table desk counter floor wall shelf drawer cabinet cupboard door window sink stove oven basket box tray bin rack "
    "plate bowl cup mug pan pot bottle can lid button handle knob switch peg hole book block cube ball towel"
)
"""Words that get a message of their own. Any other unknown word is refused as well."""


def lint(instruction: str) -> list[str]:
    """The problems of an instruction for vision-agnostic training; none if it can be used.

    Only the verbs, direction words and neutral words above are allowed, so an object's name is refused even if it is in
    no list. Colours, materials, objects and places are told apart for the message only.
    """
    words = words_of(instruction)
    known = VERBS | NEUTRAL | ARM_WORDS | DIRECTION_SPELLINGS.keys()
    problems = []
    for word in words:
        if word in APPEARANCE:
            problems.append(f"`{word}` describes appearance")
        elif word in SCENE:
            problems.append(f"`{word}` names an object or a place")
        elif word not in known:
            problems.append(f"`{word}` is outside the vision-agnostic vocabulary")
    if not VERBS & set(words):
        problems.append("no verb")
    return problems


def contradictions(instruction: str, displacement_3: np.ndarray) -> list[str]:
    """A sentence for each direction word of the instruction that the motion contradicts.

    displacement_3: measured (forward, left, up), metres. `lift`, `raise` and `lower` count as directions.
    """
    found = []
    for word in words_of(instruction):
        if word in DIRECTION_SPELLINGS:
            axis, sign = DIRECTION_SPELLINGS[word]
            if sign * displacement_3[axis] <= 0:
                found.append(
                    f"`{word}`, but the measured motion along it is {sign * displacement_3[axis] * 100:.1f} cm"
                )
    return found


def named_direction(instruction: str) -> np.ndarray:
    """(forward, left, up) of the direction words, float64 [3]; each axis is -1, 0 or 1, zeros if there are none."""
    named_3 = np.zeros(3)
    for word in words_of(instruction):
        if word in DIRECTION_SPELLINGS:
            axis, sign = DIRECTION_SPELLINGS[word]
            named_3[axis] = sign
    return named_3


def way(displacement_3: np.ndarray, second_axis: float, slight: float) -> str:
    """Direction words of a displacement (forward, left, up), the dominant axis first.

    second_axis: a second axis is named if it has at least this fraction of the dominant one. slight: motions shorter
    than this, in metres, are called slight.
    """
    order = np.argsort(-np.abs(displacement_3), kind="stable")
    named = [order[0]]
    if abs(displacement_3[order[1]]) >= second_axis * abs(displacement_3[order[0]]):
        named.append(order[1])
    words = [DIRECTIONS[axis][0 if displacement_3[axis] > 0 else 1] for axis in named]
    prefix = "slightly " if np.linalg.norm(displacement_3) < slight else ""
    return prefix + " and ".join(words)


def phrase(template: str, draw: float, **fields: str) -> str:
    """One phrasing of a template. draw: in [0, 1), chooses it. fields: the words to fill in."""
    options: Sequence[str] = PHRASINGS[template]
    return options[int(draw * len(options))].format(**fields)
