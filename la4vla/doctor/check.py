"""What a check says, and what a protocol asks of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from la4vla.sim.registry import Setting

Status = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the table.

    status: `fail` is all that makes results incomparable; `warn` is what will hurt; `note` is to be known. says: a
    sentence. cure: what to do, where there is something. suite: the only one that is concerned; empty: every one.
    """

    name: str
    status: Status
    says: str
    cure: str = ""
    suite: str = ""


@dataclass(frozen=True)
class Demand:
    """A protocol, as far as it matters whether a machine draws and steps as others do. title: its name."""

    title: str
    suite: str
    setting: Setting


def failed(name: str, error: str, otherwise: str, suite: str = "") -> Check:
    """error: a sentence that ends in its cure, after a semicolon. otherwise: the cure of one that has none."""
    says, _, cure = error.rstrip(".").rpartition("; ")
    return Check(name, "fail", f"{says or cure}.", cure if says else otherwise, suite)
