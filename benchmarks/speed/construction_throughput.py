"""Measures how long keyframes and kinematic proposals take for a dataset of DROID's size, from states and actions
alone.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.construction_throughput
    OMP_NUM_THREADS=1 python -m benchmarks.speed.construction_throughput --episodes 500 --processes 2

The default is as much as the paper cut (FACTS 1.3.6): 9,560 episodes of 288 frames, 2.75 M frames. The episodes are
synthetic and all different: a hand moves smoothly from point to point, turns on the way, rests at times, closes on
something and lets go, with the noise of an encoder. Making them is not timed, and nothing is read from or written to
disk.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.config import KeyframeConfig, ProposeConfig
from la4vla.construct.propose.keyframes import detect
from la4vla.construct.propose.kinematic import propose
from la4vla.construct.robots.robot import Robot, RobotFrame
from la4vla.rng import RngUse, generator
from la4vla.shell import exit_status
from la4vla.types import Embodiment, VectorSpec

EPISODES, FRAMES = 9560, 288  # FACTS 1.3.6
NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")
ARM = Robot(
    Embodiment(
        "made_up",
        15.0,
        VectorSpec(NAMES, "absolute", rotation="euler_xyz"),
        VectorSpec(NAMES, "delta", rotation="euler_xyz"),
    ),
    RobotFrame("+x", "+y", "+z", closed_on_nothing=0.0, hold_margin=0.05, open_from=0.8),
)
NOISE = 2e-4  # m and rad


@dataclass(frozen=True)
class ConstructionTime:
    """Seconds that a part of the episodes took and what they gave; two of them add up.

    keyframes_s     seconds of detecting keyframes
    proposals_s     seconds of proposing clips
    keyframes       number detected
    proposals       number proposed
    """

    keyframes_s: float
    proposals_s: float
    keyframes: int
    proposals: int

    def __add__(self, other: ConstructionTime) -> ConstructionTime:
        return ConstructionTime(
            self.keyframes_s + other.keyframes_s,
            self.proposals_s + other.proposals_s,
            self.keyframes + other.keyframes,
            self.proposals + other.proposals,
        )


def make(number: int) -> tuple[np.ndarray, np.ndarray]:
    """State and action of episode `number`, float32 [FRAMES, 7]: nine stretches that move, turn, do both or rest."""
    draw = generator(0, RngUse.RECORD, "construction throughput", number)
    edges = np.sort(draw.choice(np.arange(10, FRAMES - 10), 8, replace=False))
    edges = np.concatenate([[0], edges, [FRAMES]])
    place, turn, pose_T6 = np.zeros(3), np.zeros(3), np.zeros((FRAMES, 6))
    for first, last in pairwise(edges):
        share = np.linspace(0, 1, last - first)[:, None]
        share = share**3 * (10 - 15 * share + 6 * share**2)  # minimum jerk
        step, twist = draw.normal(0, 0.12, 3), draw.normal(0, 0.4, 3)
        kind = draw.choice(("both", "move", "turn", "rest"), p=(0.3, 0.5, 0.1, 0.1))
        step, twist = step * (kind in ("both", "move")), twist * (kind in ("both", "turn"))
        pose_T6[first:last] = np.concatenate([place + share * step, turn + share * twist], axis=1)
        place, turn = place + step, turn + twist
    pose_T6 += draw.normal(0, NOISE, pose_T6.shape)
    # The hand points down (rx near 180 degrees), so that Euler angles wrap.
    euler_T3 = (Rotation.from_rotvec(pose_T6[:, 3:]) * Rotation.from_euler("x", 180, degrees=True)).as_euler("xyz")
    close, release = np.sort(draw.choice(np.arange(40, FRAMES - 20), 2, replace=False))
    frames = np.arange(FRAMES)
    open_T = 1 - 0.6 * (np.clip((frames - close) / 8, 0, 1) - np.clip((frames - release) / 8, 0, 1))
    state_TS = np.concatenate([pose_T6[:, :3], euler_T3, open_T[:, None]], axis=1).astype(np.float32)
    command_T = np.where((frames >= close) & (frames < release), 0.0, 1.0)
    delta_T6 = np.diff(pose_T6, axis=0, append=pose_T6[-1:])
    return state_TS, np.concatenate([delta_T6, command_T[:, None]], axis=1).astype(np.float32)


def work(numbers: range) -> ConstructionTime:
    """Detects keyframes and proposes clips in the episodes of these numbers."""
    keyframes, config, spent = KeyframeConfig(), ProposeConfig(), ConstructionTime(0.0, 0.0, 0, 0)
    for number in numbers:
        state_TS, action_TA = make(number)
        draws = generator(0, RngUse.WORDING, str(number))
        begin = time.perf_counter()
        detected = detect(state_TS, ARM.embodiment.state, keyframes)
        middle = time.perf_counter()
        proposals = propose(state_TS, action_TA, ARM, detected, config, 1, draws)
        spent += ConstructionTime(middle - begin, time.perf_counter() - middle, len(detected), len(proposals))
    return spent


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.construction_throughput", allow_abbrev=False)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(list(arguments))
    parts = [range(first, options.episodes, options.processes) for first in range(options.processes)]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        done = list(pool.map(work, parts))
    total = sum(done[1:], done[0])
    wall = max(item.keyframes_s + item.proposals_s for item in done)
    print(
        f"{options.episodes:,} episodes of {FRAMES} frames, {options.processes} process(es): {wall:.1f} s "
        f"(keyframes {1e3 * total.keyframes_s / options.episodes:.2f} ms and proposals "
        f"{1e3 * total.proposals_s / options.episodes:.2f} ms an episode); {total.keyframes / options.episodes:.1f} "
        f"keyframes and {total.proposals / options.episodes:.1f} proposals an episode"
    )
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
