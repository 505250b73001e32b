"""Plausibility: notes on numbers that a robot file seems to have got wrong. Wrong units or signs give clips that look
right by themselves, so nothing else would say so.

Owns the limits of what is plausible. Pure functions of one episode; a limit is wide, since a note that is always there
is read by nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from la4vla.construct.episodes import Episode
from la4vla.construct.notes import Note
from la4vla.construct.robots.arms import joint_doubts
from la4vla.construct.robots.units import ANGLES, VectorUnits
from la4vla.types import ROTATION, TRANSLATION, Embodiment, VectorSpec

FAR_M = 5.0  # m from the base; arms reach 1 to 2
STEP_M = 0.5  # m that a delta may command at once; at 5 Hz this is 2.5 m/s
TURNS_RAD = 4 * np.pi  # rad; a joint or a hand turns once or twice
STEP_RAD = np.pi  # rad that a delta may command at once
BESIDE_M = 0.3  # m between a commanded and the present position, in the median over the episode
OUTSIDE = 0.25  # of the way from closed to open, that an opening may lie beyond either end
MOVES = 0.5  # of the way; a gripper that is commanded so far should be seen to move
HARDLY = 0.15  # of the way; a gripper that is seen to move less has not followed
LAGS = 10  # frames by which a gripper may follow its command
AGAINST = -0.5  # correlation of commanded and measured opening, from which on they move against each other


def angle_notes(values_TD: np.ndarray, units: VectorUnits, what: str) -> list[Note]:
    """Notes on angles before they are wrapped into one turn. values_TD: the dataset's own numbers. what: state or
    action."""
    columns = [number for number, name in enumerate(units.names) if name.removeprefix("-") in ROTATION]
    if units.unit or not columns or units.rotation == "quaternion":
        return []
    scale = ANGLES[units.angle_unit] if isinstance(units.angle_unit, str) else units.angle_unit
    largest = float(np.abs(values_TD[:, columns]).max(initial=0.0)) * scale
    if largest <= (STEP_RAD if units.reference == "delta" else TURNS_RAD):
        return []
    text = f"angles of the {what} reach {largest:.4g} rad; if they are degrees, the robot file must say angle_unit: deg"
    return [Note(f"{what}_angles", text)]


def plausibility(episode: Episode) -> list[Note]:
    """Notes on positions, commands, gripper and joints of an episode; of two arms, of each by itself."""
    notes = []
    for name in [arm.name for arm in episode.robot.arms] or [""]:
        part = _part(episode, name)
        found = [*_positions(part), *_commands(part), *_gripper(part)]
        notes += [Note(note.kind, f"{name} arm: {note.text}" if name else note.text) for note in found]
    return [*notes, *(Note("joint_degrees", text) for text in joint_doubts(episode.state, episode.robot))]


@dataclass(frozen=True)
class _Part:
    """The numbers of one arm as its dataset has them. state, action: float [T, D], in the units of embodiment."""

    state: np.ndarray
    action: np.ndarray
    embodiment: Embodiment


def _part(episode: Episode, arm: str) -> _Part:
    robot = episode.embodiment
    state, action = (
        values_TD[:, spec.dims(*spec.names_of(arm))]
        for values_TD, spec in ((episode.state, robot.state), (episode.action, robot.action))
    )
    return _Part(
        state, action, Embodiment(robot.name, robot.control_hz, robot.state.of_arm(arm), robot.action.of_arm(arm))
    )


def _positions(episode: _Part) -> Iterator[Note]:
    """Whether translations have the size of an arm's."""
    robot = episode.embodiment
    for what, values_TD, spec in (("state", episode.state, robot.state), ("action", episode.action, robot.action)):
        dims = spec.dims(*TRANSLATION)
        if not dims or spec.unit != "m":
            continue
        largest = float(np.abs(values_TD[:, dims]).max())
        step = spec.reference == "delta"
        if largest > (STEP_M if step else FAR_M):
            reach = f"translations of the {what} reach {largest:.4g} m{' in one frame' if step else ''}"
            text = f"{reach}; if they are millimetres, the robot file must say length_unit: 0.001"
            yield Note(f"{what}_positions", text)


