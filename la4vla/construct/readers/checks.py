"""What every reader does with what it found in a dataset: keys, views, vectors, pictures, and what is wrong with them.

A fault leaves an episode out; a note only tells of something worth a look.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from la4vla.config import ReadConfig
from la4vla.construct.episodes import BadEpisode, Episode, Dataset
from la4vla.construct.robots.robot import RobotFile, robot_file
from la4vla.construct.robots.units import VectorUnits, convert
from la4vla.types import UserError

MAX_KEY = 60  # characters of an episode's key (episodes.py)
STILL_SHARE = 0.9  # of a view's pictures that equal the one before: the camera is called frozen
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"


def robot_of(read: ReadConfig) -> RobotFile:
    """The robot of a dataset that does not say itself what its numbers mean. Raises UserError."""
    if not read.robot:
        raise UserError(
            "read.robot is empty; name the robot file (libero_panda, droid_franka, metaworld_sawyer or your own YAML) "
            "that says what the columns of the dataset mean."
        )
    return robot_file(read.robot)


def existing(path: Path, looked_for: str, pattern: str, format: str) -> Path:
    """`path`, if it holds a file like `pattern`. Raises UserError saying what was looked for."""
    if not path.is_dir():
        raise UserError(f"read.path: no folder {path}.")
    if next(path.glob(pattern), None) is None:
        raise UserError(
            f"{path}: not a dataset of read.format={format}, it has no {looked_for}; set read.format or read.path."
        )
    return path


def episode_key(stem: str, number: int) -> str:
    """A key of at most 60 allowed characters for an episode that has a number."""
    return f"{slug(stem, MAX_KEY - 10)}-{number:06d}"


def slug(text: str, longest: int) -> str:
    """`text` with the characters a key may have.

    A long one keeps its beginning and gets a digest; one with letters of other scripts, which are lost, gets it too.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
    if len(plain) <= longest and not re.search(r"[^\W_]", re.sub(r"[A-Za-z0-9]", "", text)):
        return plain
    return f"{plain[: longest - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def chosen_views(read: ReadConfig, there: Sequence[str]) -> dict[str, str]:
    """Our name -> the dataset's, of the views wanted; under their own names, without dots, if none are named."""
    if not read.pictures:
        return {}
    if read.views:
        if missing := [view for view in read.views.values() if view not in there]:
            raise UserError(f"read.views: no view `{missing[0]}` in {read.path}; it has {', '.join(there) or 'none'}.")
        return dict(read.views)
    names = {view.rsplit(".", 1)[-1].replace("/", "_"): view for view in there}
    if len(names) < len(there):
        raise UserError(f"{read.path}: views {', '.join(there)} would share a name; name them with read.views.")
    return names


def vectors(column: Mapping[str, np.ndarray], names: Sequence[str], raw: VectorUnits, what: str) -> np.ndarray:
    """The named columns joined and converted, float32 [T, S]. what: state or action. Raises BadEpisode."""
    parts = []
    for name in names:
        values = column[name]
        if values.dtype.kind not in "fiub" or values.ndim not in (1, 2):
            raise BadEpisode(
                f"column {name} has dtype {values.dtype} and shape {values.shape}; it must hold a vector of numbers a "
                f"frame: name another with read.{what}."
            )
        parts.append(values.reshape(len(values), -1))
    if len({len(part) for part in parts}) > 1:
        lengths = ", ".join(f"{name} {len(part)}" for name, part in zip(names, parts, strict=True))
        raise BadEpisode(f"columns have different numbers of frames ({lengths}); repair or drop the episode.")
    joined_TD = np.concatenate(parts, axis=1)
    if joined_TD.shape[1] != len(raw.names):
        raise BadEpisode(
            f"{' + '.join(names)} has {joined_TD.shape[1]} numbers a frame, the robot file names {len(raw.names)} for "
            f"the {what}; correct its `names` or read.{what}."
        )
    if not np.isfinite(joined_TD).all():
        frame, dim = (int(index[0]) for index in np.nonzero(~np.isfinite(joined_TD)))
        raise BadEpisode(f"{what} is not finite at frame {frame}, dim {dim}; repair or drop the episode.")
    if len(joined_TD) < 2:
        raise BadEpisode(f"too short: {len(joined_TD)} frame; an episode needs at least 2, drop it.")
    try:
        return convert(joined_TD, raw)[0]
    except ValueError as error:
        raise BadEpisode(f"{what}: {error}; repair or drop the episode.") from error


