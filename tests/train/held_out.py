"""Cases to validate with, of clips that no run here trains on."""

from collections.abc import Sequence
from pathlib import Path

from la4vla.data.setup import fingerprint
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import View
from la4vla.probe_cases.cases import Case, CaseList
from tests.fixtures import make_clip, write_shards


def write_clips(folder: Path, numbers: Sequence[int]) -> None:
    """Those below 24 are clips of the runs' own folders."""
    front = {"front": View(16, 16)}
    write_shards(folder, [make_clip(n, 5 + (3 * n) % 7, views=front) for n in numbers], 1, front)


def write_cases(folder: Path) -> Path:
    """A case of each clip of a folder, at its first frame, said to go forward along x."""
    rows = [
        Case(clip.key, 0, clip.task, "forward", "forward/backward", [1, 0, 0], clip.instruction, "", "", None, None)
        for clip in read_shard(read_index(folder), 0, ())
    ]
    listed = CaseList(str(folder), fingerprint(read_index(folder)), "test_arm", {}, {}, tuple(rows))
    listed.write(folder.parent / "cases.jsonl")
    return folder.parent / "cases.jsonl"
