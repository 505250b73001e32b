"""`tf.train.Example` and `tf.train.SequenceExample`, taken apart by their wire format, without protobuf's classes.

Example          1: Features
SequenceExample  1: Features (context)         2: FeatureLists
Features         1: {1: name, 2: Feature} each
FeatureLists     1: {1: name, 2: FeatureList} each
FeatureList      1: Feature each
Feature          1: list of bytes | 2: list of float32 | 3: list of int64, packed or not
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Values = list[bytes] | np.ndarray
"""What a feature holds: byte strings, or float32 [N] or int64 [N]."""

VARINT, FIXED_64, DELIMITED, FIXED_32 = 0, 1, 2, 5  # the wire types of protobuf
LONGEST_VARINT = 10  # bytes


@dataclass(frozen=True)
class SequenceRecord:
    """A SequenceExample.

    context  name -> values
    lists    name -> the values of each of its features
    """

    context: Mapping[str, Values]
    lists: Mapping[str, list[Values]]


def parse_example(data: bytes, wanted: Collection[str]) -> dict[str, Values]:
    """The wanted features of a serialised Example that it has. Raises ValueError for bytes that are none."""
    return dict(_features(_messages(memoryview(data), 1), wanted))


def parse_sequence(data: bytes) -> SequenceRecord:
    """A serialised SequenceExample, or an Example, whose features are then its context. Raises ValueError."""
    whole = memoryview(data)
    lists: dict[str, list[Values]] = {}
    for group in _messages(whole, 2):
        for entry in _messages(group, 1):
            name, value = _entry(entry)
            lists[name] = [_values(feature) for feature in _messages(value, 1)]
    return SequenceRecord(dict(_features(_messages(whole, 1), None)), lists)


def _features(groups: Iterator[memoryview], wanted: Collection[str] | None) -> Iterator[tuple[str, Values]]:
    for group in groups:
        for entry in _messages(group, 1):
            name, value = _entry(entry)
            if wanted is None or name in wanted:
                yield name, _values(value)


def _entry(entry: memoryview) -> tuple[str, memoryview]:
    """(name, value) of an entry of a map; either may be left out where it is empty."""
    name, value = memoryview(b""), memoryview(b"")
    for number, part in _fields(entry):
        if isinstance(part, memoryview):
            name, value = (part, value) if number == 1 else (name, part)
    return bytes(name).decode(), value


def _values(feature: memoryview) -> Values:
    """A Feature without a value is an empty list of bytes."""
    strings: list[bytes] = []
    numbers: list[np.ndarray] = []
    for kind, group in _fields(feature):
        if not isinstance(group, memoryview) or kind not in (1, 2, 3):
            raise ValueError(f"a feature holds field {kind}, which tf.train.Feature has not")
        for number, value in _fields(group):
            if number != 1:
                raise ValueError(f"a list of values holds field {number}")
            if kind == 1 and isinstance(value, memoryview):
                strings.append(bytes(value))
            elif kind == 2 and isinstance(value, memoryview):
                numbers.append(np.frombuffer(value, "<f4"))
            elif kind == 3:
                numbers.append(_varints(value) if isinstance(value, memoryview) else np.array([_signed(value)]))
            else:
                raise ValueError("a list of values holds a number of another type")
        if kind != 1 and not numbers:
            numbers.append(np.zeros(0, np.float32 if kind == 2 else np.int64))
    return np.concatenate(numbers) if numbers else strings


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    """The messages that stand in field `number`."""
    for field, value in _fields(data):
        if field == number and isinstance(value, memoryview):
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of each field of a message; a fixed value of 4 or 8 bytes is handed on as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, length = key & 7, 0
        if kind == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == DELIMITED:
            length, at = _varint(data, at)
        elif kind in (FIXED_64, FIXED_32):
            length = 8 if kind == FIXED_64 else 4
        else:
            raise ValueError(f"it has a field of wire type {kind}")
        if at + length > len(data):
            raise ValueError("a field is longer than what it stands in")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(the number that begins at `at`, where it ends)."""
    value = 0
    for shift, byte in enumerate(data[at : at + LONGEST_VARINT]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("a number has no end")


def _varints(packed: memoryview) -> np.ndarray:
    """int64 [N] of numbers that follow each other."""
    raw = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(raw < 128)
    if len(ends) == len(raw):
        return raw.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    if not len(ends) or ends[-1] != len(raw) - 1 or lengths.max() > LONGEST_VARINT:
        raise ValueError("a list of numbers has no end")
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max())):
        has = lengths > place
        values[has] |= (raw[starts[has] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
    return values.view(np.int64)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
