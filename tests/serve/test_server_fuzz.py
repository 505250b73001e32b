"""Why: policy servers of other projects ran whatever they were sent. More than ten thousand messages, wrong in all ways
we know, go to the three dialects: each is answered by one error, no connection is lost, the memory stays where it was
and the next client is served."""

import json
import os
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from websockets.sync.client import connect

from la4vla.serve.policy import ServedPolicy
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import ARM, HANG_S, VIEWS, random_image, serving

torch.set_num_threads(1)
MESSAGES = 3400  # to each dialect
AHEAD = 50  # messages on the way before the first answer is read
PIXELS = random_image(0, 8)
DTYPES = ("|O", "|V8", "<c16", ">f4", "<U4", "O", "object", "f4", "<f2", "", 3, None, b"|u1", "|u1" * 1000, "<f4,<f4")
SHAPES = ([2**40] * 3, [2**62, 2**62], [0, 8, 3], [-1, 8, 3], [8, 8, True], [8.0, 8, 3], [1] * 40, "883", None, [[8]])
ODD = (None, True, -1, 2**64 - 1, 1.5, float("nan"), float("inf"), "", "x" * 300, b"\xff" * 9, [], [[]], {}, [{}] * 3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return ServedPolicy.load(write_checkpoint(tmp_path_factory.mktemp("run") / "arm", ARM, VIEWS))


def resident_kib() -> int:
    """Of this process now: its peak may be an earlier test's."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def array(values: np.ndarray, **changes) -> dict:
    spelled = {b"__ndarray__": True, b"data": values.tobytes(), b"dtype": values.dtype.str, b"shape": values.shape}
    return spelled | {key.encode(): value for key, value in changes.items()}


STATE = array(np.zeros(8, np.float32))


def our_request() -> dict:
    views = {view: array(PIXELS) for view in VIEWS}
    return {"type": "infer", "queries": [{"views": views, "state": STATE, "instruction": "lift"}]}


def openpi_request() -> dict:
    return {
        "observation/image": array(PIXELS),
        "observation/wrist_image": array(PIXELS),
        "observation/state": STATE,
        "prompt": "lift",
    }


def evo1_request() -> dict:
    return {
        "image": [PIXELS.tolist()] * 3,
        "state": [0.0] * 8,
        "prompt": "lift",
        "image_mask": [1, 1, 0],
        "action_mask": [1] * 7 + [0] * 17,
    }


def places(value, path=()):
    """The path of every value that a request must have as it is."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if key == 2 and path == ("image",):
            continue  # Evo-1's third image is never looked at
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(value, path, put):
    """A copy with `put` at the path; without the place where put is `gone`."""
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[key] = changed(value[key], rest, put)
    elif put is GONE:
        del copy[key]
    else:
        copy[key] = put
    return copy


GONE = object()


def binary_messages(request: dict, draws: np.random.Generator):
    """Malformed msgpack. Bits are flipped in a message that lacks its state, so that it cannot become right."""
    whole = msgpack.packb(request)
    stateless = msgpack.packb(without_state(request))
    paths = [path for path in places(request) if b"data" not in path and b"__ndarray__" not in path]
    arrays = [path[:-1] for path in places(request) if path[-1] == b"dtype"]
    nested = b"\x91" * 100_000, b"\x81\xa1a" * 50_000, b"\xdd\xff\xff\xff\xff" * 400, b"\xdf\xff\xff\xff\xff" * 400
    nested = *nested, b"\xdc\x10\x00" * 1000  # the longest lists that are read, each in the one before
    kinds = 8
    for number in range(MESSAGES):
        match number % kinds:
            case 0:
                yield draws.bytes(int(draws.integers(1, 400)))
            case 1:
                yield whole[: int(draws.integers(0, len(whole)))]
            case 2:
                yield flipped(stateless, draws)
            case 3:
                path = paths[int(draws.integers(len(paths)))]
                yield msgpack.packb(changed(request, path, GONE if draws.random() < 0.2 else odd(draws, path)))
            case 4:
                place = arrays[int(draws.integers(len(arrays)))]
                key, values = ((b"dtype", DTYPES), (b"shape", SHAPES))[int(draws.integers(2))]
                yield msgpack.packb(changed(request, (*place, key), values[int(draws.integers(len(values)))]))
            case 5:
                nan = np.full(8, [np.nan, np.inf, -np.inf][number % 3], np.float32)
                path = next(path[:-1] for path in places(request) if path[-1] == b"dtype" and "state" in str(path))
                yield msgpack.packb(changed(request, path, array(nan)))
            case 6:
                yield nested[number // kinds % len(nested)] if number % 400 == 6 else msgpack.packb(odd(draws))
            case _:
                yield whole + draws.bytes(3) if number % 2 else json.dumps(evo1_request())


def json_messages(request: dict, draws: np.random.Generator):
    """The same for JSON. Characters are replaced in a message that lacks its state."""
    whole = json.dumps(request)
    stateless = json.dumps(without_state(request))
    paths = [path for path in places(request) if len(path) == 1 or (path[0] == "image" and len(path) == 2)]
    letters = '[]{}",:0e-.\\u\x00\u20acn'
    for turn in range(MESSAGES):
        match turn % 6:
            case 0:
                yield draws.bytes(int(draws.integers(1, 400))).decode("latin-1")
            case 1:
                yield whole[: int(draws.integers(0, len(whole)))]
            case 2:
                characters = list(stateless)
                for place in draws.integers(len(characters), size=3):
                    characters[place] = letters[int(draws.integers(len(letters)))]
                yield "".join(characters)
            case 3:
                path = paths[int(draws.integers(len(paths)))]
                put = GONE if draws.random() < 0.2 else odd(draws, path)
                yield json.dumps(changed(request, path, None if isinstance(put, bytes) else put))
            case 4:
                number = (256e300, 10**400, None, "7x", [], {}, float("nan"))[int(draws.integers(7))]
                place = (("image", 0, 3, 3, 1), ("state", 2), ("image_mask", 0), ("action_mask", 5))
                yield json.dumps(changed(request, place[int(draws.integers(4))], number))
            case _:
                deep = ("[" * 100_000, '{"a":' * 50_000, "[" * 900 + "]" * 900, "9" * 5000, "NaN", whole.encode())
                yield deep[turn // 6 % len(deep)]


def without_state(request: dict) -> dict:
    path = next(path for path in places(request) if path[-1] in ("state", "observation/state"))
    return changed(request, path, GONE)


def flipped(message: bytes, draws: np.random.Generator) -> bytes:
    octets = bytearray(message)
    for place in draws.integers(len(octets), size=4):
        octets[place] ^= 1 << int(draws.integers(8))
    return bytes(octets)


def odd(draws: np.random.Generator, path=()):
    """A value that is wrong there. An empty or long instruction would be right."""
    wrong = [value for value in ODD if not (isinstance(value, str) and path and path[-1] in ("instruction", "prompt"))]
    return wrong[int(draws.integers(len(wrong)))]


@pytest.mark.parametrize(
    ("dialect", "request_", "messages"),
    [
        ("la4vla", our_request(), binary_messages),
        ("openpi", openpi_request(), binary_messages),
        ("evo1", evo1_request(), json_messages),
    ],
    ids=["la4vla", "openpi", "evo1"],
)
def test_every_malformed_message_is_answered_by_an_error(policy, dialect, request_, messages, capsys):
    draws = np.random.Generator(np.random.Philox(len(dialect)))
    pack = json.dumps if dialect == "evo1" else msgpack.packb

    def is_error(answer) -> bool:
        if dialect == "openpi":
            return isinstance(answer, str)
        answer = json.loads(answer) if dialect == "evo1" else msgpack.unpackb(answer)
        return isinstance(answer, dict) and "error" in answer

    with serving(policy, dialect=dialect) as (url, _):

        def is_served() -> bool:
            with connect(url) as connection:
                if dialect != "evo1":
                    connection.recv(HANG_S)
                connection.send(pack(request_))
                return not is_error(connection.recv(HANG_S))

        assert is_served()
        before = resident_kib()
        with connect(url) as connection:
            if dialect != "evo1":
                connection.recv(HANG_S)
            waiting = []
            for number, message in enumerate(messages(request_, draws)):
                connection.send(message)
                waiting.append(message)
                if len(waiting) == AHEAD or number == MESSAGES - 1:
                    for sent in waiting:
                        assert is_error(connection.recv(HANG_S)), sent[:300]
                    waiting = []
            assert not waiting
        grown = resident_kib() - before
        assert grown < 100 * 1024, f"{grown} KiB more than before"
        assert is_served()
    assert "Traceback" not in capsys.readouterr().err
