"""Puts the cases to a policy under one condition: predicted paths of the hand beside the demonstrated ones.

Noise depends on the case and the sample alone, so that conditions and checkpoints differ by nothing but their inputs
and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from la4vla.probe.conditions import SEES_NOTHING, Condition, asked, observation
from la4vla.probe.metrics import Trials
from la4vla.probe_cases.cases import Case, Footage, FrameOf
from la4vla.probe_cases.motion import travel
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import UserError

BATCH = 32  # chunks computed together; changes no result beyond rounding


@dataclass(frozen=True)
class Asking:
    """samples: chunks a case. whole_chunk: add up all of the predicted chunk, not only the part within the clip. seed:
    of the flow's noise."""

    samples: int = 1
    whole_chunk: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Answers:
    """Trials of one condition, case by case and of a case its samples. Vectors are x, y, z of the base frame.

    paths: predicted displacement from the start, float [T, 3] each, cut to the part that counts. truth_N3: demonstrated
    displacement within the clip. missing: number of a case that could not be asked -> why. refusal: why none was asked,
    or empty.
    """

    condition: Condition
    cases: tuple[Case, ...]
    paths: tuple[np.ndarray, ...]
    truth_N3: np.ndarray
    missing: dict[int, str]
    refusal: str = ""

    def trials(self, labels: Sequence[str]) -> Trials:
        """labels: names of the directions, whose places number them."""
        return Trials(
            predicted_N3=np.array([path[-1] for path in self.paths]).reshape(-1, 3),
            truth_N3=self.truth_N3,
            toward_N3=np.array([case.toward for case in self.cases]).reshape(-1, 3),
            label_N=np.array([labels.index(case.direction) for case in self.cases], int),
            clip_N=np.unique([case.clip for case in self.cases], return_inverse=True)[1],
        )

    @property
    def frames(self) -> list[FrameOf]:
        """Whose pictures were shown, case by case; empty where each saw its own or none."""
        shown = {
            "unaligned": [case.unaligned for case in self.cases],
            "conflict": [case.conflict for case in self.cases],
        }
        return [frame for frame in shown.get(self.condition.picture, ()) if frame is not None]

    def obeying(self) -> Answers:
        """The same answers judged by the opposite directions, for a condition that told those."""
        turned = tuple(
            replace(case, toward=[-value for value in case.toward], direction=_other_end(case)) for case in self.cases
        )
        return replace(self, cases=turned, truth_N3=-self.truth_N3)


def ask(
    policy: ServedPolicy,
    condition: Condition,
    cases: Sequence[Case],
    footage: Footage,
    asking: Asking,
    progress: Callable[[int], object],
) -> Answers:
    """The policy's answers to all cases that the condition fits. progress: told how many chunks were computed."""
    nothing = Answers(condition, (), (), np.zeros((0, 3)), {})
    as_asked = asked(policy, condition)
    if as_asked is None:
        return replace(nothing, refusal=SEES_NOTHING)
    missing = {number: why for number, case in enumerate(cases) if (why := condition.refusal(case))}
    if len(missing) == len(cases):
        return replace(nothing, missing=missing, refusal=f"not applicable: {next(iter(missing.values()))}")
    queries = [
        (cases[number], NoiseKey(asking.seed, "probe", number, sample))
        for number in range(len(cases))
        if number not in missing
        for sample in range(asking.samples)
    ]
    paths: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    for first in range(0, len(queries), BATCH):
        part = queries[first : first + BATCH]
        seen = [observation(case, condition, footage, as_asked) for case, _ in part]
        for (case, _), shown, chunk in zip(part, seen, as_asked.infer(seen, [key for _, key in part]), strict=True):
            if not np.isfinite(chunk).all():
                raise UserError(
                    f"the policy answers {case.clip} with actions that are not finite; its training diverged, probe an "
                    "earlier checkpoint."
                )
            demonstrated_T3 = demonstration(case, footage, policy.spec.horizon)
            counted = len(chunk) if asking.whole_chunk else len(demonstrated_T3)
            paths.append(travel(chunk[:counted], shown.state, policy.embodiment))
            truth.append(demonstrated_T3[-1])
        progress(len(part))
    return Answers(condition, tuple(case for case, _ in queries), tuple(paths), np.array(truth), missing)


def demonstration(case: Case, footage: Footage, horizon: int) -> np.ndarray:
    """float64 [T, 3]: where the clip's own actions send the hand from the case's frame on; T is at most horizon."""
    clip = footage.clips[case.clip]
    rows = slice(case.frame, case.frame + horizon)
    return travel(clip.action[rows], clip.state[case.frame], footage.index.embodiment)


def _other_end(case: Case) -> str:
    first, second = case.axis.split("/")
    return second if case.direction == first else first
