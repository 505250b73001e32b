"""Notes: what people should look at in a dataset before they trust it.

A fault leaves an episode out; a note leaves nothing out. Each note has a kind, by which it is counted. A step prints
its notes once, and the report holds them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

GRIPPER_EVENTS = ("gripper_open", "gripper_close")
UNDESCRIBED = "moves, and no instruction describes it."
"""End of the judge's sentence about such a dim."""


@dataclass(frozen=True)
class Note:
    """Something to look at.

    kind    one word, the same for all notes that mean the same
    text    a sentence
    """

    kind: str
    text: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class CountedNote:
    """All notes of a kind.

    kind        of the notes
    episodes    number of episodes that have it; None if it is about the dataset as a whole
    first       the first of these episodes; empty for the dataset as a whole
    text        the sentence about that episode, or about the dataset
    """

    kind: str
    episodes: int | None
    first: str
    text: str

    def line(self, total: int) -> str:
        """The note as a step prints it. total: number of episodes of the dataset."""
        where = "" if self.episodes is None else f", {self.episodes} of {total} episodes, first {self.first}"
        return f"note ({self.kind}{where}): {self.text}"


def reading_notes(of_dataset: Sequence[Note], episodes: Iterable[Mapping[str, Any]]) -> list[CountedNote]:
    """The notes of `read`. of_dataset: Dataset.notes. episodes: rows of steps.READ."""
    counted = [CountedNote(note.kind, None, "", note.text) for note in of_dataset]
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for row in episodes:
        for kind, text in {note["kind"]: note["text"] for note in row["notes"]}.items():
            by_kind.setdefault(kind, []).append((row["key"], text))
    return counted + [CountedNote(kind, len(items), *items[0]) for kind, items in by_kind.items()]


def proposal_notes(
    proposer: str, keyframes: Iterable[Mapping[str, Any]], candidates: Iterable[Mapping[str, Any]]
) -> list[CountedNote]:
    """The notes of `propose`. keyframes, candidates: rows of steps.KEYFRAMES and steps.CANDIDATES."""
    rows = list(candidates)
    return [*_no_grasp(proposer, keyframes, rows), *_undescribed(rows)]


def _undescribed(rows: Sequence[Mapping[str, Any]]) -> list[CountedNote]:
    """Candidates that the judge refused because a dim moves that no instruction describes."""
    reasons = {
        row["key"]: [why for item in row["candidates"] for why in item["reasons"] if why.endswith(UNDESCRIBED)]
        for row in rows
    }
    moving = [key for key, found in reasons.items() if found]
    if not moving:
        return []
    names = sorted({why.split("`")[1] for found in reasons.values() for why in found})
    text = (
        f"no instruction describes the motion of {', '.join(names)}, and clips with such motion get score 0; if these "
        "dims belong to the arm whose hand is described, list their names under same_arm in the robot file"
    )
    return [CountedNote("undescribed", len(moving), moving[0], text)]


def _no_grasp(
    proposer: str, keyframes: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[CountedNote]:
    """A gripper that moves in a dataset where nothing is ever held."""
    held = any(item["status"] == "HOLDING" for row in rows for item in row["candidates"])
    moving = [row["key"] for row in keyframes if any(item[1] in GRIPPER_EVENTS for item in row["keyframes"])]
    if proposer in ("episode", "tasks") or held or not moving or not rows:
        return []
    text = (
        "the gripper opens or closes, but no candidate of the dataset holds anything; if the robot does grasp, the "
        "robot file is wrong about gripper_open and gripper_closed, or about closed_on_nothing and hold_margin."
    )
    return [CountedNote("no_grasp", len(moving), moving[0], text)]
