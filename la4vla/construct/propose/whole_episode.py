"""The proposer of datasets that are cut already, as LA-33K is: every episode is one clip, its task's sentence the
instruction.

The label is read off the sentence's first verb, for statistics and filters only; training sees the sentence as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import digest
from la4vla.construct.propose.candidates import Proposal, ProposerResult
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.vocabulary import PRIMITIVES, VERB_LABELS, ObjectStatus, canonical, words_of

VERSION = 1
"""Counts changes of what the same sentence is labelled as."""

_HELD = {"held", "hold", "holding", "grasped", "gripped"}


class WholeEpisode:
    """A Proposer. A sentence without a verb of an atomic action is kept all the same, without a label."""

    name = "episode"
    version = digest("episode", VERSION)

    def propose(self, episode: Episode, keyframes: Sequence[Keyframe]) -> ProposerResult:
        primitive, status = label(episode.instruction)
        return ProposerResult((Proposal(0, len(episode), primitive, status, episode.instruction, (0.0, 0.0, 0.0)),))


def label(sentence: str) -> tuple[str, ObjectStatus]:
    """(primitive, status at the end) that a sentence of one atomic action means; an empty primitive if it names none.

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
