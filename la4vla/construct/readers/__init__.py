"""Readers: one dataset format each, all of them a `Source` of episodes."""

from __future__ import annotations

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Source


def open_source(config: ConstructConfig) -> Source:
    """The dataset that `read` names. Raises UserError if it is not there or not of that format."""
    from la4vla.construct.readers.recorded import Recorded

    return Recorded(config)
