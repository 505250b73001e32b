"""A shard folder of straight motions in all six directions, whose images and states tell the direction too."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla.data.shards.writer import Clip, View
from la4vla.sim.metaworld import EMBODIMENT
from tests.fixtures import write_shards

VIEW, SIZE, LENGTH, STRIDE = "corner4", 16, 12, 3
WAYS = {
    "forward": (0, 1, 0),
    "backward": (0, -1, 0),
    "left": (-1, 0, 0),
    "right": (1, 0, 0),
    "up": (0, 0, 1),
    "down": (0, 0, -1),
}
"""World frame: the robot faces +y (la4vla/sim/metaworld.py)."""


def straight(
    number: int, way: str, task: str, episode: str, start: int, said: str = "", wobble: float = 0.0, primitive="move"
) -> Clip:
    """Moves `way` at full command. The image's grey and the state's z are 20 and 0.02 times the direction's place."""
    place = list(WAYS).index(way)
    action = np.zeros((LENGTH, 4), np.float32)
    action[:, :3] = np.array(WAYS[way]) + wobble * np.random.Generator(np.random.Philox(number)).normal(size=(12, 3))
    state = np.zeros((LENGTH, 4), np.float32)
    state[:, 0] = np.arange(start, start + LENGTH) / 100
    state[:, 2] = 0.02 * (1 + place)
    grey = np.full((SIZE, SIZE, 3), 20 * (1 + place), np.uint8)
    image = simplejpeg.encode_jpeg(grey, quality=95)
    return Clip(
        key=f"{task}-{episode}-{number:03d}",
        instruction=said or f"move the gripper {way}",
        primitive=primitive,
        object_status="EMPTY",
        task=task,
        episode=f"{task}/{episode}",
        span=(start, start + LENGTH),
        fps=80.0,
        quality=3.0,
        state=state,
        action=action,
        frames={VIEW: {t: image for t in range(0, LENGTH, STRIDE)}},
    )


def clips() -> list[Clip]:
    """Two tasks of two episodes, each with all six directions, and one clip of every reason not to be a case."""
    good = [
        straight(number, way, task, episode, number * LENGTH, wobble=0.1)
        for task in ("reach", "push")
        for episode in ("one", "two")
        for number, way in enumerate(WAYS)
    ]
    bad = [
        straight(90, "up", "reach", "bad", 0, said="move the gripper down"),  # words and motion disagree
        straight(91, "up", "reach", "bad", 20, said="move the gripper up and left"),  # two directions
        straight(92, "up", "reach", "bad", 40, said="move the gripper"),  # none
        straight(93, "up", "reach", "bad", 60, wobble=3.0),  # not that way
        straight(94, "up", "reach", "bad", 80, primitive="grasp"),
    ]
    return good + bad


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "vla"
    write_shards(folder, clips(), 2, {VIEW: View(SIZE, SIZE)}, STRIDE, EMBODIMENT)
    return folder
