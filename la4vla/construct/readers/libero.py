"""LIBERO's HDF5 demonstrations: one file a task, `data/demo_i` each with actions and obs.

The images in the files are bottom-up (robosuite's OpenGL convention). Reversing their rows makes them upright. They are
not mirrored as well, as the turn by 180 degrees in openvla, openpi and Evo-1 does.

At frame t, LIBERO's own files keep the observation after action t (its create_dataset.py steps, then stores). The files
that openvla regenerated keep the observation before action t, and so do our episodes. The simulator's states in a file
show which of the two it keeps; in the first case, actions are moved by one frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import BadEpisode, Episode, Frames
from la4vla.construct.ledger import digest
from la4vla.construct.notes import Note
from la4vla.construct.readers.checks import (
    chosen_views,
    encode,
    episode_key,
    existing,
    part_of,
    robot_of,
    sentence,
    stat_of,
    vectors,
)
from la4vla.types import UserError

ARM = slice(1, 8)  # the arm's joints in the simulator's states [time, joints, fingers, ...]
ARM_TOLERANCE = 0.05  # rad; measured distances to the joints: 0.0004 of the same moment, 0.013 of one step away
POSE, GRIPPER = ("obs/ee_states", "obs/ee_pos", "obs/ee_ori"), "obs/gripper_states"
CAMERAS = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "robot0_eye_in_hand"}  # stored as -> the simulator's
SCENE = re.compile(r"^[A-Z0-9_]*SCENE\d+_")
CHANGES = re.compile(r"(_[a-z]+(_-?\d+)+)+$")  # what derived suites append: words, each with its numbers


class Libero:
    """A Dataset: a folder of `*.hdf5`, or of folders of them (suites). Files are open only while they are read."""

    def __init__(self, config: ConstructConfig) -> None:
        read = config.read
        root = existing(Path(read.path), "*.hdf5 file", "**/*.hdf5", "libero")
        self._robot_file = robot_of(read)
        self._robot = self._robot_file.robot
        self._stride, self._quality = read.frame_stride, config.jpeg_quality
        self._files = sorted(root.glob("**/*.hdf5"))
        self._demos: dict[str, tuple[Path, str]] = {}
        views: list[str] = []
        for path in self._files:
            with _open(path) as file:
                demos = _demos(file, path)
                views = views or [name for name in file[f"data/{demos[0]}/obs"] if name.endswith("_rgb")]
            stem = "-".join(path.relative_to(root).with_suffix("").parts)
            self._demos |= {episode_key(stem, _number(demo)): (path, demo) for demo in demos}
        chosen = chosen_views(read, views)
        self._views = chosen if read.views else {CAMERAS.get(name, name): name for name in chosen}
        self._named = {"state": tuple(read.state), "action": tuple(read.action) or ("actions",)}
        self._keys = part_of(tuple(self._demos), read)

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def notes(self) -> Sequence[Note]:
        return ()

    def stamp(self, key: str) -> str:
        path, demo = self._demos[key]
        return digest(self._robot_file.text, demo, stat_of(path))

    def read(self, key: str) -> Episode:
        path, demo = self._demos[key]
        try:
            with _open(path) as file:
                group = file[f"data/{demo}"]
                state = self._named["state"] or _state(group)
                names = (*state, *self._named["action"])
                if missing := [name for name in names if name not in group]:
                    if any(name.startswith("robot0_") for name in group.get("obs", ())):
                        raise BadEpisode(
                            f"{path}: {demo} has robomimic's obs/robot0_..., not LIBERO's {missing[0]}; write its "
                            "episodes as npz (docs/construction.md, Reading) and set read.format=npz."
                        )
                    raise BadEpisode(f"{path}: {demo} has no {missing[0]}; get the file anew or drop the episode.")
                column = {name: group[name][()] for name in names}
                late = _observed_late(group, f"{path}: {demo}")
                counts = {view: group["obs"][name].shape[0] for view, name in self._views.items()}
                text = _instruction(file, path)
        except (OSError, KeyError) as error:
            raise BadEpisode(f"{path}: {demo} cannot be read ({error}); get it anew or drop the episode.") from error
        states, notes = vectors(column, state, self._robot_file.state, "state")
        actions, more = vectors(column, self._named["action"], self._robot_file.action, "action")
        lengths = {"action": len(actions), **counts}
        if wrong := [name for name, count in lengths.items() if count != len(states)]:
            raise BadEpisode(
                f"{path}: {demo} has {len(states)} states but {lengths[wrong[0]]} of {wrong[0]}; drop the episode."
            )
        if late:
            states, actions = states[:-1], actions[1:]
        return Episode(
            key=key,
            task=re.sub(r"_demo$", "", path.stem),
            number=_number(demo),
            instruction=sentence(text),
            robot=self._robot,
            fps=self._robot_file.control_hz,
            state=states,
            action=actions,
            views=tuple(self._views),
            frame_stride=self._stride,
            frames=partial(self._frames, path, demo),
            notes=(*notes, *more),
        )

    def video_faults(self, episode: Episode) -> list[str]:
        path, demo = self._demos[episode.key]
        with _open(path) as file:
            stored = {view: file[f"data/{demo}/obs/{name}"] for view, name in self._views.items()}
            return [
                f"{path}: {demo}, {view} is {item.dtype} {item.shape}, not uint8 [T, H, W, 3]; leave it out of "
                "read.views."
                for view, item in stored.items()
                if item.dtype != np.uint8 or item.ndim != 4 or item.shape[3] != 3
            ]

    def image_sizes(self, episode: Episode) -> dict[str, tuple[int, int]]:
        path, demo = self._demos[episode.key]
        with _open(path) as file:
            return {view: file[f"data/{demo}/obs/{name}"].shape[1:3] for view, name in self._views.items()}

    def _frames(self, path: Path, demo: str, view: str, numbers: Sequence[int]) -> Frames:
        try:
            with _open(path) as file:
                stored = file[f"data/{demo}/obs/{self._views[view]}"]
                upright = file["data"].attrs.get("macros_image_convention", "opengl") == "opencv"
                rows = slice(None) if upright else slice(None, None, -1)
                return {number: encode(stored[number][rows], self._quality) for number in numbers}
        except (OSError, KeyError) as error:
            raise BadEpisode(f"{path}: {demo}, {view} cannot be read ({error}); get it anew.") from error


def language(stem: str) -> str:
    """The task's sentence, made from its file's name as LIBERO's own benchmark makes it.

    Suites derived from LIBERO's append what they change to the name of the task (`_view_0_0_100_0_0_initstate_3`,
    `_table_2`); the sentence is then the task's own. Raises BadEpisode for a name that is no sentence.
    """
    from la4vla.sim.libero import prompts

    name = SCENE.sub("", re.sub(r"_demo$", "", stem))
    known, base = set(prompts().values()), CHANGES.sub("", name).replace("_", " ")
    if base in known:
        return base
    sentence = name.replace("_", " ")
    longer = [task for task in known if sentence.startswith(f"{task} ")]
    if longer or not re.fullmatch(r"[^\W\d]+( [^\W\d]+)*", sentence):
        raise BadEpisode(
            f"the name {stem} spells no instruction; rename the file <task>_demo.hdf5 with the task's words, or take "
            "the _demo off, and the instruction is read from the file's problem_info."
        )
    return sentence


def _instruction(file: Any, path: Path) -> str:
    """The sentence of a file: the one that a name `*_demo.hdf5` spells, else the one in problem_info.

    Evaluations use the names. problem_info has the BDDL's words, which differ in 25 of 40 tasks.
    """
    if path.stem.endswith("_demo"):
        return language(path.stem)
    try:
        text = json.loads(file["data"].attrs.get("problem_info", "{}")).get("language_instruction", "")
    except ValueError as error:
        raise BadEpisode(f"{path}: problem_info is not JSON ({error}); name the file <task>_demo.hdf5.") from error
    return text if isinstance(text, str) else "".join(text)


def _observed_late(group: Any, where: str) -> bool:
    """Whether observation t was taken after action t: then the arm is where the simulator's state t + 1 has it."""
    if "states" not in group or "obs/joint_states" not in group:
        raise BadEpisode(
            f"{where} has no states and obs/joint_states, which tell whether observations are from before or after "
            "their actions; write it as npz."
        )
    arm_T7, seen_T7 = group["states"][:, ARM], group["obs/joint_states"][()]
    if arm_T7.shape != seen_T7.shape or len(arm_T7) < 3:
        counts = f"{len(arm_T7)} states and {len(seen_T7)} joint_states"
        raise BadEpisode(f"{where} has {counts}; it must have as many of both, at least 3: drop the episode.")
    after, before = np.abs(seen_T7[:-1] - arm_T7[1:]).mean(), np.abs(seen_T7[:-1] - arm_T7[:-1]).mean()
    if min(after, before) > ARM_TOLERANCE:
        raise BadEpisode(f"{where}: joint_states are nowhere near the simulator's states; drop the episode.")
    return bool(after < before)


def _state(group: Any) -> tuple[str, ...]:
    """The columns of the state."""
    pose, position, orientation = POSE
    return (pose, GRIPPER) if pose in group else (position, orientation, GRIPPER)


def _demos(file: Any, path: Path) -> list[str]:
    """Names of the demonstrations in a file, in the order of their numbers. Raises UserError if there are none."""
    names = [name for name in file.get("data", {}) if re.fullmatch(r"demo_\d+", name)]
    if not names:
        raise UserError(f"{path} has no data/demo_0, so it is none of LIBERO's files; remove it from read.path.")
    return sorted(names, key=_number)


def _number(demo: str) -> int:
    return int(demo.removeprefix("demo_"))


def _open(path: Path) -> Any:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is no readable HDF5 file ({error}); get it anew or remove it.") from error
