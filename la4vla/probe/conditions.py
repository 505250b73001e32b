"""What a case is shown and told: each condition changes one input and leaves the others as they were.

`standard` and the `visual` conditions are those of the paper's Table 1, `conflicting-state` is that of its Table 7
(FACTS 1.2, 1.6). "Removed" means that no image token exists; "masked as released" is the release's form of removal,
which leaks (FACTS 5.1 B1). The four instruction conditions show images as the policy was trained with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from la4vla.probe_cases.cases import Case, CaseClips
from la4vla.serve.policy_like import PolicyLike
from la4vla.types import Embodiment, InputSpec, Kind, Observation

ImageSource = Literal["own", "removed", "masked", "unaligned", "conflict", "as trained"]
Words = Literal["own", "opposite", "paraphrase", "empty", "punctuation"]

PUNCTUATION = "?! , ; :"
"""Punctuation alone. Not dots: a final dot is no part of an instruction (data/transforms.py)."""

KINDS: dict[ImageSource, Kind | None] = {
    "own": "vla",
    "unaligned": "vla",
    "conflict": "vla",
    "masked": "la_leaky",
    "removed": "la",
    "as trained": None,
}
"""Image source -> the kind of row that shows it. A policy that was trained on masked images sees them unmasked here for
the first time."""

SEES_NOTHING = "not applicable: the policy sees no images"


class ProbedPolicy(PolicyLike, Protocol):
    """A policy that can be put under every condition."""

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def views(self) -> tuple[str, ...]: ...

    @property
    def spec(self) -> InputSpec: ...

    def as_kind(self, kind: Kind) -> ProbedPolicy:
        """The same policy, queried with rows of another kind."""
        ...


@dataclass(frozen=True)
class Condition:
    """What of a case is changed.

    name                of the condition, on the command line and in probe.json
    about               the same in words
    image               whose image is shown, or how
    words               which instruction is told
    conflicting_state   whether the state is the conflicting clip's
    paper               policy of the paper -> the DAR, DCS, SR and SS that it reports
    """

    name: str
    about: str
    image: ImageSource = "as trained"
    words: Words = "own"
    conflicting_state: bool = False
    paper: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)

    @property
    def needs_images(self) -> bool:
        """Whether it means nothing to a policy without views."""
        return self.image not in ("removed", "as trained")

    def refusal(self, case: Case) -> str:
        """Why a case does not fit this condition; empty if it does."""
        if self.image == "unaligned" and case.unaligned is None:
            return "no other frame of the task"
        if (self.image == "conflict" or self.conflicting_state) and case.conflict is None:
            return "no clip of the opposite direction"
        return ""


VLA, LA = "VLA policy, Table 1", "LA-pretrained policy, Table 7"

CONDITIONS = (
    Condition("standard", "own image, state and instruction", "own", paper={VLA: (0.98, 0.95, 2.35, 0.55)}),
    Condition(
        "visual-removed",
        "no image: no image token exists",
        "removed",
        paper={VLA: (0.63, 0.16, 1.03, 0.04), LA: (0.99, 0.85, 1.46, 0.20)},
    ),
    Condition("visual-masked-released", "own image, masked in the release's leaky way", "masked"),
    Condition(
        "visual-unaligned",
        "an image of the same task, outside the clip and of neither direction",
        "unaligned",
        paper={VLA: (0.66, 0.37, 1.13, 0.05)},
    ),
    Condition(
        "visual-conflict",
        "an image of a motion the opposite way",
        "conflict",
        paper={VLA: (0.35, 0.03, 1.03, -0.04)},
    ),
    Condition(
        "conflicting-state",
        "no image; the state of a motion the opposite way",
        "removed",
        conflicting_state=True,
        paper={LA: (0.95, 0.80, 1.41, 0.16)},
    ),
    Condition("swapped", "told the opposite direction", words="opposite"),
    Condition("empty", "told nothing", words="empty"),
    Condition("paraphrased", "told the same in other words", words="paraphrase"),
    Condition("punctuation-only", "told punctuation", words="punctuation"),
)


def policy_under(policy: ProbedPolicy, condition: Condition) -> ProbedPolicy | None:
    """The policy with the kind of row that the condition needs; None where it has no views and the condition needs
    images."""
    if condition.needs_images and not policy.views:
        return None
    kind = KINDS[condition.image]
    return policy.as_kind(kind) if kind else policy


def observation(case: Case, condition: Condition, case_clips: CaseClips, views: Sequence[str]) -> Observation:
    """What the case shows and tells under the condition. views: of the policy as `policy_under` gives it."""
    shown = case.misleading.get(condition.image)
    clip, frame = (shown.clip, shown.frame) if shown else (case.clip, case.frame)
    images = case_clips.images(clip, frame, views)
    clip, frame = case.clip, case.frame
    if condition.conflicting_state:
        assert case.conflict is not None
        clip, frame = case.conflict.clip, case.conflict.frame
    return Observation(images, case_clips.clips[clip].state[frame], instruction(case, condition))


def instruction(case: Case, condition: Condition) -> str:
    """What the case tells under the condition."""
    texts: dict[Words, str] = {
        "own": case.instruction,
        "opposite": case.opposite,
        "paraphrase": case.paraphrase,
        "empty": "",
        "punctuation": PUNCTUATION,
    }
    return texts[condition.words]
