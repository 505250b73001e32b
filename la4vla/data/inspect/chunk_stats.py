"""Statistics of actions whose values depend on where their chunk begins, added to a folder's stats.json.

Every sample's chunk counts, with the actions that its clip still has; so an action counts as often as it is trained on.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from la4vla.data.delta import WINDOWED, delta_action, stored_as, windowed
from la4vla.data.normalize import STATS, FolderStats
from la4vla.data.shards.index import read_index, read_stats
from la4vla.data.shards.read import read_shard
from la4vla.data.tally import Tally
from la4vla.files import write_atomic
from la4vla.types import UserError


def add_chunk_stats(folder: str, horizon: int) -> list[str]:
    """Reads every clip once, without its images; returns the names under which the statistics are stored.

    Raises UserError for a horizon below 1, a folder that is no local one of clips, and actions that have no such form.
    """
    if horizon < 1:
        raise UserError(f"--horizon {horizon}: must be at least 1.")
    index = read_index(folder)
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: statistics are added to a local folder; run this where it lies.")
    robot = index.embodiment
    deltas = {form: delta_action(robot, form) for form in WINDOWED}
    if None in deltas.values():
        raise UserError(
            f"{folder}: the actions of {robot.name} are not absolute in the dims of its state, so they have no form "
            "that depends on a chunk; train with data.action=recorded."
        )
    tallies = {form: Tally(robot.action.names) for form in WINDOWED}
    for number in tqdm(range(len(index.shards)), desc="reading clips", unit="shard"):
        kept = index.shards[number].kept
        for place, clip in enumerate(read_shard(index, number, ())):
            starts = range(0, len(clip), index.frame_stride) if kept is None else kept[place]
            for form, delta in deltas.items():
                assert delta is not None
                for chunk_TA in windowed(delta, clip.state, clip.action, horizon, starts):
                    tallies[form].add(chunk_TA)
    stats = read_stats(folder)
    found = {stored_as(form, horizon): tally.stats() for form, tally in tallies.items()}
    write_atomic(Path(folder) / STATS, FolderStats(stats.state, {**stats.actions, **found}).to_json().encode())
    return list(found)
