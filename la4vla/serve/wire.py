"""Messages as bytes: msgpack with numpy arrays in it, JSON, and the checks that a stranger's message must pass.

Arrays are written as openpi's clients write them (FACTS 4.9): a map of `__ndarray__`, `data`, `dtype` and `shape` with
keys of bytes. No message can run code: there is no pickle, and extension types stay bytes. A UserError of one sentence
refuses what is neither msgpack nor JSON, what is deeper or longer than any message needs to be, and a value of another
type, size or range than its key takes. A key that nobody asks for may hold anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from la4vla.types import UserError

DTYPES = {name: np.dtype(name) for name in ("|u1", "<i4", "<i8", "<f4", "<f8")}
MAX_QUERIES = 64  # of one message
MAX_ITEMS = 4_096  # of one map or list: msgpack makes room for as many as a header claims, 1,024 headers deep
MAX_TEXT = 16_384  # characters; no policy reads a longer instruction
MAX_AXES = 4
MAX_SIDE = 8_192  # pixels
MAX_INTEGER = 2**63 - 1


TOO_LONG = re.compile(r"(\d+) exceeds max_(\w+)_len")
"""How msgpack says that something is longer than it may be."""


@dataclass(frozen=True)
class Unread:
    """An array that is not read here; an error only where its key is asked for.

    why   what is wrong with it, the rest of a sentence
    """

    why: str


def pack(value: Any) -> bytes:
    """Maps, lists, text, numbers and arrays of the known dtypes as msgpack."""
    packed = msgpack.packb(value, default=_spell)
    assert packed is not None
    return packed


def unpack(message: bytes | str) -> dict[Any, Any]:
    """A msgpack map. Its arrays are read-only numpy arrays, or `Unread`. Raises UserError for anything else."""
    if isinstance(message, str):
        raise UserError("this is a text message; send msgpack in a binary one.")
    try:
        value = msgpack.unpackb(
            message,
            object_hook=_array,
            strict_map_key=False,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise UserError(f"the message cannot be read as msgpack: {_why(error)}.") from error
    return _mapping(value)


def _why(error: Exception) -> str:
    """What is wrong with a message that msgpack cannot read."""
    if found := TOO_LONG.match(str(error)):
        return f"it holds a list or map of {found[1]} entries, and at most {MAX_ITEMS} are read"
    if isinstance(error, msgpack.StackError):
        return "its lists and maps are nested too deeply"
    if isinstance(error, msgpack.ExtraData):
        return "something follows its end"
    if isinstance(error, msgpack.FormatError):
        return "it holds a byte that means nothing in msgpack"
    if isinstance(error, UnicodeDecodeError):
        return "it holds text that is not UTF-8"
    if isinstance(error, TypeError):
        return "it holds a map with a list or a map for a key"
    return f"it is damaged ({error})"


def unpack_json(message: bytes | str) -> dict[Any, Any]:
    """A JSON object. Raises UserError for anything else, NaN and infinities included."""
    if isinstance(message, bytes):
        raise UserError("this is a binary message; send JSON in a text one.")
    try:
        value = json.loads(message, parse_constant=_no_number)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError("the message cannot be read as JSON: its lists and maps are nested too deeply.") from error
    except ValueError as error:
        why = str(error) if isinstance(error, json.JSONDecodeError) else "it holds a number of too many digits"
        raise UserError(f"the message cannot be read as JSON: {why}.") from error
    return _mapping(value)


def part(message: Mapping[Any, Any], key: str) -> Any:
    """The value under a key. Raises UserError where there is none, and where it is not read here."""
    if key not in message:
        raise UserError(f"the message has no `{key}`; it has {shown(', '.join(map(str, message)))}.")
    value = message[key]
    if isinstance(value, Unread):
        raise UserError(f"`{key}` {value.why}.")
    return value


def mapping(message: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    value = part(message, key)
    if not isinstance(value, dict):
        raise UserError(f"`{key}` must be a map, not {shown(value)}.")
    return value


def text(message: Mapping[Any, Any], key: str) -> str:
    """Text that can be encoded (JSON can spell half a character), at most MAX_TEXT long."""
    value = part(message, key)
    if not isinstance(value, str):
        raise UserError(f"`{key}` must be text, not {shown(value)}.")
    if len(value) > MAX_TEXT:
        raise UserError(f"`{key}` has {len(value)} characters; at most {MAX_TEXT} are read.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"`{key}` holds half a character (a lone surrogate); send whole ones.") from error
    return value


def count(message: Mapping[Any, Any], key: str) -> int:
    """An integer of at least 0."""
    value = part(message, key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        raise UserError(f"`{key}` must be an integer from 0 to {MAX_INTEGER}, not {shown(value)}.")
    return value


def flag(message: Mapping[Any, Any], key: str) -> bool:
    value = part(message, key)
    if not isinstance(value, bool):
        raise UserError(f"`{key}` must be true or false, not {shown(value)}.")
    return value


def image(value: Any, name: str) -> np.ndarray:
    """uint8 RGB [H, W, 3] from an array that already is that."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or not _is_image(value.shape):
        raise UserError(f"the view `{name}` must be a uint8 array [H, W, 3], not {shown(value)}.")
    return value


