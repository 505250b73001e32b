"""A disk without room, or a folder that may not be written, turned into one sentence wherever a run writes. Other file
errors pass: they are no user's."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from la4vla.types import UserError

SPARE = 1.05  # free disk asked for, over the size of what is to be written
GB = 1e9
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


def check_room(folder: Path, needed: int) -> None:
    """Raises UserError when the disk of a folder has less room than `needed` bytes and some."""
    free = shutil.disk_usage(folder).free
    if free < SPARE * needed:
        raise UserError(
            f"{folder}: a checkpoint needs {SPARE * needed / GB:.3f} GB and {free / GB:.3f} GB are free; free some "
            "space or lower checkpoint.keep_last, then start again: the run resumes from its last checkpoint."
        )


@contextmanager
def guarded(path: Path, what: str) -> Iterator[None]:
    """Around writing `what` to `path`: a disk (or a quota) that becomes full is a UserError, and so is a place that is
    not to be written to."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in FORBIDDEN:
            raise UserError(
                f"{path}: {what} cannot be written there ({error.strerror}); choose another run.dir."
            ) from error
        if not _is_full(error):
            raise
        raise UserError(
            f"{path}: the disk became full while {what} was written; free some space and start again: the run resumes "
            "from its last checkpoint."
        ) from error


def _is_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