def _commands(episode: _Part) -> Iterator[Note]:
    """Whether actions are absolute or deltas, as the robot file says. Looks at the dims that state and action share."""
    robot = episode.embodiment
    shared = [name for name in _compared(robot.action) if name in robot.state.names]
    if not shared or robot.state.reference != "absolute":
        return
    state_TD = episode.state[:, robot.state.dims(*shared)].astype(np.float64)
    action_TD = episode.action[:, robot.action.dims(*shared)].astype(np.float64)
    apart = float(np.median(np.linalg.norm(action_TD - state_TD, axis=1)))
    size = float(np.median(np.linalg.norm(state_TD, axis=1)))
    names = " ".join(shared)
    if robot.action.reference == "absolute" and apart > max(BESIDE_M, 0.5 * size):
        yield Note(
            "action_apart",
            f"the action's {names} are {apart:.2g} away from the state's, though they are absolute; if they are "
            "deltas, or of another unit or frame, the robot file must say so",
        )
    if robot.action.reference == "delta" and size > BESIDE_M and apart < 0.25 * size:
        yield Note(
            "action_absolute",
            f"the action's {names} lie beside the state's, though they are deltas; if they are absolute, the robot "
            "file must say reference: absolute",
        )


def _compared(spec: VectorSpec) -> list[str]:
    """The dims whose commands can be compared with the state: the position, or else joints."""
    if spec.has_position:
        return [name for name in TRANSLATION if name in spec.names]
    return [name for name in spec.names if name not in (*TRANSLATION, *ROTATION, "gripper", "contact")]


def _gripper(episode: _Part) -> Iterator[Note]:
    """Whether the gripper's two ends and their signs are as the robot file says."""
    robot = episode.embodiment
    measured_T, commanded_T = robot.state.opening(episode.state), robot.action.opening(episode.action)
    for what, opening_T in (("state", measured_T), ("action", commanded_T)):
        if opening_T is not None and (opening_T.min() < -OUTSIDE or opening_T.max() > 1 + OUTSIDE):
            yield Note(
                f"{what}_gripper_range",
                f"the {what}'s gripper goes from {opening_T.min():.2f} to {opening_T.max():.2f}, where 0 is closed and "
                "1 open; the robot file's gripper_open and gripper_closed are not the dataset's ends",
            )
    if measured_T is None or commanded_T is None:
        seen = "the commanded opening stands for it" if commanded_T is not None else "instructions do not mention it"
        missing = " and ".join(name for name, T in (("state", measured_T), ("action", commanded_T)) if T is None)
        seen = "only its measured opening is known" if measured_T is not None else seen
        yield Note("no_gripper", f"there is no gripper in the {missing}: {seen}")
        return
    if np.ptp(commanded_T) < MOVES:
        return
    if np.ptp(measured_T) < HARDLY:
        yield Note(
            "gripper_still",
            "the gripper is commanded to move, but its measured opening hardly does; if the dataset counts it in "
            "another unit, correct the state's gripper_open and gripper_closed in the robot file",
        )
    elif _likeness(commanded_T, measured_T) < AGAINST:
        yield Note(
            "gripper_inverted",
            "commanded and measured opening of the gripper move against each other; gripper_open and gripper_closed "
            "are swapped in the robot file, for the state or for the action",
        )


def _likeness(commanded_T: np.ndarray, measured_T: np.ndarray) -> float:
    """Correlation of commanded and measured opening at the lag at which it is strongest."""
    best = 0.0
    for lag in range(min(LAGS, len(measured_T) - 2) + 1):
        one_T, other_T = commanded_T[: len(commanded_T) - lag], measured_T[lag:]
        if np.ptp(one_T) > 0 and np.ptp(other_T) > 0:
            value = float(np.corrcoef(one_T, other_T)[0, 1])
            best = value if abs(value) > abs(best) else best
    return best
