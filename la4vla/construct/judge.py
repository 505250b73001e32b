"""The judge: an automatic score 0 .. 3 for every proposal, with its reasons (FACTS 1.3.5)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from la4vla.construct.candidates import Candidate, Proposal
from la4vla.construct.episodes import Episode
from la4vla.construct.vocabulary import contradictions, lint

VERSION = 1


def judge(proposal: Proposal, episode: Episode) -> Candidate:
    """The proposal with its score."""
    reasons = lint(proposal.instruction) + contradictions(proposal.instruction, np.array(proposal.displacement))
    return Candidate(**asdict(proposal), score=0.0 if reasons else 2.0, reasons=tuple(reasons))
