"""The shard format: clips, and their only writer (index.py has the index, read.py the reader).

A folder holds `shard-000000.tar ...`, `index.json` and `stats.json`. A clip is a run of adjacent tar members:
`{key}.json` (what it is), `{key}.npz` (`state` float32 [T, S], `action` float32 [T, A]), and for vision
`{key}.{view}.{t:05d}.jpg`, upright RGB, at every sample start. Starts are the frames 0, stride, 2 * stride ... < T.
The writer refuses keys a tar or WebDataset would mangle (dots, > 99 characters, twice), values that are not finite,
shapes that are not the embodiment's, and starts without an image. Bytes depend on the clips and their order only.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import io
import json
import os
import resource
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import simplejpeg

from la4vla.data.normalize import STATS, FolderStats, compute_stats
from la4vla.data.shards.index import INDEX, Index, Shard, View, read_index, read_stats, starts
from la4vla.data.transforms import action_variants
from la4vla.types import Embodiment, UserError

__all__ = ["Clip", "Index", "ShardWriter", "View", "read_index", "read_stats"]

MAX_KEY = 99  # what a ustar header's name field keeps whole, with the suffix behind it (webdataset#428)
MAX_NAME = 100
SPARE_FILES = 64  # beside the tars


@dataclass(frozen=True)
class Clip:
    """A labelled span of an episode.

    key      unique in its folder, no dots
    span     [start, end) frames of `episode`
    fps      control steps a second
    quality  mean annotator score 0..3 (FACTS 1.3.5), or a labeller's own constant
    state    float32 [T, S], raw units of the embodiment
    action   float32 [T, A], raw units; action t is what was commanded at state t
    frames   view -> {t: JPEG bytes}; empty for clips without images
    """

    key: str
    instruction: str
    primitive: str
    object_status: str
    task: str
    episode: str
    span: tuple[int, int]
    fps: float
    quality: float
    state: np.ndarray
    action: np.ndarray
    frames: Mapping[str, Mapping[int, bytes | memoryview]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.state)


class ShardWriter:
    """Writes clips into exactly `shards` tars, balanced by samples; clips are not kept in memory, their numbers are.

    Use as a context manager. Everything goes to `folder.tmp`, which is renamed when all is written; after an exception
    it is removed and an older `folder` is untouched.
    """

    def __init__(
        self,
        folder: str | Path,
        embodiment: Embodiment,
        views: Mapping[str, View],
        frame_stride: int,
        shards: int,
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not overwrite:
            raise UserError(f"{self.folder}: exists already; remove it or choose another folder.")
        if shards < 1 or frame_stride < 1:
            raise UserError(f"shards={shards}, frame_stride={frame_stride}: both must be at least 1.")
        for name in views:
            if not name or set(name) & set("./"):
                raise UserError(f"view `{name}`: a view's name is not empty and has no dots or slashes; rename it.")
        self._embodiment, self._views, self._stride = embodiment, dict(views), frame_stride
        self._temporary = self.folder.with_name(self.folder.name + ".tmp")
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        self._index: Index | None = None
        self._keys: set[str] = set()
        self._members: list[list[tuple[str, int]]] = [[] for _ in range(shards)]
        self._fill = [(0, shard) for shard in range(shards)]
        self._values: list[tuple[np.ndarray, np.ndarray]] = []
        names = [f"shard-{shard:06d}.tar" for shard in range(shards)]
        _allow_files(shards)
        self._tars = [tarfile.TarFile(self._temporary / name, "w", format=tarfile.USTAR_FORMAT) for name in names]

    def add(self, clip: Clip) -> None:
        """Checks a clip and writes it to the emptiest tar. Raises UserError naming the key and what is wrong."""
        self._check(clip)
        samples, shard = heapq.heappop(self._fill)
        with _disk_errors(self._temporary):
            for name, data in self._files(clip):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                self._tars[shard].addfile(member, io.BytesIO(data))
            # tarfile would keep every header of the tar in memory; the stubs do not know the list
            self._tars[shard].members = []  # pyright: ignore[reportAttributeAccessIssue]
        heapq.heappush(self._fill, (samples + starts(len(clip), self._stride), shard))
        self._keys.add(clip.key)
        self._members[shard].append((clip.key, len(clip)))
        self._values.append((clip.state.copy(), clip.action.copy()))

    def close(self) -> Index:
        """Finishes the tars, writes index and statistics, renames the folder into place. Returns the index."""
        if self._index is None:
            self._index = self._finish()
        return self._index

    def _finish(self) -> Index:
        with _disk_errors(self._temporary):
            for tar in self._tars:
                tar.close()
            if len(self._keys) < len(self._tars):
                raise UserError(
                    f"{self.folder}: {len(self._keys)} clips do not fill {len(self._tars)} shards; "
                    f"set shards={max(1, len(self._keys))} or fewer (and data.streams of the runs that read it)."
                )
            shards = tuple(self._shard(number) for number in range(len(self._tars)))
            index = Index(str(self.folder), self._embodiment, self._views, self._stride, shards)
            (self._temporary / INDEX).write_text(index.to_json())
            (self._temporary / STATS).write_text(self._stats().to_json())
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self._temporary.rename(self.folder)
        return index

    def __enter__(self) -> ShardWriter:
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

    def _check(self, clip: Clip) -> None:
        key, sizes = clip.key, (len(self._embodiment.state.names), len(self._embodiment.action.names))
        longest = max([len(".json"), *(len(f".{view}.00000.jpg") for view in self._views)])
        if not key or "." in key or "/" in key or not key.isascii() or len(key) > min(MAX_KEY, MAX_NAME - longest):
            raise UserError(
                f"clip key `{key}`: a key is 1 to {min(MAX_KEY, MAX_NAME - longest)} ASCII characters without dots or "
                "slashes; rename the clip."
            )
        if key in self._keys:
            raise UserError(f"clip key `{key}` occurs twice; make keys unique, for example episode and start frame.")
        if clip.state.shape != (len(clip), sizes[0]) or clip.action.shape != (len(clip), sizes[1]) or not len(clip):
            raise UserError(
                f"clip {key}: state {clip.state.shape} and action {clip.action.shape} do not fit "
                f"{self._embodiment.name}, which wants (T, {sizes[0]}) and (T, {sizes[1]}) with T of at least 1."
            )
        if clip.state.dtype != np.float32 or clip.action.dtype != np.float32:
            raise UserError(f"clip {key}: state and action must be float32; convert them.")
        if not (np.isfinite(clip.state).all() and np.isfinite(clip.action).all()):
            raise UserError(f"clip {key}: a state or action is not finite; drop the clip.")
        self._check_frames(clip)

    def _check_frames(self, clip: Clip) -> None:
        if set(clip.frames) != set(self._views):
            raise UserError(
                f"clip {clip.key}: views {sorted(clip.frames)} are not the folder's {sorted(self._views)}; "
                "give all of them."
            )
        due = list(range(0, len(clip), self._stride))
        for name, images in clip.frames.items():
            if sorted(images) != due:
                raise UserError(
                    f"clip {clip.key}: view {name} has images at {len(images)} frames, not at the {len(due)} frames "
                    f"0, {self._stride} ... below {len(clip)}; render exactly those."
                )
            view = self._views[name]
            for t, image in images.items():
                try:
                    height, width, _, _ = simplejpeg.decode_jpeg_header(image)
                except ValueError as error:
                    raise UserError(
                        f"clip {clip.key}: view {name}, frame {t} is not a JPEG ({error}); encode it again."
                    ) from error
                if (height, width) != (view.height, view.width):
                    raise UserError(
                        f"clip {clip.key}: view {name}, frame {t} is {height} x {width}, the folder says "
                        f"{view.height} x {view.width}; resize it."
                    )

    def _files(self, clip: Clip) -> Sequence[tuple[str, bytes | memoryview]]:
        about = {
            "instruction": clip.instruction,
            "primitive": clip.primitive,
            "object_status": clip.object_status,
            "task": clip.task,
            "episode": clip.episode,
            "span": list(clip.span),
            "fps": clip.fps,
            "quality": clip.quality,
            "length": len(clip),
            "views": list(clip.frames),
        }
        arrays = io.BytesIO()
        np.savez(arrays, state=clip.state, action=clip.action)
        images = [
            (f"{clip.key}.{name}.{t:05d}.jpg", clip.frames[name][t])
            for name in self._views
            for t in sorted(clip.frames[name])
        ]
        return [(f"{clip.key}.json", json.dumps(about).encode()), (f"{clip.key}.npz", arrays.getvalue()), *images]

    def _shard(self, number: int) -> Shard:
        path = Path(str(self._tars[number].name))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        keys, lengths = zip(*self._members[number], strict=True)
        samples = sum(starts(length, self._stride) for length in lengths)
        return Shard(path.name, keys, lengths, samples, path.stat().st_size, digest)

    def _stats(self) -> FolderStats:
        state_FS = np.concatenate([state for state, _ in self._values])
        action_FA = np.concatenate([action for _, action in self._values])
        variants = action_variants(self._embodiment, state_FS, action_FA)
        names = self._embodiment.action.names
        actions = {name: compute_stats(names, values) for name, values in variants.items()}
        return FolderStats(compute_stats(self._embodiment.state.names, state_FS), actions)


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
