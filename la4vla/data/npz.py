"""Reading `.npz` from several threads.

NumPy reads the header of every array with `ast`, and CPython (3.11 and 3.12 at least) counts the depth of that for all
threads together: now and then one gets `SystemError: AST constructor recursion depth mismatch` (python/cpython#106905).
In a loader that reads shards for days that is a dead run. So one thread reads at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

_READING = threading.Lock()


def read_npz(file: Path | BinaryIO, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that are there; all if none is named. Raises what np.load raises."""
    with _READING, np.load(file) as archive:
        return {name: archive[name] for name in names or archive.files if name in archive.files}
