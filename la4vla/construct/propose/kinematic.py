"""The kinematic labeller: cuts an episode into atomic actions and names each, from states and commands alone.

It claims only what motion and gripper can tell. A closed gripper counts as HOLDING only if it came to rest on
something (RobotFrame.closed_on_nothing). If the state has no gripper, the commanded opening stands for it, and a closed
command alone gives no status. If the action has none either, no label has a status, and sentences say `arm`. `push`,
`pull` and `press` are claimed only if the state has a `contact` dimension (above 0.5: something is touched); otherwise
they are labelled `move`.

It cuts an episode
- where the commands jump,
- where a gripper motion begins, and where a grasp or release ends,
- where the path bends by more than `bend_angle`, turning included,
- where a held object is lost or contact changes,
- at static keyframes if the commands never jump (an arm that is sent from target to target rests when it arrives).

Then segments shorter than `min_clip_frames` join a neighbour, cuts snap to frames with an image, and each segment is
labelled by its displacement as the robot sees it. Segments that neither move, turn nor grasp are waits; they become no
clip. Bends, displacements and turns are shifted by the arm's lag behind its commands, so that words fit commands.
`cutting` has the cuts, `labels` the names; two arms are cut alone and named together (`two_arms`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from la4vla.config import ProposeConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.candidates import Proposal, ProposerResult
from la4vla.construct.propose.cutting import cut_arm
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.propose.labels import label_all
from la4vla.construct.propose.two_arms import label_both
from la4vla.construct.robots.robot import Robot
from la4vla.rng import RngUse, generator

VERSION = 10
"""Raised when the same episodes and settings would be cut or labelled differently."""


@dataclass(frozen=True)
class Kinematic:
    """The labeller as a Proposer.

    seed  decides among phrasings
    """

    config: ProposeConfig
    seed: int
    name: str = "kinematic"

    @property
    def version(self) -> str:
        return digest(self.name, VERSION, asdict(self.config), self.seed)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        draws = generator(self.seed, RngUse.WORDING, episode.key)
        cuts = {
            view.name: cut_arm(
                view.state,
                view.action,
                view.robot,
                [item for item in keyframes if item.arm == view.name],
                self.config,
                episode.frame_stride,
            )
            for view in episode.arms
        }
        if len(cuts) > 1:
            return ProposerResult(tuple(label_both(cuts, self.config, episode.frame_stride, draws)))
        (cut,) = cuts.values()
        return ProposerResult(tuple(label_all(cut, self.config, draws)))


def propose(
    state_TS: np.ndarray,
    action_TA: np.ndarray,
    robot: Robot,
    keyframes: Sequence[Keyframe],
    config: ProposeConfig,
    stride: int,
    generator: np.random.Generator,
) -> list[Proposal]:
    """Labelled segments of one arm in the order of time, without overlaps. Their starts are multiples of `stride`.

    state_TS, action_TA: units of the embodiment. keyframes: as keyframes.detect() returns them. generator: chooses
    among phrasings, nothing else. Raises UserError for an embodiment without a position in its state.
    """
    return label_all(cut_arm(state_TS, action_TA, robot, keyframes, config, stride), config, generator)
