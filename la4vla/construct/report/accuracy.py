"""How well a proposer finds the phases that scripted experts really went through.

    python -m la4vla.construct.report.accuracy CONFIG.yaml [key=value ...]

brings keyframes and candidates of recorded episodes up to date, prints a table with one row a task, and writes
accuracy.json beside the ledgers. The truth comes from Episode.script and from commands alone; proposals play no part.

A phase is a run of frames with one target branch of the expert's policy and one gripper command (closing or not). A run
of fewer than `min_frames` is no phase of its own, since an expert at the edge of a condition flickers between two
branches. It joins the neighbour with the same gripper command. If both have it, it joins the one with the same branch;
if neither or both have that, the one that follows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from la4vla.config import ConstructConfig, load
from la4vla.construct import steps
from la4vla.construct.episodes import Episode
from la4vla.construct.propose.candidates import Candidate, candidates_of
from la4vla.construct.readers import open_dataset
from la4vla.shell import exit_status
from la4vla.types import TRANSLATION, UserError

TOLERANCE = 3  # frames between a boundary and its match
MIN_FRAMES = 8  # 0.1 s at 80 Hz; the gripper alone takes twice as long to close
SETTLE = 10  # frames at the start of an episode in which objects drop into place by themselves
STILL = 0.015  # m; a phase in which the hand moves less is a wait, unless the gripper moves
CONTACT = ("push", "pull", "press")

REPORT = "accuracy.json"


@dataclass(frozen=True)
class Phase:
    """Frames with one intention of the expert.

    start, end    span [start, end) in frames
    branch        number of the target
    closing       whether the gripper is told to close
    primitive     name of the action; `wait` if nothing happens, empty before it is named
    """

    start: int
    end: int
    branch: int
    closing: bool
    primitive: str = ""


@dataclass(frozen=True)
class Match:
    """Boundaries that were matched one to one. Matches of several episodes can be added.

    matched    number of pairs
    found      number of proposed boundaries
    true       number of true boundaries
    """

    matched: int
    found: int
    true: int

    def __add__(self, other: Match) -> Match:
        return Match(self.matched + other.matched, self.found + other.found, self.true + other.true)

    @property
    def f1(self) -> float:
        """2 P R / (P + R) of precision and recall; 1 if there are neither true nor proposed boundaries."""
        return 2 * self.matched / (self.found + self.true) if self.found + self.true else 1.0


def match(found: Sequence[int], true: Sequence[int], tolerance: int) -> Match:
    """Matches as many pairs as possible that lie at most `tolerance` frames apart."""
    left, right, matched = sorted(found), sorted(true), 0
    i = j = 0
    while i < len(left) and j < len(right):
        if abs(left[i] - right[j]) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return Match(matched, len(left), len(right))


def phases(episode: Episode, min_frames: int) -> list[Phase]:
    """The true phases with their names, in the order of time, without gaps. Raises UserError without a script."""
    if episode.script is None:
        raise UserError(f"{episode.key} was recorded without the expert's phases; record it again.")
    branch_T = episode.script.phase
    closing_T = _closing(episode)
    change_T = (np.diff(branch_T) != 0) | (np.diff(closing_T.astype(np.int8)) != 0)
    edges = [0, *(int(t) + 1 for t in np.flatnonzero(change_T)), len(episode)]
    found = [Phase(first, last, int(branch_T[first]), bool(closing_T[first])) for first, last in pairwise(edges)]
    return _name(_join_short(found, min_frames), episode)


def boundaries(spans: Sequence[Phase | Candidate], frames: int) -> list[int]:
    """The starts and ends that lie inside the episode, each once, ascending."""
    return sorted({edge for span in spans for edge in (span.start, span.end) if 0 < edge < frames})


def labels(spans: Sequence[Phase | Candidate], frames: int) -> np.ndarray:
    """The primitive of every frame, str [T]; empty where there is none."""
    label_T = np.full(frames, "", dtype=object)
    for span in spans:
        label_T[span.start : span.end] = span.primitive
    return label_T


def _closing(episode: Episode) -> np.ndarray:
    """Whether the gripper is told to close, bool [T]."""
    spec = episode.embodiment.action
    (gripper,) = spec.dims("gripper")
    middle = (spec.gripper_open + spec.gripper_closed) / 2
    return (episode.action[:, gripper] - middle) * (spec.gripper_closed - middle) > 0


def _join_short(found: list[Phase], min_frames: int) -> list[Phase]:
    """Joins phases below `min_frames` to a neighbour, shortest first. Neighbours with one intention then become one."""
    found = list(found)
    while len(found) > 1:
        short = min(range(len(found)), key=lambda i: found[i].end - found[i].start)
        item = found[short]
        if item.end - item.start >= min_frames:
            break
        beside = [i for i in (short + 1, short - 1) if 0 <= i < len(found)]
        target = max(beside, key=lambda i: (found[i].closing == item.closing, found[i].branch == item.branch))
        first, last = sorted((short, target))
        taker = found[target]
        found[first : last + 1] = [Phase(found[first].start, found[last].end, taker.branch, taker.closing)]
        found = _merge_equal(found)
    return found


def _merge_equal(found: Sequence[Phase]) -> list[Phase]:
    merged: list[Phase] = []
    for item in found:
        if merged and (merged[-1].branch, merged[-1].closing) == (item.branch, item.closing):
            item = Phase(merged.pop().start, item.end, item.branch, item.closing)
        merged.append(item)
    return merged


def _name(found: Sequence[Phase], episode: Episode) -> list[Phase]:
    """The phases with names, by the expert's target and by what became of the object (Table 8, FACTS 1.3.2).

    The object is held in a phase if the gripper is told to close and the object goes where the hand goes. The gripper
    must have closed in the course of the episode, or have been closed around something from the first frame on.

    - grasp: the gripper closes, and a held phase follows before it opens.
    - place: the gripper opens after a held phase.
    - lift, lower, transport: the object is held; the direction to the target decides.
    - press, pull, push: the object is not held but moves by a centimetre, downward, towards the base or otherwise.
    - move, wait: none of these; `wait` if the hand rests.
    """
    assert episode.script is not None
    position = episode.embodiment.state.dims(*TRANSLATION)
    hand_T3, object_T3 = episode.state[:, position].astype(np.float64), episode.script.object_T3.astype(np.float64)
    target_T3 = episode.script.target_T3.astype(np.float64)
    opening_T = episode.embodiment.state.opening(episode.state)
    apart_T = np.zeros(len(episode), bool)
    if opening_T is not None:
        frame = episode.robot.frame
        apart_T = opening_T > frame.closed_on_nothing + frame.hold_margin
    hand, thing, held = [], [], []
    for number, item in enumerate(found):
        last = min(item.end, len(episode) - 1)
        since = min(max(item.start, SETTLE), last)
        hand.append(hand_T3[last] - hand_T3[item.start])
        thing.append(object_T3[last] - object_T3[since])
        together = hand_T3[last] - hand_T3[since]
        moves = float(np.linalg.norm(together)) >= STILL
        follows = moves and np.linalg.norm(thing[-1] - together) < 0.5 * np.linalg.norm(together)
        grasps = any(not before.closing for before in found[:number]) or apart_T[item.start : last + 1].all()
        held.append(bool(item.closing and grasps and follows))
    named = []
    for number, item in enumerate(found):
        until = next((i for i in range(number, len(found)) if not found[i].closing), len(found))
        heading = episode.robot.frame.from_base(target_T3[item.start] - hand_T3[item.start])
        moved = episode.robot.frame.from_base(hand[number])
        if held[number]:
            name = _direction_name(heading, "lift", "lower", "transport")
        elif item.closing and any(held[number:until]) and not any(held[_closed_since(found, number) : number]):
            name = "grasp"
        elif not item.closing and number and held[number - 1]:
            name = "place"
        elif np.linalg.norm(thing[number]) > 0.01:
            name = "press" if _direction_name(moved, "", "press", "") else ("pull" if moved[0] < 0 else "push")
        else:
            name = "move" if np.linalg.norm(hand[number]) >= STILL else "wait"
        named.append(Phase(item.start, item.end, item.branch, item.closing, name))
    return named


def _closed_since(found: Sequence[Phase], number: int) -> int:
    """The first phase of the run of closing phases that ends with phase `number`."""
    while number and found[number - 1].closing:
        number -= 1
    return number


def _direction_name(vector_3: np.ndarray, up: str, down: str, level: str) -> str:
    """One of the three names, by the largest component of (forward, left, up)."""
    if int(np.abs(vector_3).argmax()) != 2:
        return level
    return up if vector_3[2] > 0 else down


@dataclass(frozen=True)
class EpisodeAccuracy:
    """How well the proposals of one episode fit its true phases.

    joined          proposed boundaries against the true ones
    every           against the true ones before short phases are joined
    uniform         as many boundaries, evenly spread, against the true ones
    keyframes       keyframes against the true boundaries
    frames          number of frames that both label, without waits
    agree           number of these with the same primitive
    agree_motion    the same, with push, pull and press counted as `move`
    """

    joined: Match
    every: Match
    uniform: Match
    keyframes: Match
    frames: int
    agree: int
    agree_motion: int


def episode_accuracy(
    episode: Episode, candidates: Sequence[Phase | Candidate], keyframes: Sequence[int], min_frames: int
) -> EpisodeAccuracy:
    """One episode's proposals against its true phases."""
    frames = len(episode)
    named = phases(episode, min_frames)
    true, every = boundaries(named, frames), boundaries(phases(episode, 1), frames)
    found = boundaries(candidates, frames)
    evenly = [round(frames * (i + 1) / (len(found) + 1)) for i in range(len(found))]
    true_T, proposed_T = labels(named, frames), labels(candidates, frames)
    both_T = (true_T != "") & (true_T != "wait") & (proposed_T != "")
    motion_T = np.where(np.isin(true_T, CONTACT), "move", true_T)
    return EpisodeAccuracy(
        joined=match(found, true, TOLERANCE),
        every=match(found, every, TOLERANCE),
        uniform=match(evenly, true, TOLERANCE),
        keyframes=match(keyframes, true, TOLERANCE),
        frames=int(both_T.sum()),
        agree=int((both_T & (true_T == proposed_T)).sum()),
        agree_motion=int((both_T & (motion_T == proposed_T)).sum()),
    )


