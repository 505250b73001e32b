"""What a check says, and what a protocol asks of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from la4vla.sim.registry import Setting

Status = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the table.

    name     what was checked
    status   `fail`: results are not comparable; `warn`: something will fail or be slow; `note`: good to know; `ok`
    says     a sentence
    cure     what to do about it; empty: nothing
    suite    the only one that it concerns; empty: every one
    """

    name: str
    status: Status
    says: str
    cure: str = ""
    suite: str = ""


@dataclass(frozen=True)
class Demand:
    """What of a protocol decides whether a machine draws and steps as others do.

    title     the protocol's name
    suite     of its simulator
    setting   how its images are drawn
    """

    title: str
    suite: str
    setting: Setting


def failed(name: str, error: str, otherwise: str, suite: str = "") -> Check:
    """error: a sentence that ends in its cure, after a semicolon. otherwise: the cure of one that has none."""
    says, _, cure = error.rstrip(".").rpartition("; ")
    return Check(name, "fail", f"{says or cure}.", cure if says else otherwise, suite)
