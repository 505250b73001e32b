"""The episodes that `record` stored. Each file was written at once, so its images cannot disagree with its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import BadEpisode, Episode
from la4vla.construct.ledger import digest
from la4vla.construct.notes import Note
from la4vla.construct.readers.checks import first_sizes, stat_of
from la4vla.construct.recording.simulators import simulator
from la4vla.construct.recording.store import check_store, episode_path, kept_episodes, read_episode
from la4vla.construct.robots.robot import robot_frame
from la4vla.types import UserError


class Recorded:
    """A Dataset: the first `record.episodes` successes of each of `record.tasks`.

    Raises UserError if there are fewer, or if they have another embodiment than the simulator: what is trained on them
    could not be evaluated.
    """

    def __init__(self, config: ConstructConfig) -> None:
        store, settings = Path(config.read.path), config.record
        embodiment = simulator(settings.simulator).embodiment
        check_store(store, {"embodiment": embodiment.to_dict()})
        self._frame = asdict(robot_frame(embodiment.name))
        self._paths: dict[str, Path] = {}
        for task in settings.tasks:
            numbers = kept_episodes(store, task, settings)
            if len(numbers) < settings.episodes:
                raise UserError(
                    f"{store} has {len(numbers)} of {settings.episodes} episodes of {task}; record the rest first."
                )
            self._paths |= {f"{task}-{number:06d}": episode_path(store, task, number) for number in numbers}
        if not self._paths:
            raise UserError("record.tasks is empty; name the tasks whose episodes become clips.")

    @property
    def keys(self) -> Sequence[str]:
        return list(self._paths)

    @property
    def notes(self) -> Sequence[Note]:
        return ()

    def stamp(self, key: str) -> str:
        return digest(self._frame, stat_of(self._paths[key]))

    def read(self, key: str) -> Episode:
        try:
            return read_episode(self._paths[key])
        except UserError as error:
            raise BadEpisode(str(error)) from error

    def video_faults(self, episode: Episode) -> list[str]:
        return []

    def image_sizes(self, episode: Episode) -> dict[str, tuple[int, int]]:
        return first_sizes(episode)
