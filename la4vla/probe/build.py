"""`la4vla probe cases`: samples the cases of a shard folder that has images (FACTS 1.2: pairs of opposite directions).

A clip is a candidate where its instruction names one direction, its actions go that way, and its label is a motion of
the hand. Opposite directions of an axis get the same number of cases. Where there are too few clips, later frames of
a clip's first half become cases too. The frames that mislead a case are taken from its own episode where it has such,
else from its task, else from any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest

import numpy as np

from la4vla.config.checks import within
from la4vla.construct.arm_words import BOTH, arm_of
from la4vla.construct.robots.robot import RobotFrame, robot_frame
from la4vla.construct.vocabulary import DIRECTIONS, named_direction
from la4vla.data.setup import fingerprint
from la4vla.data.shards.index import Index, read_index, starts
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import Clip
from la4vla.probe.hand import HandWay, hand_way
from la4vla.probe.wording import only_direction, opposite, paraphrase
from la4vla.probe_cases.cases import Case, CaseList, FrameOf
from la4vla.rng import RngUse, generator
from la4vla.types import ARMS, TRANSLATION, UserError

MOTIONS = ("move", "lift", "lower", "transport", "push", "pull", "press")
"""Primitives whose physical effect is a displacement; grasps and turns have none of their own."""

FEW = 10  # cases of a direction below which its rate has an interval too wide to tell anything

Direction = tuple[int, int]
"""Axis of (forward, left, up), sign."""


INTERVALS = {"count": "[2, inf)", "seed": "[0, inf)", "purity": "[0, 1]"}


@dataclass(frozen=True)
class CaseSampling:
    """How many cases are sampled, and from which clips.

    count       cases in all
    seed        of the choice
    purity      least cosine of the commanded displacement, from the case's frame to the clip's end, with the named
                direction (`filter.direction_purity` is that of the measured displacement)
    robot       robot file that says where forward, left and up are; empty: the embodiment's own
    one_sided   take axes of which the folder shows one direction only; their cases have no conflict
    """

    count: int = 100  # a condition (FACTS 1.2)
    seed: int = 0
    purity: float = 0.9
    robot: str = ""
    one_sided: bool = False


@dataclass(frozen=True)
class CaseCandidate:
    """A clip that moves one way.

    clip        that may become cases
    direction   that its instruction names and its actions take
    frames      sample starts that may become a case, the clip's first frame first
    arm         that its instruction names, of a robot with two: left, right or both
    """

    clip: Clip
    direction: Direction
    frames: tuple[int, ...]
    arm: str = ""


def sample_cases(folder: str, sampling: CaseSampling) -> CaseList:
    """The cases of a shard folder (local path, URL or pipe:). Raises UserError where it holds none."""
    within("--", asdict(sampling), INTERVALS)
    index = read_index(folder)
    way = hand_way(index.embodiment, sampling.robot)
    if not index.views:
        raise UserError(f"{folder}: holds no images; sample cases from shards with views, such as vla/ beside la/.")
    named = sampling.robot or index.embodiment.name
    frame = robot_frame(named)
    frames = {arm: robot_frame(named, arm) for arm in ("", *ARMS, BOTH)}
    clips = [clip for number in range(len(index.shards)) for clip in read_shard(index, number, ())]
    by_direction: dict[Direction, list[CaseCandidate]] = {}
    for clip in clips:
        if (item := candidate(clip, index, frames, way, sampling.purity)) is not None:
            by_direction.setdefault(item.direction, []).append(item)
    quotas = quota({way: sum(len(item.frames) for item in items) for way, items in by_direction.items()}, sampling)
    if not quotas:
        raise UserError(
            f"{folder}: no axis has clips in both directions ({_counted(by_direction)}); use a folder with more tasks, "
            "lower --purity, or take the directions there are with --one-sided."
        )
    cases = [
        _case(item, at, clips, by_direction, index, frames[item.arm], sampling.seed)
        for way in sorted(quotas, key=lambda way: (way[0], -way[1]))
        for item, at in _chosen(by_direction[way], quotas[way], sampling.seed)
    ]
    settings = {
        "count": sampling.count,
        "seed": sampling.seed,
        "purity": sampling.purity,
        "one_sided": sampling.one_sided,
        "robot": sampling.robot,
    }
    axes = {ends[0]: toward((axis, 1), frame) for axis, ends in enumerate(DIRECTIONS)}
    return CaseList(folder, fingerprint(index), index.embodiment.name, axes, settings, tuple(cases))


def summary(listed: CaseList) -> str:
    """What was sampled, in a few lines."""
    directions = Counter(case.direction for case in listed.cases)
    lines = [f"{len(listed.cases)} cases: {', '.join(f'{count} {word}' for word, count in directions.items())}"]
    if len(listed.cases) < listed.settings["count"]:
        lines.append(f"the folder does not hold the {listed.settings['count']} cases that --count wants")
    if min(directions.values()) < FEW:
        lines.append(f"warning: fewer than {FEW} of a direction tell little; take a folder with more such clips")
    for name, nearness in listed.nearness().items():
        lines.append(f"{name} images: {', '.join(f'{count} of {word}' for word, count in nearness.items())}")
    return "\n".join(lines)


def candidate(
    clip: Clip, index: Index, frames: Mapping[str, RobotFrame], way: HandWay, least: float
) -> CaseCandidate | None:
    """The clip's direction if its words and its motion agree on one, and the frames from which they still do.

    frames: arm -> where its forward, left and up are. way: of the commands. Of two arms the words must name one.
    """
    direction = only_direction(clip.instruction)
    arm = arm_of(clip.instruction) if way.arms else ""
    if direction is None or clip.primitive not in MOTIONS or (way.arms and not arm):
        return None
    first_half = range(0, max(1, len(clip) // 2), index.frame_stride)
    fitting = tuple(at for at in first_half if purity(clip, at, frames[arm], way, arm, direction) >= least)
    return CaseCandidate(clip, direction, fitting, arm) if 0 in fitting else None


def purity(clip: Clip, at: int, frame: RobotFrame, way: HandWay, arm: str, direction: Direction) -> float:
    """Cosine of the commanded displacement, from frame `at` to the clip's end, with a direction: -1 .. 1."""
    axis, sign = direction
    moved_3 = frame.from_base(way.travel(clip.action[at:], clip.state[at], arm)[-1])
    length = float(np.linalg.norm(moved_3))
    return sign * float(moved_3[axis]) / length if length > 0 else 0.0


