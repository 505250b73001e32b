"""Responses: every reply that was paid for, one file a request, so that no request is paid for twice.

The file's name is a digest of everything that the reply depends on. Files outlive the ledgers: their sum is what the
dataset has cost.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from la4vla.files import write_atomic
from la4vla.types import UserError


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    text          the answer
    tokens_in     input tokens that the endpoint counted; 0 if it counts none
    tokens_out    output tokens
    """

    text: str
    tokens_in: int
    tokens_out: int


def request_name(request: Mapping[str, Any]) -> str:
    """The name of a request. Equal requests have equal names. request: JSON-able, images included."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def text_of(content: Any) -> str | None:
    """The text of a message's content, which is a text or a list of parts. None for anything else.

    Parts that are no text, such as thoughts, are left out.
    """
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for part in parts if isinstance(text := part.get("text"), str))
    return content if isinstance(content, str) else None


class Responses:
    """A folder of replies. May be used from several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def get(self, name: str) -> Reply | None:
        """The reply to a request, None if there is none. Raises UserError for a damaged file."""
        row = self._read(name)
        text = text_of(row["text"]) if row else None  # old files hold lists of parts
        return Reply(text, row["tokens_in"], row["tokens_out"]) if row and text is not None else None

    def put(self, name: str, reply: Reply) -> None:
        """Keeps a reply that was just paid for. After this returns, a kill of the process does not lose it."""
        with self._lock:
            row = self._read(name) or {"calls": 0, "paid_in": 0, "paid_out": 0}
            row |= {"text": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
            row["calls"] += 1
            row["paid_in"] += reply.tokens_in
            row["paid_out"] += reply.tokens_out
            self._write(name, row)

    def forget(self, names: Iterable[str]) -> None:
        """Drops the texts of unusable replies, so that they are asked for again. What they cost stays."""
        with self._lock:
            for name in names:
                row = self._read(name)
                assert row is not None, name
                self._write(name, row | {"text": None})

    def paid(self) -> tuple[int, int, int]:
        """(replies, input tokens, output tokens) paid for in this folder since it exists."""
        rows = [row for path in self._folder.glob("*/*.json") if (row := self._read(path.stem)) is not None]
        calls, paid_in, paid_out = (sum(row[name] for row in rows) for name in ("calls", "paid_in", "paid_out"))
        return calls, paid_in, paid_out

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{path} is no reply ({error}); delete it, and it will be asked for again.") from error

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        write_atomic(self._path(name), json.dumps(row, indent=1).encode())
