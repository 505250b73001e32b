"""What a case is shown and told: each condition changes one input and leaves the others as they were.

`standard` and the `visual` conditions are those of the paper's Table 1, `conflicting-state` is that of its Table 7
(FACTS 1.2, 1.6). "Removed" is true removal, no image token exists; "masked as released" is the release's form of it,
which leaks (FACTS 5.1 B1). The four instruction conditions show what the policy was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from la4vla.probe_cases.cases import Case, Footage
from la4vla.serve.policy import ServedPolicy
from la4vla.types import Kind, Observation

Picture = Literal["own", "removed", "masked", "unaligned", "conflict", "as trained"]
Words = Literal["own", "opposite", "paraphrase", "empty", "punctuation"]

PUNCTUATION = "?! , ; :"
"""Punctuation alone. Not dots: a final dot is no part of an instruction (data/transforms.py)."""

KINDS: dict[Picture, Kind | None] = {
    "own": "vla",
    "unaligned": "vla",
    "conflict": "vla",
    "masked": "la_leaky",
    "removed": "la",
    "as trained": None,
}
"""The kind of row that shows the picture so. A policy trained on masked pictures sees them here for the first time."""

SEES_NOTHING = "not applicable: the policy sees no pictures"


@dataclass(frozen=True)
class Condition:
    """paper: DAR, DCS, SR, SS that the paper reports, by what it reports them of."""

    name: str
    about: str
    picture: Picture = "as trained"
    words: Words = "own"
    conflicting_state: bool = False
    paper: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)

    @property
    def needs_pictures(self) -> bool:
        return self.picture not in ("removed", "as trained")

    def refusal(self, case: Case) -> str:
        """Why a case cannot be asked under this condition; empty if it can."""
        if self.picture == "unaligned" and case.unaligned is None:
            return "no other frame of the task"
        if (self.picture == "conflict" or self.conflicting_state) and case.conflict is None:
            return "no clip of the opposite direction"
        return ""


VLA, LA = "VLA policy, Table 1", "LA-pretrained policy, Table 7"

CONDITIONS = (
    Condition("standard", "own picture, state and instruction", "own", paper={VLA: (0.98, 0.95, 2.35, 0.55)}),
    Condition(
        "visual-removed",
        "no picture: no image token exists",
        "removed",
        paper={VLA: (0.63, 0.16, 1.03, 0.04), LA: (0.99, 0.85, 1.46, 0.20)},
    ),
    Condition("visual-masked-released", "own picture, masked in the release's leaky way", "masked"),
    Condition(
        "visual-unaligned",
        "a picture of the same task, outside the clip and of neither direction",
        "unaligned",
        paper={VLA: (0.66, 0.37, 1.13, 0.05)},
    ),
    Condition(
        "visual-conflict",
        "a picture of a motion the opposite way",
        "conflict",
        paper={VLA: (0.35, 0.03, 1.03, -0.04)},
    ),
    Condition(
        "conflicting-state",
        "no picture; the state of a motion the opposite way",
        "removed",
        conflicting_state=True,
        paper={LA: (0.95, 0.80, 1.41, 0.16)},
    ),
    Condition("swapped", "told the opposite direction", words="opposite"),
    Condition("empty", "told nothing", words="empty"),
    Condition("paraphrased", "told the same in other words", words="paraphrase"),
    Condition("punctuation-only", "told punctuation", words="punctuation"),
)


def asked(policy: ServedPolicy, condition: Condition) -> ServedPolicy | None:
    """The policy as the condition asks it, or None where it sees no pictures and the condition is about them."""
    if condition.needs_pictures and not policy.views:
        return None
    kind = KINDS[condition.picture]
    return policy.as_kind(kind) if kind else policy


def observation(case: Case, condition: Condition, footage: Footage, policy: ServedPolicy) -> Observation:
    """What the case shows and says under the condition. policy: as `asked` gives it."""
    shown = {"unaligned": case.unaligned, "conflict": case.conflict}.get(condition.picture)
    clip, frame = (shown.clip, shown.frame) if shown else (case.clip, case.frame)
    pictures = footage.pictures(clip, frame, policy.views)
    clip, frame = case.clip, case.frame
    if condition.conflicting_state:
        assert case.conflict is not None
        clip, frame = case.conflict.clip, case.conflict.frame
    return Observation(pictures, footage.clips[clip].state[frame], instruction(case, condition))


def instruction(case: Case, condition: Condition) -> str:
    texts: dict[Words, str] = {
        "own": case.instruction,
        "opposite": case.opposite,
        "paraphrase": case.paraphrase,
        "empty": "",
        "punctuation": PUNCTUATION,
    }
    return texts[condition.words]
