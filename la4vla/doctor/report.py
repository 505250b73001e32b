"""The checks as a table, as one line and as JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from la4vla.doctor.check import Check

NAME_WIDTH = 20


def comparable(checks: Sequence[Check]) -> dict[str, bool]:
    """Suite -> whether results are comparable, of the suites that were judged (those with a check that is no note)."""
    suites = dict.fromkeys(check.suite for check in checks if check.suite and check.status != "note")
    return {suite: not _failures(checks, suite) for suite in suites}


def verdict(checks: Sequence[Check]) -> str:
    """`comparable: yes, ...` or `comparable: no, because ...`: yes where no check failed and a suite was judged."""
    suites = comparable(checks)
    if not suites:
        return "comparable: no, because no simulator is installed."
    failed = [check for check in checks if check.status == "fail"]
    good = [suite for suite, fine in suites.items() if fine]
    if not failed:
        return f"comparable: yes, because versions, images and settling of {' and '.join(good)} match the references."
    first = f"{failed[0].name}: {failed[0].says.rstrip('.')}"
    more = f" ({len(failed) - 1} more failed)" if failed[1:] else ""
    rest = f"; {' and '.join(good)} alone: yes" if good else ""
    return f"comparable: no, because {first}{more}{rest}."


def summary_table(checks: Sequence[Check]) -> str:
    """Mark, name and sentence of each check, wrapped to the terminal; a cure stands below its check."""
    indent = " " * (6 + NAME_WIDTH)
    width = max(shutil.get_terminal_size((120, 24)).columns, len(indent) + 40)
    lines = []
    for check in checks:
        head = f"{check.status:6}{check.name:{NAME_WIDTH - 1}} "
        lines += _wrapped(check.says, width, head, indent)
        if check.cure and check.status != "ok":
            lines += _wrapped(f"cure: {check.cure}", width, indent, indent)
    return "\n".join(lines)


def to_json(checks: Sequence[Check]) -> str:
    everything = {"verdict": verdict(checks), "suites": comparable(checks), "checks": [asdict(c) for c in checks]}
    return json.dumps(everything, indent=1) + "\n"


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    """Paths and commands stay whole, to be copied."""
    how = textwrap.TextWrapper(width, first, others, break_long_words=False, break_on_hyphens=False)
    return how.wrap(text)


def _failures(checks: Sequence[Check], suite: str) -> list[Check]:
    return [check for check in checks if check.status == "fail" and check.suite in ("", suite)]
