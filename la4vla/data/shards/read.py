"""Reading a shard: through WebDataset's opener, checked against the index, as a list of clips or of conversations.

Images are handed out as JPEG bytes, undecoded. Without images (`views=()`) the jpg members are skipped: a local tar is
then read by seeking from header to header. Refuses a shard that is not what the index says, with the cure.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

from webdataset.gopen import gopen

from la4vla.data.npz import read_npz
from la4vla.data.shards.index import Index, Shard, locate
from la4vla.data.shards.texts import TextRecord
from la4vla.data.shards.writer import WHOLE, Clip
from la4vla.types import UserError

Member = tuple[str, bytes | memoryview]
Record = tuple[str, dict[str, bytes | memoryview]]
"""A key, and the contents of its members by what follows the key's dot."""


class ClipPlace(NamedTuple):
    """Where a clip lies, and what it says.

    shard   number in the index
    at      bytes before it in the tar
    frames  at which a sample starts
    """

    shard: int
    at: int
    key: str
    instruction: str
    frames: Sequence[int]


def clip_places(index: Index) -> tuple[ClipPlace, ...]:
    """The clips of a folder in order, from the headers of its tars; images are not read.

    Raises UserError for a folder that is not local, and for a damaged shard.
    """
    places: list[ClipPlace] = []
    for number, shard in enumerate(index.shards):
        if not os.path.isfile(locate(index.location, shard.name)):
            raise UserError(
                f"{index.location}: pairs are drawn from all over the folder, which {shard.name} of a local one "
                "allows alone; copy the folder to this machine."
            )
        with _complaints(index, shard):
            found, at, of = [], 0, ""
            with open(locate(index.location, shard.name), "rb") as file, _tar(file, seekable=True) as tar:
                for member in tar:
                    key = member.name.split(".", 1)[0]
                    at, of = (at, of) if key == of else (member.offset, key)
                    if member.name.endswith(".json"):
                        about = json.loads(_content(tar, member))
                        frames = range(0, int(about["length"]), index.frame_stride)
                        found.append(ClipPlace(number, at, key, about["instruction"], frames))
            _check_keys(shard, [place.key for place in found])
            if shard.kept is not None:
                found = [place._replace(frames=kept) for place, kept in zip(found, shard.kept, strict=True)]
        places += found
    return tuple(places)


def read_clip(index: Index, place: ClipPlace, views: Sequence[str], frame: int) -> Clip:
    """One clip of a local folder, with the JPEG bytes of `views` at one frame. Its shard's sums are not compared.

    Raises UserError naming the shard.
    """
    shard = index.shards[place.shard]
    wanted = {"json", "npz", *(f"{view}.{frame:05d}.jpg" for view in views)}
    with _complaints(index, shard), open(locate(index.location, shard.name), "rb") as file:
        file.seek(place.at)
        files: dict[str, bytes | memoryview] = {}
        with _tar(file, seekable=True) as tar:
            for member in takewhile(lambda member: member.name.startswith(f"{place.key}."), tar):
                suffix = member.name.split(".", 1)[1]
                if suffix in wanted:
                    files[suffix] = _content(tar, member)
                if files.keys() == wanted:
                    break
        return _clip(place.key, files, views)


def read_shard(index: Index, number: int, views: Sequence[str]) -> list[Clip]:
    """The clips of shard `number`, in order, with the JPEG bytes of `views`.

    A shard is compared with the index's size and sha256, except that an image shard read without views, most of which
    is skipped, is compared by size alone. Raises UserError naming the shard.
    """
    shard = index.shards[number]
    with _complaints(index, shard):
        skips = bool(index.views) and not views
        members = _sparse(index, shard) if skips else _whole(index, shard)
        clips = [_clip(key, files, views) for key, files in _records(members)]
        _check_keys(shard, [clip.key for clip in clips])
        if [len(clip) for clip in clips] != list(shard.lengths):
            raise ValueError("its clips have other lengths than the index says")
    return clips


