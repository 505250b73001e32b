"""Files that others read while they are written: all of one or nothing, and one writer at a time; and their sha256."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from la4vla.types import UserError


def write_atomic(path: Path, data: bytes) -> None:
    """All of `data` under `path`, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(file: IO[Any], taken: str) -> None:
    """Takes the file's lock until it is closed or the process ends, however it ends. Raises UserError with the sentence
    `taken` where another process has it. Where the file system has no locks, a note on stderr says so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(taken) from error
    except OSError as error:
        where = f"{file.name}: this file system has no locks ({error.strerror})"
        print(f"warning: {where}; see to it that nothing else writes there", file=sys.stderr)


@contextmanager
def locked(path: Path, taken: str) -> Iterator[IO[Any]]:
    """The lock of a file that exists for it alone, made with its folder where they are not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        lock(file, taken)
        yield file
