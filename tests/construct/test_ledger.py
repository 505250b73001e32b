"""Why: a row may have cost a paid request. Two commands on one folder must not write over each other, and a kill must
cost no row but the one that was being written."""

from contextlib import ExitStack

import pytest

from la4vla.construct.ledger import Ledger
from la4vla.types import UserError


def rows(path):
    return {row["key"]: row["n"] for row in Ledger(path)}


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path):
    path = tmp_path / "rows.jsonl"
    with Ledger(path) as first:
        first.put("a", "1", {"n": 1})
        with pytest.raises(UserError, match="another process is writing to it"), Ledger(path):
            pass
        first.put("b", "1", {"n": 2})
    assert rows(path) == {"a": 1, "b": 2}


def test_a_writer_that_read_too_early_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    early = Ledger(path)
    with Ledger(path) as first:
        first.put("a", "1", {"n": 1})
    with pytest.raises(UserError, match="run the command again"), ExitStack() as stack:
        stack.enter_context(early)
    assert rows(path) == {"a": 1}


def test_a_row_cut_off_by_a_kill_is_made_anew_and_the_others_stay(tmp_path):
    path = tmp_path / "rows.jsonl"
    with Ledger(path) as first:
        first.put("a", "1", {"n": 1})
        first.put("b", "1", {"n": 2})
    path.write_bytes(path.read_bytes()[:-5])
    again = Ledger(path)
    assert again.get("b", "1") is None
    with again:
        again.put("b", "1", {"n": 3})
    with again:
        again.put("c", "1", {"n": 4})
    assert rows(path) == {"a": 1, "b": 3, "c": 4}
