"""Writing a shard folder: tars that fill evenly, then the index, then one rename. A record's form is its writer's.

Everything goes to `folder.tmp`, which is renamed when all is written; after an exception it is removed and an older
`folder` is untouched. Bytes depend on the records and their order only.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import io
import os
import resource
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from la4vla.data.shards.index import INDEX, Index, Shard, starts
from la4vla.types import UserError

MAX_KEY = 99  # what a ustar header's name field keeps whole, with the suffix behind it (webdataset#428)
MAX_NAME = 100
SPARE_FILES = 64  # beside the tars

Files = Sequence[tuple[str, bytes | memoryview]]
"""Names of tar members and their contents."""


class FolderWriter(ABC):
    """Writes records into exactly `shards` tars, balanced by samples. Use as a context manager."""

    def __init__(self, folder: str | Path, shards: int, frame_stride: int, overwrite: bool) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not overwrite:
            raise UserError(f"{self.folder}: exists already; remove it or choose another folder.")
        if shards < 1 or frame_stride < 1:
            raise UserError(f"shards={shards}, frame_stride={frame_stride}: both must be at least 1.")
        self._stride = frame_stride
        self._temporary = self.folder.with_name(self.folder.name + ".tmp")
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        self._index: Index | None = None
        self._keys: set[str] = set()
        self._members: list[list[tuple[str, int]]] = [[] for _ in range(shards)]
        self._fill = [(0, shard) for shard in range(shards)]
        names = [f"shard-{shard:06d}.tar" for shard in range(shards)]
        _allow_files(shards)
        self._tars = [tarfile.TarFile(self._temporary / name, "w", format=tarfile.USTAR_FORMAT) for name in names]

    @abstractmethod
    def _describe(self, shards: tuple[Shard, ...]) -> Index:
        """The index of what was written."""

    @abstractmethod
    def _companions(self) -> Mapping[str, str]:
        """Name -> text of the files beside the tars and the index."""

    def put(self, key: str, length: int, files: Files) -> None:
        """Writes a record of `length` frames to the emptiest tar."""
        samples, shard = heapq.heappop(self._fill)
        with _disk_errors(self._temporary):
            for name, data in files:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                self._tars[shard].addfile(member, io.BytesIO(data))
            # tarfile would keep every header of the tar in memory; the stubs do not know the list
            self._tars[shard].members = []  # pyright: ignore[reportAttributeAccessIssue]
        heapq.heappush(self._fill, (samples + starts(length, self._stride), shard))
        self._keys.add(key)
        self._members[shard].append((key, length))

    def close(self) -> Index:
        """Finishes the tars, writes the index, renames the folder into place. Returns the index."""
        if self._index is None:
            self._index = self._finish()
        return self._index

    def _finish(self) -> Index:
        with _disk_errors(self._temporary):
            for tar in self._tars:
                tar.close()
            if len(self._keys) < len(self._tars):
                raise UserError(
                    f"{self.folder}: {len(self._keys)} records do not fill {len(self._tars)} shards; "
                    f"set shards={max(1, len(self._keys))} or fewer (and data.streams of the runs that read it)."
                )
            index = self._describe(tuple(self._shard(number) for number in range(len(self._tars))))
            (self._temporary / INDEX).write_text(index.to_json())
            for name, text in self._companions().items():
                (self._temporary / name).write_text(text)
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self._temporary.rename(self.folder)
        return index

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            for tar in self._tars:
                if tar.fileobj is not None:
                    tar.fileobj.close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def check_key(self, key: str, views: Sequence[str]) -> None:
        """Raises UserError for a key that a tar or WebDataset would mangle, or that occurs twice."""
        longest = max([len(".json"), *(len(f".{view}.00000.jpg") for view in views)])
        if not key or "." in key or "/" in key or not key.isascii() or len(key) > min(MAX_KEY, MAX_NAME - longest):
            raise UserError(
                f"key `{key}`: a key is 1 to {min(MAX_KEY, MAX_NAME - longest)} ASCII characters without dots or "
                "slashes; rename the record."
            )
        if key in self._keys:
            raise UserError(f"key `{key}` occurs twice; make keys unique, for example episode and start frame.")

    def _shard(self, number: int) -> Shard:
        path = Path(str(self._tars[number].name))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        keys, lengths = zip(*self._members[number], strict=True)
        samples = sum(starts(length, self._stride) for length in lengths)
        return Shard(path.name, keys, lengths, samples, path.stat().st_size, digest)


def check_view(name: str) -> None:
    """Raises UserError for a name that no part of a tar member's name can be."""
    if not name or set(name) & set("./"):
        raise UserError(f"view `{name}`: a view's name is not empty and has no dots or slashes; rename it.")


def _allow_files(more: int) -> None:
    """Lets this process open that many files more than now: a writer keeps its tars open. Raises UserError where it
    may not."""
    _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + more + SPARE_FILES
    if needed <= limits[0]:
        return
    if most != resource.RLIM_INFINITY and needed > most:
        raise UserError(
            f"{more} shards need {needed} open files, and this machine allows {most}; lower `shards`, or raise its "
            "limit (`ulimit -Hn`)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{folder}: the disk is full; free some space or write the shards elsewhere.") from error
        raise
