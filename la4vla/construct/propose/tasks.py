"""The proposer of datasets that name the parts of their demonstrations: captions, per-frame tasks, sub-tasks.

Every caption of an episode is a candidate, its sentence unchanged. Such sentences speak of objects and places, for a
policy that sees; nothing is cut or worded here.
"""

from __future__ import annotations

from collections.abc import Sequence

from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.candidates import Proposal, ProposerResult
from la4vla.construct.propose.keyframes import Keyframe

VERSION = 2
"""Raised when the same captions would become other candidates."""

SUBTASK = "subtask"
"""The primitive of a part that its dataset names: no atomic action, and no whole demonstration either."""


class Tasks:
    """A Proposer. min_frames: shorter captions are refused."""

    name = "tasks"

    def __init__(self, min_frames: int) -> None:
        self._min_frames = min_frames

    @property
    def version(self) -> str:
        return digest(self.name, VERSION, self._min_frames)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        """A candidate begins at the first frame with an image of its caption, and ends before the next one."""
        if not episode.captions:
            return ProposerResult(
                (), failed="The episode has no captions, which proposer=tasks takes; use proposer=kinematic for it."
            )
        stride = episode.frame_stride
        starts = [-(-item.start // stride) * stride for item in episode.captions]
        proposals, rejected = [], []
        for item, start, following in zip(episode.captions, starts, [*starts[1:], len(episode)], strict=True):
            end = min(item.end, following)
            if end - start >= max(self._min_frames, 1):
                proposals.append(Proposal(start, end, SUBTASK, "", item.instruction, (0.0, 0.0, 0.0)))
            else:
                what = f"`{item.instruction}` of frames {item.start} to {item.end}"
                rejected.append(f"{what}: fewer than {self._min_frames} frames.")
        return ProposerResult(tuple(proposals), tuple(rejected))
