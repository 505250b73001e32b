"""Why: CPython's parser of array headers is not safe in several threads at once, and the error comes once in many
thousand reads: on the third day of a run (python/cpython#106905)."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from la4vla.data import npz
from la4vla.data.npz import read_npz


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "a.npz", state=np.arange(6.0).reshape(2, 3), action=np.ones(2))
    return tmp_path / "a.npz"


def test_named_arrays_that_are_there_or_all(path):
    assert list(read_npz(path)) == ["state", "action"]
    assert list(read_npz(path, ("action", "task"))) == ["action"]
    np.testing.assert_array_equal(read_npz(path)["state"], [[0, 1, 2], [3, 4, 5]])


def test_one_thread_reads_at_a_time(path, monkeypatch):
    inside, most = 0, 0
    counting, load = threading.Lock(), np.load

    def slowly(file):
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with counting:
            inside -= 1
        return load(file)

    monkeypatch.setattr(npz.np, "load", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert all(list(item) == ["state", "action"] for item in pool.map(read_npz, [path] * 8))
    assert most == 1
