"""What answers must look like. Reading is total: any string gives a value or the reason why it has none."""

from __future__ import annotations

import re
from typing import Generic, NamedTuple, TypeVar

from la4vla.questions.wordings import NO, YES

Value = TypeVar("Value")

MANY, LONG = 30, 300  # sub-tasks of a task, and characters of one
LONG_PLAN = 2000  # characters

_ITEM = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_LIST = re.compile(rf"\[\s*{_ITEM}(?:\s*,\s*{_ITEM})*\s*,?\s*\]")
_ESCAPED = re.compile(r"\\(.)")


class Read(NamedTuple, Generic[Value]):
    """A value, or the reason why the answer is badly formed; never both."""

    value: Value | None
    reason: str = ""


def read_subtasks(text: str) -> Read[list[str]]:
    """`['move left', 'grasp']`, perhaps with a word before or behind: the first list in the answer."""
    if len(text) > MANY * LONG:
        return Read(None, f"the answer has {len(text)} characters")
    found = _LIST.search(text)
    if found is None:
        return Read(None, "the answer has no list of sub-tasks")
    items = [_ESCAPED.sub(r"\1", item[1:-1]).strip() for item in re.findall(_ITEM, found[0])]
    if len(items) > MANY:
        return Read(None, f"the answer has {len(items)} sub-tasks, more than {MANY}")
    if wrong := [item for item in items if not item or len(item) > LONG]:
        return Read(None, f"a sub-task has {len(wrong[0])} characters")
    return Read(items)


def read_plan(text: str) -> Read[str]:
    plan = " ".join(text.split())
    if not plan:
        return Read(None, "the plan is empty")
    if len(plan) > LONG_PLAN:
        return Read(None, f"the plan has {len(plan)} characters, more than {LONG_PLAN}")
    return Read(plan)


def read_instruction(text: str) -> Read[str]:
    """One low-level instruction. Line breaks become blanks."""
    instruction = " ".join(text.split())
    if not instruction:
        return Read(None, "the instruction is empty")
    if len(instruction) > LONG:
        return Read(None, f"the instruction has {len(instruction)} characters, more than {LONG}")
    return Read(instruction)


def read_completion(text: str) -> Read[bool]:
    """`yes` or `no`, perhaps with a point."""
    word = text.strip().lower().removesuffix(".")
    return Read(word == YES) if word in (YES, NO) else Read(None, f"the answer is neither {YES} nor {NO}")