def quota(available: dict[Direction, int], sampling: CaseSampling) -> dict[Direction, int]:
    """How many cases each direction gets: opposite ones alike, axes as evenly as what is available allows."""
    groups = [tuple((axis, sign) for sign in (1, -1)) for axis in range(len(DIRECTIONS))]
    if sampling.one_sided:
        groups = [tuple(way for way in group if available.get(way)) for group in groups]
    room = [min(available.get(way, 0) for way in group) if group else 0 for group in groups]
    given = [0] * len(groups)
    left = sampling.count
    while open_groups := [n for n, group in enumerate(groups) if given[n] < room[n] and len(group) <= left]:
        least = min(open_groups, key=lambda n: (given[n] * len(groups[n]), n))
        given[least] += 1
        left -= len(groups[least])
    return {way: given[n] for n, group in enumerate(groups) for way in group if given[n]}


def _chosen(candidates: Sequence[CaseCandidate], count: int, seed: int) -> list[tuple[CaseCandidate, int]]:
    """(candidate, frame): the clips in random order at their first frame, then the same clips at later frames."""
    axis, sign = candidates[0].direction
    order = generator(seed, RngUse.CASES, f"clips {axis} {sign}").permutation(len(candidates))
    rounds = zip_longest(*(candidates[number].frames for number in order))
    pairs = [
        (candidates[number], at)
        for frames in rounds
        for number, at in zip(order, frames, strict=True)
        if at is not None
    ]
    return pairs[:count]


def _case(
    item: CaseCandidate,
    at: int,
    clips: Sequence[Clip],
    by_direction: dict[Direction, list[CaseCandidate]],
    index: Index,
    frame: RobotFrame,
    seed: int,
) -> Case:
    clip, (axis, sign) = item.clip, item.direction
    phrasing, *unaligned, conflict = generator(seed, RngUse.CASES, clip.key, at).random(4)
    against = [other.clip for other in by_direction.get((axis, -sign), []) if other.arm == item.arm]
    return Case(
        clip=clip.key,
        frame=at,
        task=clip.task,
        direction=DIRECTIONS[axis][0 if sign > 0 else 1],
        axis="/".join(DIRECTIONS[axis]),
        toward=toward(item.direction, frame),
        instruction=clip.instruction,
        opposite=opposite(clip.instruction),
        paraphrase=paraphrase(clip.instruction, phrasing),
        unaligned=_unaligned(item, clips, index, unaligned),
        conflict=_near(clip, against, conflict, lambda _: 0),
        arm=item.arm,
    )


def _unaligned(item: CaseCandidate, clips: Sequence[Clip], index: Index, draws: Sequence[float]) -> FrameOf | None:
    """A frame of the task outside the clip, of a clip whose words name neither end of the case's axis."""
    clip, axis = item.clip, item.direction[0]
    others = [
        other
        for other in clips
        if other.task == clip.task
        and named_direction(other.instruction)[axis] == 0
        and not (other.episode == clip.episode and other.span[0] < clip.span[1] and clip.span[0] < other.span[1])
    ]
    stride = index.frame_stride
    return _near(clip, others, draws[0], lambda other: stride * int(draws[1] * starts(len(other), stride)))


def _near(clip: Clip, others: Sequence[Clip], draw: float, frame_of: Callable[[Clip], int]) -> FrameOf | None:
    """A frame of one of the other clips, chosen by `draw` in [0, 1) among the nearest: those of the clip's episode,
    else of its task, else any. frame_of: the frame to take of the chosen clip."""
    same_episode = [other for other in others if other.episode == clip.episode]
    same_task = [other for other in others if other.task == clip.task]
    for nearness, group in (("episode", same_episode), ("task", same_task), ("any", others)):
        if group:
            other = group[int(draw * len(group))]
            return FrameOf(other.key, frame_of(other), nearness)
    return None


def toward(direction: Direction, frame: RobotFrame) -> list[float]:
    """The base-frame unit vector of a direction. (The frame's map is a signed permutation: its inverse is its
    transpose.)"""
    axis, sign = direction
    return [float(value) + 0.0 for value in sign * frame.from_base(np.eye(len(TRANSLATION)))[:, axis]]


def _counted(by_direction: dict[Direction, list[CaseCandidate]]) -> str:
    counts = [f"{len(items)} {DIRECTIONS[axis][sign < 0]}" for (axis, sign), items in sorted(by_direction.items())]
    return ", ".join(counts) or "none that moves along an axis its instruction names"
