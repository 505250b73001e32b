"""A small recorded dataset: four episodes of a made-up motion, images that carry their frame's number."""

from dataclasses import replace

import numpy as np
import simplejpeg

from la4vla.config import ConstructConfig, ProposeConfig, ReadConfig, RecordConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.recording.store import episode_path, write_episode
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.sim.metaworld import EMBODIMENT

STRIDE = 3
FRAMES = 83
TASK = "pick-place-v3"
NUMBERS = range(1000, 1004)
ROBOT = Robot(EMBODIMENT, robot_frame(EMBODIMENT.name))


def grey(level):
    return simplejpeg.encode_jpeg(np.full((16, 16, 3), level, np.uint8), quality=95)


def episode(number):
    """Forward, down, left; number shifts the bends. Action t says t in its last number, beside the episode's."""
    bends = np.array([0, 25 + number % 5, 50, FRAMES])
    corners = np.array([[0, 0.4, 0.3], [0, 0.6, 0.3], [0, 0.6, 0.1], [-0.2, 0.6, 0.1]])
    frames = np.arange(FRAMES)
    position = np.stack([np.interp(frames, bends, corners[:, axis]) for axis in range(3)], axis=1)
    state = np.concatenate([position, np.ones((FRAMES, 1))], axis=1).astype(np.float32)
    action = np.full((FRAMES, 4), number % 7 / 10, np.float32)
    action[:, 3] += frames / 1000
    images = {t: grey(2 * t) for t in range(0, FRAMES, STRIDE)}
    return Episode(
        f"{TASK}-{number:06d}", TASK, number, "Pick and place a puck to a goal", ROBOT, 80.0, state, action,
        ("corner4",), STRIDE, lambda view, numbers: {t: images[t] for t in numbers}, action,
    )  # fmt: skip


def recorded(tmp_path):
    """Writes the episodes and returns a config that constructs from them."""
    for number in NUMBERS:
        write_episode(episode_path(tmp_path / "episodes", TASK, number), episode(number))
    return ConstructConfig(
        read=ReadConfig(path=str(tmp_path / "episodes")),
        out_dir=str(tmp_path / "out"),
        record=RecordConfig(tasks=[TASK], episodes=4),
        propose=ProposeConfig(min_clip_frames=8),
        shards=2,
    )


def recorded_for_endpoint(tmp_path, monkeypatch):
    """The same with tasks that carry the episodes' numbers, and settings of an endpoint that wait for nothing."""
    monkeypatch.setenv("TEST_KEY", "sesame")
    config = recorded(tmp_path)
    for number in NUMBERS:
        shown = replace(episode(number), instruction=f"task {number}")
        write_episode(episode_path(tmp_path / "episodes", TASK, number), shown)
    config.vlm.api_key_variable = "TEST_KEY"
    config.vlm.requests_per_minute = 60000
    config.vlm.backoff_s = 0.01
    config.vlm.timeout_s = 30.0
    config.vlm.concurrency = 2
    return config
