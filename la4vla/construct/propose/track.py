"""An episode as the labeller and the judge see it: path, turning, gripper and commands, in the robot's words.

Owns `Track` and the two signs that a new motion has begun: the path bends, or the commands jump.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import median_filter
from scipy.spatial.transform import Rotation

from la4vla.construct.episodes import Episode
from la4vla.construct.robots.robot import Robot, RobotFrame
from la4vla.types import ROTATION, UserError, VectorSpec

LEAD_FRAMES = 8  # a command precedes the motion it causes by no more than this (0.1 s at 80 Hz)
_MEDIAN_FRAMES = 3  # a jump must outlast a glitch of one frame
_USUAL = 0.95  # quantile of the commands' magnitude that jumps are compared with
_OUTLIER = 4.0  # times the change that 3 of 4 frames stay below: restless commands have no jumps


@dataclass(frozen=True)
class Track:
    """An episode's motion.

    path_T3      float64, (forward, left, up), m
    turn_T       orientation; None if the state has none
    spin_T3      rad, turns added up frame by frame; zeros without an orientation
    open_T       measured opening of the gripper, 1 open, 0 closed; the commanded one if the state has none
    command_T    commanded opening; if the action has none, 1 where the measured one counts as open
    gripper      whether the opening is measured, only commanded, or in neither state nor action
    steer_T3     commanded motion of each frame in the action's own unit and axes; None if actions are not positions
    contact_T    bool, whether something is touched; None if the state has no `contact`
    frame        axes and gripper limits of the robot
    lag          frames by which the arm follows its commands
    """

    path_T3: np.ndarray
    turn_T: Rotation | None
    spin_T3: np.ndarray
    open_T: np.ndarray
    command_T: np.ndarray
    gripper: Literal["measured", "commanded", "none"]
    steer_T3: np.ndarray | None
    contact_T: np.ndarray | None
    frame: RobotFrame
    lag: int

    def __len__(self) -> int:
        return len(self.path_T3)

    def moved(self, start: int, end: int) -> np.ndarray:
        """Displacement [3] in m that the actions of [start, end) caused."""
        return self.path_T3[self.seen(end)] - self.path_T3[self.seen(start)]

    def seen(self, frame: int) -> int:
        """The frame whose state shows what was commanded up to `frame`."""
        return min(frame + self.lag, len(self) - 1)


def track_of(state_TS: np.ndarray, action_TA: np.ndarray, robot: Robot) -> Track:
    """The motion of an episode. state_TS, action_TA: units of the embodiment.

    Raises UserError if the state has no position.
    """
    embodiment, spec, frame = robot.embodiment, robot.embodiment.state, robot.frame
    contact = spec.dims("contact")
    if not spec.has_position:
        raise UserError(
            f"embodiment `{embodiment.name}` has no x, y, z in its state, which the kinematic proposer needs; add the "
            "hand's pose to the state (read.state and the robot's file), say in the robot's file how it follows from "
            "the joints (kinematics, docs/construction.md), set proposer=vlm, or set proposer=episode if each episode "
            "is one clip already."
        )
    path_T3 = frame.from_base(spec.translation(state_TS))
    turn_T, spin_T3 = _turning(state_TS, spec)
    measured_T, commanded_T = spec.opening(state_TS), embodiment.action.opening(action_TA)
    gripper: Literal["measured", "commanded", "none"] = "measured"
    if measured_T is None:
        gripper = "none" if commanded_T is None else "commanded"
        measured_T = np.ones(len(state_TS)) if commanded_T is None else commanded_T
    if commanded_T is None:
        commanded_T = (measured_T >= frame.open_from).astype(np.float64)
    return Track(
        path_T3=path_T3,
        turn_T=turn_T,
        spin_T3=spin_T3,
        open_T=measured_T,
        command_T=commanded_T,
        gripper=gripper,
        steer_T3=_steer(action_TA, embodiment.action),
        contact_T=state_TS[:, contact[0]] > 0.5 if contact else None,
        frame=frame,
        lag=_lag(path_T3, action_TA, embodiment.action, frame),
    )


def undescribed_motion(episode: Episode) -> dict[str, np.ndarray]:
    """Where each dim is that no instruction describes, float64 [T] in its own unit; commands that are deltas add up.

    Keys are `state NAME` and `action NAME`.
    """
    robot, paths = episode.robot, {}
    specs = (("state", episode.state, robot.embodiment.state), ("action", episode.action, robot.embodiment.action))
    for what, values_TD, spec in specs:
        names = robot.undescribed(spec)
        path_TD = values_TD[:, spec.dims(*names)].astype(np.float64)
        if spec.reference == "delta":
            path_TD = np.cumsum(path_TD, axis=0)
        paths |= {f"{what} {name}": path_T for name, path_T in zip(names, path_TD.T, strict=True)}
    return paths


def turn_of(track: Track, start: int, end: int) -> tuple[float, str]:
    """Angle in rad that the actions of [start, end) caused, and its sense as seen from above.

    The sense is clockwise or counter-clockwise; it is empty if the axis is more than 45 degrees off the vertical.
    """
    if track.turn_T is None:
        return 0.0, ""
    vector = (track.turn_T[track.seen(end)] * track.turn_T[track.seen(start)].inv()).as_rotvec()
    angle = float(np.linalg.norm(vector))
    up = float(track.frame.from_base(vector)[2])
    if angle == 0.0 or abs(up) < angle * np.sqrt(0.5):
        return angle, ""
    return angle, "counter-clockwise" if up > 0 else "clockwise"


def bends(path_ND: np.ndarray, tolerance: float, angle: float) -> list[int]:
    """Interior points, in order, where the path [N, D] turns by more than `angle` (rad).

    Starts from the corners of the polyline that follows the path within `tolerance`, in the path's unit
    (Ramer-Douglas-Peucker). The bluntest corner is dropped until all that remain are sharp enough.
    """
    corners = [0, *_corners(path_ND, tolerance), len(path_ND) - 1]
    while len(corners) > 2:
        legs_MD = np.diff(path_ND[corners], axis=0)
        length_M = np.maximum(np.linalg.norm(legs_MD, axis=1), 1e-12)
        cosine_M = (legs_MD[1:] * legs_MD[:-1]).sum(axis=1) / (length_M[1:] * length_M[:-1])
        blunt = int(cosine_M.argmax())
        if cosine_M[blunt] < np.cos(angle):
            break
        del corners[blunt + 1]
    return corners[1:-1]


def command_jumps(steer_T3: np.ndarray, share: float) -> list[int]:
    """Frames at which the command changes by more than `share` of a usual command, for longer than a glitch.

    Scripts and planners steer in proportion to the distance from a target: their command changes suddenly where the
    target changes, and slowly elsewhere. People change it slowly or all the time; their turns show as bends.
    """
    if len(steer_T3) < 2:
        return []
    change_T = np.linalg.norm(np.diff(steer_T3, axis=0, prepend=steer_T3[:1]), axis=1)
    usual = float(np.quantile(np.linalg.norm(steer_T3, axis=1), _USUAL))
    least = max(share * usual, _OUTLIER * float(np.quantile(change_T, 0.75)))
    steady_T3 = median_filter(steer_T3, size=(_MEDIAN_FRAMES, 1), mode="nearest")
    frames = np.arange(len(steer_T3))
    before, after = np.maximum(frames - 2, 0), np.minimum(frames + 1, len(frames) - 1)
    lasting_T = np.linalg.norm(steady_T3[after] - steady_T3[before], axis=1)
    return [int(t) for t in np.flatnonzero((change_T > least) & (lasting_T > least))]


def _corners(path_ND: np.ndarray, tolerance: float) -> list[int]:
    """Interior corners of the polyline that follows the path within `tolerance`, ascending."""
    corners, open_spans = [], [(0, len(path_ND) - 1)]
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        chord = path_ND[last] - path_ND[first]
        offset_ND = path_ND[first + 1 : last] - path_ND[first]
        length = float(chord @ chord)
        along_N = np.clip(offset_ND @ chord / length, 0.0, 1.0) if length > 0 else np.zeros(len(offset_ND))
        distance_N = np.linalg.norm(offset_ND - along_N[:, None] * chord, axis=1)
        if distance_N.max() > tolerance:
            middle = first + 1 + int(distance_N.argmax())
            corners.append(middle)
            open_spans += [(first, middle), (middle, last)]
    return sorted(corners)


def _turning(state_TS: np.ndarray, spec: VectorSpec) -> tuple[Rotation | None, np.ndarray]:
    rotation = spec.dims(*ROTATION)
    if len(rotation) < 3 or spec.rotation == "none":
        return None, np.zeros((len(state_TS), 3))
    values_T3 = state_TS[:, rotation]
    turn_T = Rotation.from_euler("xyz", values_T3) if spec.rotation == "euler_xyz" else Rotation.from_rotvec(values_T3)
    spin_T3 = np.zeros((len(state_TS), 3))
    if len(state_TS) > 1:
        spin_T3[1:] = np.cumsum((turn_T[1:] * turn_T[:-1].inv()).as_rotvec(), axis=0)
    return turn_T, spin_T3


def _steer(action_TA: np.ndarray, spec: VectorSpec) -> np.ndarray | None:
    if not spec.has_position:
        return None
    values_T3 = spec.translation(action_TA)
    return values_T3 if spec.reference == "delta" else np.diff(values_T3, axis=0, prepend=values_T3[:1])


def _lag(path_T3: np.ndarray, action_TA: np.ndarray, spec: VectorSpec, frame: RobotFrame) -> int:
    """Delay in frames at which the motion is most like the commands; 0 if commands are no translations in base axes.

    A clip's words must fit its commands, and a compliant arm follows them late. Cut by states alone, the last tenth of
    a second of a `forward` clip would hold commands to go down.
    """
    if not spec.has_position or spec.reference != "delta" or spec.frame != "base":
        return 0
    command_T3 = frame.from_base(spec.translation(action_TA))
    velocity_T3 = np.diff(path_T3, axis=0)
    likeness = [
        float((command_T3[: len(velocity_T3) - lag] * velocity_T3[lag:]).sum())
        for lag in range(min(LEAD_FRAMES + 1, len(velocity_T3)))
    ]
    return int(np.argmax(likeness)) if likeness else 0