def tells_instructions(index: Index) -> bool:
    """Whether a folder's clips are told what they are about, as its first one is, and not the task of a whole
    demonstration. Raises UserError naming the shard."""
    shard = index.shards[0]
    local = os.path.isfile(locate(index.location, shard.name))
    with _complaints(index, shard):
        found: list[str] = []
        for _, files in _records(_sparse(index, shard)):
            found.append(json.loads(bytes(files["json"]))["primitive"])
            if local:  # a command that is cut short would complain
                break
        return found[0] != WHOLE


def read_texts(index: Index, number: int) -> list[TextRecord]:
    """The conversations of shard `number`, in order, with their JPEG bytes. Raises UserError naming the shard."""
    shard = index.shards[number]
    with _complaints(index, shard):
        rows = [_text(key, files) for key, files in _records(_whole(index, shard))]
        _check_keys(shard, [row.key for row in rows])
    return rows


def _check_keys(shard: Shard, keys: list[str]) -> None:
    if keys != list(shard.keys):
        raise ValueError("its keys are not those of the index")


@contextmanager
def _complaints(index: Index, shard: Shard) -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError, zipfile.BadZipFile, KeyError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{index.location}: shard {shard.name}: {what}; find what is damaged with "
            f"`la4vla data verify {index.location}` and copy the shard again."
        ) from error


def _whole(index: Index, shard: Shard) -> Iterator[Member]:
    with gopen(locate(index.location, shard.name), "rb") as stream:
        data = stream.read()
    if len(data) != shard.size:
        raise ValueError(f"has {len(data)} bytes, the index says {shard.size}")
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise ValueError("its sha256 is not that of the index")
    window = memoryview(data)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            yield member.name, window[member.offset_data : member.offset_data + member.size]


def _sparse(index: Index, shard: Shard) -> Iterator[Member]:
    """The members that are no images."""
    place = locate(index.location, shard.name)
    local = os.path.isfile(place)
    if local and os.path.getsize(place) != shard.size:
        raise ValueError(f"has {os.path.getsize(place)} bytes, the index says {shard.size}")
    with gopen(place, "rb") as stream, _tar(stream, local) as tar:
        for member in tar:
            if not member.name.endswith(".jpg"):
                yield member.name, _content(tar, member)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is not a regular file"
    return file.read()


def _tar(stream: Any, seekable: bool) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r:" if seekable else "r|")


def _records(members: Iterator[Member]) -> Iterator[Record]:
    key, files = "", {}
    for name, data in members:
        of, suffix = name.split(".", 1)
        if of != key and files:
            yield key, files
            files = {}
        key = of
        files[suffix] = data
    if files:
        yield key, files


def _text(key: str, files: dict[str, bytes | memoryview]) -> TextRecord:
    jpegs = {}
    for suffix, data in files.items():
        if suffix.endswith(".jpg"):
            view, number, _ = suffix.split(".")
            jpegs[view, int(number)] = data
    return TextRecord.from_dict(key, json.loads(bytes(files["json"])), jpegs)


def _clip(key: str, files: dict[str, bytes | memoryview], views: Sequence[str]) -> Clip:
    about = json.loads(bytes(files["json"]))
    arrays = read_npz(io.BytesIO(files["npz"]))
    frames: dict[str, dict[int, bytes | memoryview]] = {view: {} for view in views}
    for suffix, data in files.items():
        view, _, rest = suffix.partition(".")
        if view in frames:
            frames[view][int(rest.removesuffix(".jpg"))] = data
    return Clip(
        key=key,
        instruction=about["instruction"],
        primitive=about["primitive"],
        object_status=about["object_status"],
        task=about["task"],
        episode=about["episode"],
        span=(about["span"][0], about["span"][1]),
        fps=about["fps"],
        quality=about["quality"],
        state=arrays["state"],
        action=arrays["action"],
        frames=frames,
    )
