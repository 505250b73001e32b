"""Scenes: what a simulator says of recorded episodes, when the questions about them are made and not before.

An episode's initial state is a pure function of its number, and replaying its stored actions repeats it exactly. So
nothing more is stored with demonstrations: a worker resets the env, looks, replays, and looks again. It also draws the
beginning with toys on the table, whose number, colours and places differ from image to image.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from la4vla.config import RecordConfig
from la4vla.construct.episodes import BadEpisode, Episode
from la4vla.construct.recording.record import worker_env
from la4vla.construct.recording.simulators import simulator
from la4vla.construct.recording.store import read_episode
from la4vla.construct.robots.robot import RobotFrame
from la4vla.data.npz import read_npz
from la4vla.files import write_atomic
from la4vla.rng import RngUse, generator
from la4vla.types import UserError

if TYPE_CHECKING:
    from la4vla.sim.env import Env
    from la4vla.sim.registry import Simulator
    from la4vla.sim.things import Thing

VERSION = 1
"""Raised when the same episode would give other facts or images."""

LEDGER, IMAGES = "scenes.jsonl", "scenes"
"""In out_dir: what `look` says of each episode, and the folder of its images with toys."""

MOST_TOYS = 4
REPEATS = 1e-4
"""By how much a replayed state may differ from the recorded one, in its own units."""


@dataclass(frozen=True)
class SceneJob:
    """What a worker looks at.

    episode       file of the store
    record        settings that the episode was recorded with
    jpeg_quality  of the images
    scenes        images with toys
    seed          of their draws
    images        file that gets them
    """

    episode: Path
    record: RecordConfig
    jpeg_quality: int
    scenes: int
    seed: int
    images: Path


def look(job: SceneJob) -> dict[str, Any]:
    """The facts of an episode, JSON-able; its images with toys are written to `job.images`.

    start, end   things at frame 0, and at `last`, the last frame with an image; place is (forward, left, up), m
    toys         [{things, view -> ... }] of each image with toys, in the order of the images
    Raises BadEpisode where the replay does not repeat what was recorded.
    """
    episode, sim = read_episode(job.episode), simulator(job.record.simulator)
    env: Any = worker_env(sim.name, tuple(job.record.views), job.record.image_size, job.record.fast)
    frame = episode.robot.frame
    _begin(env, sim, episode)
    start = [_told(thing, frame) for thing in env.things()]
    last = (len(episode) - 1) // episode.frame_stride * episode.frame_stride
    end = [_told(thing, frame) for thing in _replayed(env, episode, last).things()]
    toys, images = [], {}
    for number in range(job.scenes):
        draws = generator(job.seed, RngUse.TEXTS, episode.key, "toys", number)
        count, view = 1 + int(draws.integers(MOST_TOYS)), episode.views[0]
        seen = _begin(env, sim, episode, count, int(draws.integers(2**31)))
        toys.append([_told(thing, frame) for thing in env.things(view)])
        for name, image in seen.items():
            images[f"{name}/{number}"] = np.frombuffer(
                simplejpeg.encode_jpeg(image, quality=job.jpeg_quality, colorspace="RGB"), np.uint8
            )
    buffer = io.BytesIO()
    np.savez(buffer, **images)  # pyright: ignore[reportArgumentType]
    write_atomic(job.images, buffer.getvalue())
    return {"start": start, "end": end, "last": last, "toys": toys, "pixels": job.record.image_size**2}


def toy_images(path: Path) -> dict[tuple[str, int], bytes]:
    """(view, number of the image) -> JPEG, of a file that `look` wrote. Raises UserError where there is none."""
    images = {}
    try:
        arrays = read_npz(path)
    except FileNotFoundError as error:
        ledger = path.parent.parent / LEDGER
        raise UserError(f"{path} is gone; remove {ledger}, and the scenes are drawn again.") from error
    for name, data in arrays.items():
        view, number = name.rsplit("/", 1)
        images[view, int(number)] = data.tobytes()
    return images


def _begin(env: Env, sim: Simulator, episode: Episode, toys: int = 0, seed: int = 0) -> Mapping[str, np.ndarray]:
    """The images at the beginning of the episode, with so many toys on the table."""
    from la4vla.sim.env import SceneChange

    seen = env.reset(episode.task, episode.number, SceneChange("toys", toys, seed) if toys else None)
    for _ in range(sim.wait_steps):
        env.step(np.array(sim.wait, np.float32))
    return (env.observe() if sim.wait_steps else seen).views


def _replayed(env: Any, episode: Episode, last: int) -> Any:
    """The env at frame `last` of the episode, from its beginning on."""
    assert episode.executed is not None, episode.key
    state = episode.state[0]
    for action in episode.executed[:last]:
        state = env.step(action).state
    if not np.allclose(state, episode.state[last], atol=REPEATS, rtol=0.0):
        raise BadEpisode(
            f"{episode.key}: replaying its actions does not lead to its recorded states, so nothing is known of its "
            "scene; record it anew with the simulator that is installed."
        )
    return env


def _told(thing: Thing, frame: RobotFrame) -> dict[str, Any]:
    return {**asdict(thing), "place": frame.from_base(np.array(thing.place)).round(4).tolist()}