def image_from_lists(value: Any, name: str) -> np.ndarray:
    """uint8 [H, W, 3] from three levels of lists of integers in 0..255."""
    values_HWC = _numbers(value, name)
    if not _is_image(values_HWC.shape):
        raise UserError(f"the image {name} must be lists of H x W x 3 numbers, not {list(values_HWC.shape)}.")
    if not ((values_HWC >= 0) & (values_HWC <= 255) & (values_HWC == np.trunc(values_HWC))).all():
        raise UserError(f"the image {name} must hold integers from 0 to 255.")
    return values_HWC.astype(np.uint8)


def vector(value: Any, name: str) -> np.ndarray:
    """Finite float32 [N] from an array or a list of numbers."""
    row_N = value.astype(np.float64) if isinstance(value, np.ndarray) else _numbers(value, name)
    if row_N.ndim != 1:
        raise UserError(f"`{name}` must be one row of numbers, not of shape {list(row_N.shape)}.")
    if not (np.abs(row_N) <= np.finfo(np.float32).max).all():
        raise UserError(f"`{name}` holds numbers that are not finite in float32.")
    return row_N.astype(np.float32)


def shown(value: Any) -> str:
    """A stranger's value in an error message: arrays, maps and lists by their size, text by its beginning."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    return ascii(value[:80] if isinstance(value, str | bytes) else value)[:200]


def _spell(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        assert value.dtype.str in DTYPES, value.dtype
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} does not travel")


def _array(spelled: dict[Any, Any]) -> Any:
    """object_hook of msgpack: an array or a numpy scalar for the map that spells it, every other map unchanged."""
    if b"__npgeneric__" in spelled:
        value = spelled.get(b"data")
        return value if isinstance(value, int | float) else Unread(f"is a numpy scalar and no number: {shown(value)}")
    if b"__ndarray__" not in spelled:
        return spelled
    data, name, shape = (spelled.get(key) for key in (b"data", b"dtype", b"shape"))
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        return Unread(f"is an array of dtype {shown(name)}; send one of {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and len(shape) <= MAX_AXES and all(map(_is_size, shape))):
        sizes = f"at most {MAX_AXES} sizes of at least 1"
        return Unread(f"is an array of shape {ascii(shape)[:80]}; send one whose shape is a list of {sizes}")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        came = len(data) if isinstance(data, bytes) else 0
        return Unread(f"is an array of {shape} {name}, which takes {size} bytes, and {came} came")
    return np.frombuffer(data, dtype).reshape(shape)


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= MAX_INTEGER


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] == 3 and 1 <= shape[0] <= MAX_SIDE and 1 <= shape[1] <= MAX_SIDE


def _numbers(value: Any, name: str) -> np.ndarray:
    """Nested lists as float64: a type given beforehand keeps numpy from making room for the longest text in them."""
    if not isinstance(value, list):
        raise UserError(f"`{name}` must be a list of numbers, not {shown(value)}.")
    try:
        return np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"`{name}` must be even lists of numbers ({type(error).__name__}).") from error


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"a message must be a map, not {shown(value)}.")
    return value


def _no_number(name: str) -> float:
    raise UserError(f"the message holds {name}; send finite numbers.")
