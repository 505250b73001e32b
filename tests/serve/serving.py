"""A server in a thread of the test's own process, so that what it answers can be compared with the policy itself."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from la4vla.serve.policy import ServedPolicy
from la4vla.serve.server import Settings, run
from la4vla.types import Embodiment, Observation, VectorSpec

ARM = Embodiment(
    name="arm",
    control_hz=20.0,
    state=VectorSpec(("x", "y", "z", "rx", "ry", "rz", "left", "right"), "absolute", rotation="axis_angle"),
    action=VectorSpec(
        ("x", "y", "z", "rx", "ry", "rz", "gripper"),
        "delta",
        rotation="axis_angle",
        gripper_open=-1.0,
        gripper_closed=1.0,
    ),
)
"""Sizes and gripper of LIBERO's Panda: 8 numbers of state, 7 of action, -1 = open."""

VIEWS = ("agentview", "wrist")

HANG_S = 200.0
"""How long a test waits for what takes at most some seconds on two busy cores: only a hang gets there."""


@contextmanager
def serving(policy, **settings):
    """(url, server) of a running server; whatever it raised is raised at the end."""
    ready, box = threading.Event(), {}

    async def main():
        box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def started(server, url):
            box["server"], box["url"] = server, url
            ready.set()

        await run(policy, Settings(Path(), **{"port": 0, **settings}), box["stop"], started)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(main()))
        running.add_done_callback(lambda _: ready.set())
        ready.wait()
        if running.done():
            running.result()
        try:
            yield box["url"], box["server"]
        finally:
            if not running.done():
                box["loop"].call_soon_threadsafe(box["stop"].set)
            running.result(HANG_S)


def recording(policy: ServedPolicy) -> tuple[ServedPolicy, list[Observation]]:
    """The policy, and what it will have been asked."""
    asked: list[Observation] = []

    class Recording(ServedPolicy):
        def infer(self, observations, noise_keys):
            asked.extend(observations)
            return super().infer(observations, noise_keys)

    return Recording(**vars(policy)), asked


def random_image(number: int, size: int = 64) -> np.ndarray:
    return np.random.Generator(np.random.Philox(number)).integers(0, 256, (size, size, 3), np.uint8)
