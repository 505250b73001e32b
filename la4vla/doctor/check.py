"""What a check says, and what a protocol asks of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from la4vla.sim.golden import Setting

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


def failed(name: str, error: str, suite: str = "") -> Check:
    """error: of a UserError, a sentence that ends in its cure, after a semicolon; the few without one are about a
    path."""
    says, _, cure = error.rpartition("; ")
    return Check(name, "fail", f"{says}." if says else cure, cure.rstrip(".") if says else "check the path", suite)
