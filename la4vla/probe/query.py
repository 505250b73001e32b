"""Puts the cases to a policy under one condition: predicted paths of the hand beside the demonstrated ones.

Noise depends on the case and the sample alone, so that conditions and checkpoints differ by nothing but their inputs
and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from la4vla.probe.conditions import SEES_NOTHING, Condition, ProbedPolicy, observation, policy_under
from la4vla.probe.hand import HandWay, hand_way
from la4vla.probe.metrics import Trials
from la4vla.probe_cases.cases import Case, CaseClips, FrameOf
from la4vla.serve.policy_like import NoiseKey, open_episodes
from la4vla.types import UserError

BATCH = 32  # chunks computed together; changes no result beyond rounding


@dataclass(frozen=True)
class QuerySettings:
    """How each case is put to the policy.

    samples       chunks of a case, each with noise of its own
    whole_chunk   add up all of the predicted chunk, not only the part within the clip
    seed          of the flow's noise
    """

    samples: int = 1
    whole_chunk: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Answers:
    """The trials of one condition, in the order of the cases, all samples of a case one after the other.

    condition   that the cases were shown under
    cases       of each trial
    paths       of each trial: predicted displacement from the start, float64 [T, 3], cut to the part that counts
    truth_N3    of each trial: demonstrated displacement within the clip
    missing     number of a case that does not fit the condition -> why
    refusal     why no case was put to the policy; empty: some were

    Displacements are x, y, z of the base frame.
    """

    condition: Condition
    cases: tuple[Case, ...]
    paths: tuple[np.ndarray, ...]
    truth_N3: np.ndarray
    missing: dict[int, str]
    refusal: str = ""

    def trials(self, labels: Sequence[str]) -> Trials:
        """What the scores are computed from. labels: names of the directions, in the order that numbers them."""
        return Trials(
            predicted_N3=np.array([path[-1] for path in self.paths]).reshape(-1, 3),
            truth_N3=self.truth_N3,
            toward_N3=np.array([case.toward for case in self.cases]).reshape(-1, 3),
            label_N=np.array([labels.index(case.direction) for case in self.cases], int),
            clip_N=np.unique([case.clip for case in self.cases], return_inverse=True)[1],
        )

    @property
    def frames(self) -> list[FrameOf]:
        """The other clips' frames whose images were shown, trial by trial; empty where each case showed its own or
        none."""
        shown = [case.misleading.get(self.condition.image) for case in self.cases]
        return [frame for frame in shown if frame is not None]

    def obeying(self) -> Answers:
        """The same answers, judged by the opposite directions. For a condition whose instructions name those."""
        turned = tuple(
            replace(case, toward=[-value for value in case.toward], direction=_other_end(case)) for case in self.cases
        )
        return replace(self, cases=turned, truth_N3=-self.truth_N3)


def query(
    policy: ProbedPolicy,
    condition: Condition,
    cases: Sequence[Case],
    case_clips: CaseClips,
    settings: QuerySettings,
    progress: Callable[[int], object],
) -> Answers:
    """The policy's answers to all cases that fit the condition. progress: called with the number of chunks computed.

    A chunk that ends before the demonstration counts as far as it goes. Raises UserError for one that is not finite.
    """
    nothing = Answers(condition, (), (), np.zeros((0, 3)), {})
    under = policy_under(policy, condition)
    if under is None:
        return replace(nothing, refusal=SEES_NOTHING)
    missing = {number: why for number, case in enumerate(cases) if (why := condition.refusal(case))}
    if len(missing) == len(cases):
        return replace(nothing, missing=missing, refusal=f"not applicable: {next(iter(missing.values()))}")
    queries = [
        (cases[number], NoiseKey(settings.seed, "probe", number, sample))
        for number in range(len(cases))
        if number not in missing
        for sample in range(settings.samples)
    ]
    way = hand_way(case_clips.index.embodiment, case_clips.robot)
    paths: list[np.ndarray] = []
    truth: list[np.ndarray] = []
    for first in range(0, len(queries), BATCH):
        part = queries[first : first + BATCH]
        shown = [observation(case, condition, case_clips, under.views) for case, _ in part]
        keys = [key for _, key in part]
        open_episodes(under, keys)
        for (case, _), seen, chunk in zip(part, shown, under.infer(shown, keys), strict=True):
            if not np.isfinite(chunk).all():
                raise UserError(
                    f"the policy answers {case.clip} with actions that are not finite; its training diverged, probe an "
                    "earlier checkpoint."
                )
            demonstrated_T3 = demonstration(case, case_clips, policy.spec.horizon, way)
            counted = len(chunk) if settings.whole_chunk else len(demonstrated_T3)
            paths.append(way.travel(chunk[:counted], seen.state, case.arm))
            truth.append(demonstrated_T3[-1])
        progress(len(part))
    return Answers(condition, tuple(case for case, _ in queries), tuple(paths), np.array(truth), missing)


def demonstration(case: Case, case_clips: CaseClips, horizon: int, way: HandWay) -> np.ndarray:
    """float64 [T, 3]: where the clip's own actions send the hand from the case's frame on; T is at most horizon."""
    clip = case_clips.clips[case.clip]
    rows = slice(case.frame, case.frame + horizon)
    return way.travel(clip.action[rows], clip.state[case.frame], case.arm)


def _other_end(case: Case) -> str:
    first, second = case.axis.split("/")
    return second if case.direction == first else first
