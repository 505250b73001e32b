"""Ledgers: what a step of the construction made of each episode, one JSON row an episode, appended as it is made.

Each row names what it was made of: `of` is a digest of the step's version, its settings and the row it builds on. A row
with the `of` that the present settings give is used again; any other is made anew. So a step may be interrupted,
repeated, given more episodes or other settings at any time, and does only the missing work. The newest row of an
episode counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from la4vla.files import lock
from la4vla.types import UserError

LedgerRow = dict[str, Any]


def digest(*parts: Any) -> str:
    """A short name of JSON-able values. Equal values have equal names."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """The rows of one step, in one JSONL file.

    Opening reads the rows that are there. A last row that a kill has cut off is dropped; any other line that is no row
    is a UserError. Rows are put inside a `with` block; reading needs none. One process may write at a time, for a
    second one the `with` block raises UserError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, LedgerRow] = {}
        self._size = self._seen = 0
        self._file: Any = None
        if path.is_file():
            data = path.read_bytes()
            self._seen = len(data)
            for number, line in enumerate(data.splitlines(keepends=True), 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    self._rows[row["key"]] = row
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{path}: line {number} is damaged; delete that line, it is made anew.") from error
                self._size += len(line)

    def __enter__(self) -> Ledger:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        taken = f"{self.path}: another process is writing to it; wait until it has ended, then run the command again."
        try:
            lock(self._file, taken)
            if self._file.seek(0, os.SEEK_END) != self._seen:
                raise UserError(taken)
        except UserError:
            self._file.close()
            raise
        self._file.truncate(self._size)
        self._file.seek(self._size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._size = self._seen = self._file.tell()
        self._file.close()
        self._file = None

    def get(self, key: str, of: str) -> LedgerRow | None:
        """The episode's row if its digest is `of`, else None."""
        row = self._rows.get(key)
        return row if row is not None and row["of"] == of else None

    def put(self, key: str, of: str, values: Mapping[str, Any]) -> LedgerRow:
        """Appends a row. After this returns, a kill of the process does not lose it."""
        row = {"key": key, "of": of, **values}
        self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        self._rows[key] = row
        return row

    def forget_all_but(self, keys: Collection[str]) -> None:
        """Hides the rows of all other episodes. They stay in the file."""
        self._rows = {key: row for key, row in self._rows.items() if key in keys}

    def __iter__(self) -> Iterator[LedgerRow]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)
