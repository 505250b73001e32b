"""TFRecord files: records of bytes, each with its length and two checksums, without TensorFlow.

On the disk a record is its length (uint64), the masked CRC-32C of these 8 bytes, its bytes, and their masked CRC-32C,
all little-endian. A damaged file is said in one sentence; nothing is skipped.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

from la4vla.construct.episodes import BadEpisode

LENGTH, CRC = struct.Struct("<Q"), struct.Struct("<I")
HEADER = LENGTH.size + CRC.size
MASK_DELTA = 0xA282EAD8  # of tensorflow/core/lib/hash/crc32c.h


@dataclass(frozen=True)
class RecordPlaces:
    """Where the records of a file are.

    starts   of their bytes
    lengths  in bytes
    fault    what stands where the next record should, in a sentence; empty for a sound file
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    fault: str


def masked_crc(data: bytes | memoryview) -> int:
    """The checksum that stands behind `data`."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def places(path: Path) -> RecordPlaces:
    """Finds the records by their lengths, whose checksums are compared; reads no record. Raises BadEpisode where the
    file cannot be read."""
    starts: list[int] = []
    lengths: list[int] = []
    fault = ""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = 0
            while at < size and not fault:
                header = file.read(HEADER)
                start = at + HEADER
                length = LENGTH.unpack(header[: LENGTH.size])[0] if len(header) == HEADER else 0
                if len(header) < HEADER or (_sound(header[: LENGTH.size], header) and start + length + CRC.size > size):
                    fault = f"{path} is truncated in record {len(starts)}, at byte {size}; get the file anew."
                elif not _sound(header[: LENGTH.size], header):
                    fault = (
                        f"{path}: the length of record {len(starts)} has another checksum than it says; get the file "
                        "anew."
                    )
                else:
                    starts.append(start)
                    lengths.append(length)
                    at = file.seek(start + length + CRC.size)
    except OSError as error:
        raise BadEpisode(f"{path} cannot be read ({error.strerror}); get the file anew.") from error
    return RecordPlaces(tuple(starts), tuple(lengths), fault)


def read_record(path: Path, found: RecordPlaces, number: int) -> bytes:
    """The bytes of record `number`. Raises BadEpisode where it is not there, or its checksum is another."""
    if number >= len(found.starts):
        raise BadEpisode(found.fault or f"{path} has {len(found.starts)} records and no record {number}; get it anew.")
    try:
        with path.open("rb") as file:
            file.seek(found.starts[number])
            data = file.read(found.lengths[number])
            checksum = file.read(CRC.size)
    except OSError as error:
        raise BadEpisode(f"{path} cannot be read ({error.strerror}); get the file anew.") from error
    if len(checksum) < CRC.size or CRC.unpack(checksum)[0] != masked_crc(data):
        raise BadEpisode(f"{path}: record {number} has another checksum than it says; get the file anew.")
    return data


def records(path: Path) -> Iterator[bytes]:
    """All records of a file in order. Raises BadEpisode for one that is damaged."""
    found = places(path)
    for number in range(len(found.starts)):
        yield read_record(path, found, number)
    if found.fault:
        raise BadEpisode(found.fault)


def _sound(length: bytes, header: bytes) -> bool:
    return CRC.unpack(header[LENGTH.size :])[0] == masked_crc(length)
