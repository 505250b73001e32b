"""Messages as bytes: msgpack with numpy arrays in it, JSON, and the checks that a stranger's message must pass.

Arrays are written as openpi's clients write them (FACTS 4.9): a map of `__ndarray__`, `data`, `dtype` and `shape` with
keys of bytes. No message can run code: no pickle, no extension types, five dtypes. A UserError of one sentence refuses
what is neither msgpack nor JSON, what is deeper or longer than any message needs to be, and a value of another type,
size or range than its key takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from la4vla.types import UserError

DTYPES = {name: np.dtype(name) for name in ("|u1", "<i4", "<i8", "<f4", "<f8")}
MAX_ITEMS = 64  # of one map or list; the longest we know is a batch of queries
MAX_TEXT = 16_384  # characters; no policy reads a longer instruction
MAX_AXES = 4
MAX_SIDE = 8_192  # pixels
MAX_INTEGER = 2**63 - 1


def pack(value: Any) -> bytes:
    """Maps, lists, text, numbers and arrays of the known dtypes as msgpack."""
    packed = msgpack.packb(value, default=_spell)
    assert packed is not None
    return packed


def unpack(message: bytes | str) -> dict[Any, Any]:
    """A msgpack map; its arrays are read-only numpy arrays. Raises UserError for anything else."""
    if isinstance(message, str):
        raise UserError("this is a text message; send msgpack in a binary one.")
    try:
        value = msgpack.unpackb(
            message,
            object_hook=_array,
            max_str_len=MAX_TEXT,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except UserError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise UserError(f"the message is not msgpack that is read here ({type(error).__name__}).") from error
    return _mapping(value)


def unpack_json(message: bytes | str) -> dict[Any, Any]:
    """A JSON object. Raises UserError for anything else, NaN and infinities included."""
    if isinstance(message, bytes):
        raise UserError("this is a binary message; send JSON in a text one.")
    try:
        value = json.loads(message, parse_constant=_no_number)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"the message is not JSON that is read here ({type(error).__name__}).") from error
    return _mapping(value)


def part(message: Mapping[Any, Any], key: str) -> Any:
    """The value under a key. Raises UserError where there is none."""
    if key not in message:
        raise UserError(f"the message has no `{key}`; it has {shown(', '.join(map(str, message)))}.")
    return message[key]


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
    """object_hook of msgpack: a spelled array or numpy scalar as itself, every other map unchanged."""
    if b"__npgeneric__" in spelled:
        value = spelled.get(b"data")
        if not isinstance(value, int | float):
            raise UserError(f"a numpy scalar must be a number, not {shown(value)}.")
        return value
    if b"__ndarray__" not in spelled:
        return spelled
    data, name, shape = (spelled.get(key) for key in (b"data", b"dtype", b"shape"))
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise UserError(f"arrays of dtype {shown(name)} are not read; send one of {', '.join(DTYPES)}.")
    if not (isinstance(shape, list) and len(shape) <= MAX_AXES and all(map(_is_side, shape))):
        raise UserError(f"the shape of an array must be a list of at most {MAX_AXES} sizes, not {shown(shape)}.")
    wanted = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != wanted:
        held = len(data) if isinstance(data, bytes) else 0
        raise UserError(f"an array of {shape} {name} has {wanted} bytes, {held} came.")
    return np.frombuffer(data, dtype).reshape(shape)


def _is_side(size: Any) -> bool:
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
