"""Playing: rows of displacements become control steps within the robot's limit.

A row is cut into equal steps; its gripper changes at the end of the row, or at its beginning (`gripper_order`), and
gets steps of its own without motion. Nothing is commanded but what a row says, times `gain`.
"""

from __future__ import annotations

import math

import numpy as np

from la4vla.action_text.motion import Motion
from la4vla.action_text.space import MotionSpace


def play(rows: Motion, space: MotionSpace, state_S: np.ndarray, opening: float | None) -> np.ndarray:
    """Raw commands float32 [T, A] of these rows; T is 0 without rows.

    state_S  raw state before the first command
    opening  what the gripper was last told, 1 open or 0 closed; None: nothing yet, so the state tells
    """
    config, (step_m, step_rad) = space.config.play, space.limits()
    present = space.opening(state_S) if opening is None else opening
    parts: list[Motion] = []
    for number in range(len(rows)):
        row = rows[number : number + 1]
        wanted = float(row.open_R[0] > 0.5)
        changes = space.gripper and wanted != present
        first = changes and config.gripper_order == "first"
        if first:
            parts.append(_still(config.gripper, wanted))
        move_13, turn_13 = config.gain * row.move_R3, config.gain * row.turn_R3
        longest = max(np.abs(move_13).max() / step_m, np.abs(turn_13).max() / step_rad)
        count = max(1, math.ceil(longest - 1e-6))
        held = wanted if first else present
        part_13, turning_13 = move_13 / count, turn_13 / count
        parts.append(Motion(np.repeat(part_13, count, 0), np.repeat(turning_13, count, 0), np.full(count, held)))
        if changes and not first:
            parts.append(_still(config.gripper, wanted))
        parts.append(_still(config.settle, wanted))
        present = wanted
    steps = Motion(*(np.concatenate([_field(part, index) for part in parts]) for index in range(3))) if parts else rows
    return space.commands(steps, state_S)


def _still(steps: int, opening: float) -> Motion:
    return Motion(np.zeros((steps, 3)), np.zeros((steps, 3)), np.full(steps, opening))


def _field(part: Motion, index: int) -> np.ndarray:
    return (part.move_R3, part.turn_R3, part.open_R)[index]
