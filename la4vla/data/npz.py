"""Reading `.npz` from several threads.

NumPy reads the header of every array with `ast`, and CPython (3.11 and 3.12 at least) counts the depth of that for all
threads together: now and then one gets `SystemError: AST constructor recursion depth mismatch` (python/cpython#106905).
In a loader that reads shards for days that is a dead run. So one thread reads at a time.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

_READING = threading.Lock()


def read_npz(file: Path | BinaryIO, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that are there; all if none is named. Raises what np.load raises."""
    with _READING, np.load(file) as archive:
        return {name: archive[name] for name in names or archive.files if name in archive.files}


def npz_headers(path: Path, names: Sequence[str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of those of the arrays `names` that are there, without reading them. Raises what read_npz
    raises."""
    headers = {}
    with _READING, zipfile.ZipFile(path) as archive:
        for name in set(names) & {member.removesuffix(".npy") for member in archive.namelist()}:
            with archive.open(f"{name}.npy") as file:
                version = np.lib.format.read_magic(file)
                read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
                shape, _, dtype = read(file)
                headers[name] = shape, dtype
    return headers
