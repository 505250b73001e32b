"""The recorder's store of episodes on disk.

A store is a folder with `store.json` (the settings of all its episodes), `{task}/{number:06d}.npz` for each episode,
and an empty `{task}/{number:06d}.failed` for each attempt that did not succeed. Files are written under another name,
fsynced and renamed. So every file is complete, and an interrupted recording goes on where it stopped.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from la4vla.config import RecordConfig
from la4vla.construct.episodes import Episode, Frames, Script
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.data.npz import read_npz
from la4vla.files import write_atomic
from la4vla.types import Embodiment, UserError, VectorSpec, flat

SCHEMA_VERSION = 1
SETTINGS = "store.json"
BEFORE_LIBERO = {"simulator": "metaworld", "held_out": False}
"""Settings that are missing in a store.json from the time of one simulator. Such a file has one `view`."""


def episode_path(store: Path, task: str, number: int) -> Path:
    return store / task / f"{number:06d}.npz"


def failure_path(store: Path, task: str, number: int) -> Path:
    return store / task / f"{number:06d}.failed"


def list_episodes(store: Path, task: str) -> list[int]:
    """Numbers of the complete episodes of a task, ascending."""
    return sorted(int(path.stem) for path in (store / task).glob("*.npz"))


def list_failures(store: Path, task: str) -> list[int]:
    """Numbers of the failed attempts of a task, ascending."""
    return sorted(int(path.stem) for path in (store / task).glob("*.failed"))


def kept_episodes(store: Path, task: str, settings: RecordConfig) -> list[int]:
    """Numbers of the demonstrations of a task that are used: the first `episodes` successes, ascending."""
    return numbers_from(list_episodes(store, task), settings)[: settings.episodes]


def numbers_from(numbers: Iterable[int], settings: RecordConfig) -> list[int]:
    """The numbers from `first_episode` on."""
    return [number for number in numbers if number >= settings.first_episode]


def write_episode(path: Path, episode: Episode) -> None:
    """Writes `path` atomically. Its bytes depend on the episode only."""
    about = {
        "schema": SCHEMA_VERSION,
        "task": episode.task,
        "number": episode.number,
        "instruction": episode.instruction,
        "embodiment": episode.embodiment.to_dict(),
        "fps": episode.fps,
        "views": list(episode.views),
        "frame_stride": episode.frame_stride,
    }
    assert episode.executed is not None, episode.key
    arrays = {"state": episode.state, "action": episode.action, "executed": episode.executed}
    if episode.script is not None:
        script = episode.script
        arrays |= {"phase": script.phase, "target": script.target_T3, "object": script.object_T3}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    for view in episode.views:
        numbers = range(0, len(episode), episode.frame_stride)
        frames = episode.frames(view, numbers)
        arrays[f"{view}/frame"] = np.array(numbers, np.int64)
        arrays[f"{view}/size"] = np.array([len(frames[number]) for number in numbers], np.int64)
        arrays[f"{view}/jpeg"] = np.frombuffer(b"".join(frames[number] for number in numbers), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomic(path, buffer.getvalue())


def read_episode(path: Path) -> Episode:
    """An episode of a store; its images are read on demand. Raises UserError for a file that is no complete episode."""
    try:
        table = read_npz(path, ("about", "state", "action", "executed", "phase", "target", "object"))
        about: dict[str, Any] = json.loads(table["about"].tobytes())
        state, action, executed = (table[name] for name in ("state", "action", "executed"))
        script = None
        if "phase" in table:  # old stores lack it
            script = Script(table["phase"], table["target"], table["object"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no complete episode ({error}); delete it and record again.") from error
    if about["schema"] > SCHEMA_VERSION:
        raise UserError(f"{path} was written by a newer la4vla (schema {about['schema']}); upgrade la4vla.")

    def frames(view: str, wanted: Sequence[int]) -> Frames:
        numbers, sizes, data = read_npz(path, [f"{view}/{name}" for name in ("frame", "size", "jpeg")]).values()
        ends = np.cumsum(sizes)
        spans = {int(number): (end - size, end) for number, size, end in zip(numbers, sizes, ends, strict=True)}
        return {number: data[slice(*spans[number])].tobytes() for number in wanted}

    embodiment = Embodiment.from_dict(about["embodiment"])
    return Episode(
        key=f"{about['task']}-{about['number']:06d}",
        task=about["task"],
        number=about["number"],
        instruction=about["instruction"],
        robot=Robot(embodiment, robot_frame(embodiment.name)),
        fps=about["fps"],
        state=state,
        action=action,
        executed=executed,
        script=script,
        views=tuple(about["views"]),
        frame_stride=about["frame_stride"],
        frames=frames,
    )


def open_store(store: Path, settings: Mapping[str, Any]) -> None:
    """Creates a store. If there is one already, raises UserError unless it was recorded with the same settings."""
    path = store / SETTINGS
    if path.is_file():
        check_store(store, settings)
        return
    store.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"schema": SCHEMA_VERSION, **settings}, indent=1).encode())


def check_store(store: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if there is a store that was recorded with other settings.

    settings: all of a store's settings, or some of them.
    """
    path = store / SETTINGS
    if not path.is_file():
        return
    there = json.loads(path.read_text())
    if "view" in there:
        there |= {**BEFORE_LIBERO, "views": [there["view"]]}
    wanted = flat({"schema": SCHEMA_VERSION, **settings})
    found = flat({**there, "embodiment": _embodiment(there.get("embodiment"), settings.get("embodiment"))})
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"{store}: its episodes were recorded with {name}={found.get(name)}, not {value}; set another "
                "read.path or remove this folder, and record anew."
            )


def _embodiment(there: Any, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
    """The embodiment of a store.json in full. wanted: the present one, or None.

    Old files have the robot's name only. They date from a time when all rotations were on the side of the zeros
    (VectorSpec.rotation_near); in all else their robots were as they are now.
    """
    if isinstance(there, Mapping):
        return Embodiment.from_dict(there).to_dict()
    if there is None or wanted is None or there != wanted["name"]:
        return {"name": there}
    zeros = {"rotation_near": VectorSpec.rotation_near}
    return {**wanted, **{name: {**wanted[name], **zeros} for name in ("state", "action")}}