def summary_table(results: dict[str, list[EpisodeAccuracy]]) -> dict[str, dict[str, float]]:
    """Task -> its numbers, with boundaries and frames pooled over its episodes. Row `mean` is the mean of the tasks."""

    def pooled(items: Sequence[EpisodeAccuracy], field: Callable[[EpisodeAccuracy], Match]) -> Match:
        return sum((field(item) for item in items), Match(0, 0, 0))

    rows = {}
    for task, items in results.items():
        joined, frames = pooled(items, lambda item: item.joined), max(sum(item.frames for item in items), 1)
        rows[task] = {
            "phases": joined.true / len(items) + 1,
            "precision": joined.matched / max(joined.found, 1),
            "recall": joined.matched / max(joined.true, 1),
            "f1": joined.f1,
            "f1_every": pooled(items, lambda item: item.every).f1,
            "f1_uniform": pooled(items, lambda item: item.uniform).f1,
            "f1_keyframes": pooled(items, lambda item: item.keyframes).f1,
            "labels": sum(item.agree for item in items) / frames,
            "labels_motion": sum(item.agree_motion for item in items) / frames,
        }
    rows["mean"] = {name: float(np.mean([row[name] for row in rows.values()])) for name in next(iter(rows.values()))}
    return rows


def measure(config: ConstructConfig) -> dict[str, dict[str, float]]:
    """The table of a config's recorded episodes.

    Raises UserError for another format than `recorded`, and for episodes without a script.
    """
    if config.read.format != "recorded":
        raise UserError("accuracy needs the phases of scripted experts; set read.format=recorded.")
    dataset = open_dataset(config)
    hints = steps.detect_keyframes(config, dataset, steps.read(config, dataset))
    frames_of = {row["key"]: [item[0] for item in row["keyframes"]] for row in steps.rows(hints, dataset)}
    results: dict[str, list[EpisodeAccuracy]] = {}
    for row in steps.rows(steps.propose(config, dataset, hints), dataset):
        episode, candidates = dataset.read(row["key"]), [*candidates_of(row).values()]
        accuracy = episode_accuracy(episode, candidates, frames_of[row["key"]], MIN_FRAMES)
        results.setdefault(episode.task, []).append(accuracy)
    return summary_table(results)


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """The summary table as Markdown."""
    names = list(next(iter(rows.values())))
    lines = [f"| task | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {task} | {' | '.join(f'{row[name]:.2f}' for name in names)} |" for task, row in rows.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status. Raises UserError."""
    config = load(arguments[0], arguments[1:]) if arguments else None
    if not isinstance(config, ConstructConfig):
        print("usage: python -m la4vla.construct.report.accuracy CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    rows = measure(config)
    about = {"tolerance": TOLERANCE, "min_frames": MIN_FRAMES, "propose": asdict(config.propose), "tasks": rows}
    (Path(config.out_dir) / REPORT).write_text(json.dumps(about, indent=1))
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
