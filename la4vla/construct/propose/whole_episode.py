"""The proposer of datasets that are cut into clips already, such as LA-33K.

Every episode is one clip, and its task's sentence is the instruction. The label comes from the sentence's first verb;
it serves statistics and filters only, training sees the sentence unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.candidates import Proposal, ProposerResult
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.vocabulary import PRIMITIVES, VERB_LABELS, ObjectStatus, canonical, words_of

VERSION = 1
"""Raised when the same sentence would get another label."""

_HELD = {"held", "hold", "holding", "grasped", "gripped"}


class WholeEpisode:
    """A Proposer. An episode whose sentence names no atomic action becomes a clip without a label."""

    name = "episode"
    version = digest("episode", VERSION)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        primitive, status = label(episode.instruction)
        return ProposerResult((Proposal(0, len(episode), primitive, status, episode.instruction, (0.0, 0.0, 0.0)),))


def label(sentence: str) -> tuple[str, ObjectStatus]:
    """(primitive, status at the end) of a sentence about one atomic action; an empty primitive if it names none.

    The first verb decides. A motion with something in the gripper is a transport.
    """
    words = words_of(sentence)
    held: ObjectStatus = "HOLDING" if _HELD & set(words) else "EMPTY"
    name = next((VERB_LABELS[word] for word in words if word in VERB_LABELS), "")
    if not name:
        return "", held
    if name == "move" and held == "HOLDING":
        name = "transport"
    primitive = canonical(name, held)
    return primitive, PRIMITIVES[primitive].status or held