def sentence(text: str) -> str:
    """The task's words, trimmed. Raises BadEpisode if there are none."""
    words = " ".join(text.strip().strip('"').split())
    if not words:
        raise BadEpisode("no task text; add it to the dataset, the pictures' clips and the proposers need it.")
    return words


def as_jpeg(data: bytes, quality: int) -> bytes:
    """An encoded picture as JPEG: a JPEG untouched, a PNG encoded anew. Raises BadEpisode for anything else."""
    if data.startswith(JPEG):
        try:
            simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise BadEpisode(f"a picture is a damaged JPEG ({error}); repair or drop the episode.") from error
        return data
    if data.startswith(PNG):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if decoded is not None:
            return encode(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), quality)
    raise BadEpisode("a picture is neither a JPEG nor a PNG that can be decoded; repair or drop the episode.")


def encode(picture_HW3: np.ndarray, quality: int) -> bytes:
    """uint8 RGB [H, W, 3] as JPEG."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture_HW3), quality=quality)


def inspect(dataset: Dataset, episode: Episode, decode: bool) -> tuple[list[str], list[str]]:
    """Faults and notes of an episode that could be read. decode: look at every picture too."""
    notes = table_notes(episode)
    try:
        faults = list(dataset.video_faults(episode))
        if decode and not faults:
            notes += picture_notes(episode)
    except BadEpisode as error:
        faults = [str(error)]
    return faults, notes


def table_notes(episode: Episode) -> list[str]:
    """Constant dims, and a rate that is not the robot's."""
    notes = []
    robot = episode.embodiment
    for what, values_TD, spec in (("state", episode.state, robot.state), ("action", episode.action, robot.action)):
        still = [name for name, width in zip(spec.names, np.ptp(values_TD, axis=0), strict=True) if width == 0]
        if still:
            notes.append(f"{what} never changes in {', '.join(still)}")
    if abs(episode.fps - robot.control_hz) > 1e-3:
        notes.append(f"{episode.fps:g} frames a second, but the robot file says control_hz {robot.control_hz:g}")
    return notes


def picture_notes(episode: Episode) -> list[str]:
    """Frozen cameras and views that show the same. Decodes every picture. Raises BadEpisode if one cannot be."""
    notes: list[str] = []
    seen: dict[tuple[bytes, ...], str] = {}
    numbers = range(0, len(episode), episode.frame_stride)
    for view in episode.views:
        frames = episode.frames(view, numbers)
        try:
            hashes = tuple(
                hashlib.sha256(simplejpeg.decode_jpeg(frames[number]).tobytes()).digest() for number in numbers
            )
        except ValueError as error:
            raise BadEpisode(f"{view}: a picture does not decode ({error}); repair or drop the episode.") from error
        same = sum(a == b for a, b in pairwise(hashes))
        if len(hashes) > 1 and same >= STILL_SHARE * (len(hashes) - 1):
            notes.append(f"{view} is frozen: {same} of its {len(hashes)} pictures equal the one before")
        if hashes in seen:
            notes.append(f"{view} shows the same as {seen[hashes]}")
        seen[hashes] = view
    return notes


def stat_of(path: Path) -> list[int]:
    """Size and time of a file, for stamps; zeros if it is not there."""
    if not path.is_file():
        return [0, 0]
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
