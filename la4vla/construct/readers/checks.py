"""Checks that all readers share: keys, views, vectors and images of a dataset, and what is wrong with them.

A fault leaves an episode out. A note points at something that people should look at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import simplejpeg

from la4vla.config import ReadConfig
from la4vla.construct.episodes import BadEpisode, Dataset, Episode
from la4vla.construct.notes import Note
from la4vla.construct.readers.plausible import angle_notes, plausibility
from la4vla.construct.robots.arms import joint_faults
from la4vla.construct.robots.robot import RobotFile, robot_file
from la4vla.construct.robots.units import VectorUnits, convert
from la4vla.types import UserError

Item = TypeVar("Item")

MAX_KEY = 60  # characters of an episode's key (episodes.py)
STILL_SHARE = 0.9  # a camera is called frozen if this share of its images equal the one before
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"
PIXEL_KIND, GREY_16 = 24, b"\x10\x00"  # place of bit depth and colour type in a PNG; 16 bits, one channel


def robot_of(read: ReadConfig) -> RobotFile:
    """The robot file that read.robot names. Raises UserError if it names none."""
    if not read.robot:
        raise UserError(
            "read.robot is empty; name the robot file that says what the dataset's columns mean (libero_panda, "
            "droid_franka, metaworld_sawyer or your own YAML)."
        )
    return robot_file(read.robot)


def part_of(episodes: Sequence[Item], read: ReadConfig) -> Sequence[Item]:
    """Those that read.skip_episodes and read.max_episodes leave. Raises UserError where these are none."""
    left = episodes[read.skip_episodes :][: read.max_episodes or None]
    if episodes and not left:
        raise UserError(f"read.skip_episodes is {read.skip_episodes} of {len(episodes)} episodes; leave some.")
    return left


def existing(path: Path, looked_for: str, pattern: str, format: str) -> Path:
    """`path`, if it holds a file that matches `pattern`; else UserError.

    looked_for, format: what the file is called and the value of read.format, for the message.
    """
    if not path.is_dir():
        raise UserError(f"read.path: no folder {path}.")
    if next(path.glob(pattern), None) is None:
        raise UserError(
            f"{path} is no dataset of read.format={format}, as it has no {looked_for}; correct read.format or "
            "read.path."
        )
    return path


def episode_key(stem: str, number: int) -> str:
    """The key of a numbered episode: at most 60 allowed characters."""
    return f"{slug(stem, MAX_KEY - 10)}-{number:06d}"


def slug(text: str, longest: int) -> str:
    """`text` with only the characters that a key may have, at most `longest` of them.

    A text that is too long is cut and gets a digest of the whole. A text with letters of other scripts, which a key
    cannot have, gets a digest, too.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", text)
    if len(plain) <= longest and not re.search(r"[^\W_]", re.sub(r"[A-Za-z0-9]", "", text)):
        return plain
    return f"{plain[: longest - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def task_name(task: str, instruction: str) -> str:
    """A task's name for people: its sentence if the name was made of it and lost letters of other scripts."""
    return instruction if task == slug(instruction, MAX_KEY) else task


def chosen_views(read: ReadConfig, there: Sequence[str]) -> dict[str, str]:
    """Our name -> the dataset's name of each view to read.

    The config's read.views if it names any; else all views of the dataset, under their own names without dots. there:
    the dataset's views. Raises UserError for a view that does not exist.
    """
    if not read.images:
        return {}
    if read.views:
        if missing := [view for view in read.views.values() if view not in there]:
            raise UserError(f"read.views: no view `{missing[0]}` in {read.path}; it has {', '.join(there) or 'none'}.")
        return dict(read.views)
    names = {view.rsplit(".", 1)[-1].replace("/", "_"): view for view in there}
    if len(names) < len(there):
        raise UserError(
            f"{read.path}: some of the views {', '.join(there)} would share a name; name them in read.views."
        )
    return names


def cameras(there: Mapping[str, str], read: ReadConfig) -> tuple[list[str], list[Note]]:
    """The views of a dataset that are cameras, and a note about each that is none.

    there: view -> why it is no camera, empty if it is one. Raises UserError if read.views names one that is none.
    """
    notes = []
    for view, why in there.items():
        if why and view in read.views.values():
            raise UserError(f"read.views: `{view}` of {read.path} is {why}, not a camera's images; take it out.")
        if why and read.images:
            notes.append(Note("no_camera", f"`{view}` is {why}, not a camera's images, and is left out"))
    return [view for view, why in there.items() if not why], notes


def vectors(
    column: Mapping[str, np.ndarray], names: Sequence[str], units: VectorUnits, what: str
) -> tuple[np.ndarray, list[Note]]:
    """The named columns, joined and converted: float32 [T, S]. Also notes about the dataset's own numbers.

    what: state or action. Raises BadEpisode.
    """
    parts = []
    for name in names:
        values = column[name]
        if values.dtype.kind not in "fiub" or values.ndim not in (1, 2):
            raise BadEpisode(
                f"column {name} has dtype {values.dtype} and shape {values.shape}, not one vector of numbers a frame; "
                f"name another column in read.{what}."
            )
        parts.append(values.reshape(len(values), -1))
    if len({len(part) for part in parts}) > 1:
        lengths = ", ".join(f"{name} {len(part)}" for name, part in zip(names, parts, strict=True))
        raise BadEpisode(f"columns have different numbers of frames ({lengths}); repair or drop the episode.")
    joined_TD = np.concatenate(parts, axis=1)
    if joined_TD.shape[1] != len(units.names):
        raise BadEpisode(
            f"{' + '.join(names)} has {joined_TD.shape[1]} numbers a frame, but the robot file names "
            f"{len(units.names)} for the {what}; correct `names` in the robot file, or read.{what}."
        )
    if not np.isfinite(joined_TD).all():
        frame, dim = (int(index[0]) for index in np.nonzero(~np.isfinite(joined_TD)))
        raise BadEpisode(f"{what} is not finite at frame {frame}, dim {dim}; repair or drop the episode.")
    if len(joined_TD) < 2:
        raise BadEpisode(f"the episode has {len(joined_TD)} frame and needs at least 2; drop it.")
    try:
        return convert(joined_TD, units)[0], angle_notes(joined_TD, units, what)
    except ValueError as error:
        raise BadEpisode(f"{what}: {error}; repair or drop the episode.") from error


def sentence(text: str) -> str:
    """The task's words, trimmed. Raises BadEpisode if there are none."""
    words = " ".join(text.split())
    if len(words) > 1 and words[0] == words[-1] == '"' and '"' not in words[1:-1]:
        words = words[1:-1].strip()  # some converters quote the whole sentence
    if not words:
        raise BadEpisode("the episode has no task text, which becomes the clips' task; add it to the dataset.")
    return words


def as_jpeg(data: bytes, quality: int) -> bytes:
    """An encoded image as JPEG: a JPEG unchanged, a PNG encoded anew. Raises BadEpisode for any other data."""
    if data.startswith(JPEG):
        try:
            simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise BadEpisode(f"an image is a damaged JPEG ({error}); repair or drop the episode.") from error
        return data
    if data.startswith(PNG):
        if is_grey_16(data):
            raise BadEpisode(
                "an image is a PNG of one channel of 16 bits, as depth maps are; name the cameras in read.views."
            )
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if decoded is not None:
            return encode(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), quality)
    raise BadEpisode("an image is neither a JPEG nor a PNG that can be decoded; repair or drop the episode.")


def is_grey_16(data: bytes) -> bool:
    """Whether an encoded image is a PNG of one channel of 16 bits, as depth maps are."""
    return data.startswith(PNG) and data[PIXEL_KIND : PIXEL_KIND + 2] == GREY_16


def encode(image_HW3: np.ndarray, quality: int) -> bytes:
    """uint8 RGB [H, W, 3] as JPEG."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image_HW3), quality=quality)


def first_sizes(episode: Episode) -> dict[str, tuple[int, int]]:
    """View -> (height, width) of its first image. Raises BadEpisode."""
    return {view: jpeg_size(episode.frames(view, [0])[0]) for view in episode.views}


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """(height, width) in pixels. Raises BadEpisode for a damaged JPEG."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise BadEpisode(f"an image is a damaged JPEG ({error}); repair or drop the episode.") from error
    return int(height), int(width)


def check_size(view: str, frame: int, size: Sequence[int], usual: Sequence[int]) -> None:
    """Raises BadEpisode for an image of another size than the view's. size, usual: (height, width)."""
    if tuple(size) != tuple(usual):
        raise BadEpisode(
            f"{view}: the image of frame {frame} has {size[0]} x {size[1]} pixels, the others of this view have "
            f"{usual[0]} x {usual[1]}; resize it or drop the episode."
        )


def inspect(dataset: Dataset, episode: Episode, decode: bool) -> tuple[list[str], list[Note], dict[str, list[int]]]:
    """Faults, notes and image sizes of an episode that could be read. decode: decode every image to look at it."""
    notes = [*episode.notes, *table_notes(episode), *plausibility(episode)]
    sizes: dict[str, tuple[int, int]] = {}
    try:
        faults = [*joint_faults(episode.state, episode.robot), *dataset.video_faults(episode)]
        if not faults:
            sizes = dataset.image_sizes(episode)
        if decode and not faults:
            notes += image_notes(episode, sizes)
    except BadEpisode as error:
        faults = [str(error)]
    return faults, notes, {view: list(size) for view, size in sizes.items()}


def table_notes(episode: Episode) -> list[Note]:
    """Notes on the table: dims that never change, and a rate that is not the robot's."""
    notes = []
    robot = episode.embodiment
    for what, values_TD, spec in (("state", episode.state, robot.state), ("action", episode.action, robot.action)):
        still = [name for name, width in zip(spec.names, np.ptp(values_TD, axis=0), strict=True) if width == 0]
        if still:
            notes.append(Note(f"{what}_still", f"{what} never changes in {', '.join(still)}"))
    if abs(episode.fps - robot.control_hz) > 1e-3:
        text = f"{episode.fps:g} frames a second, but the robot file says control_hz {robot.control_hz:g}"
        notes.append(Note("rate", text))
    return notes


def image_notes(episode: Episode, sizes: Mapping[str, tuple[int, int]]) -> list[Note]:
    """Notes on frozen cameras and on views that show the same. Decodes every image.

    sizes: view -> size of its first image. Raises BadEpisode for an image that does not decode or has another size.
    """
    notes: list[Note] = []
    view_of: dict[tuple[bytes, ...], str] = {}
    numbers = range(0, len(episode), episode.frame_stride)
    for view in episode.views:
        frames, hashes = episode.frames(view, numbers), []
        for number in numbers:
            try:
                image_HW3 = simplejpeg.decode_jpeg(frames[number])
            except ValueError as error:
                raise BadEpisode(f"{view}: an image does not decode ({error}); repair or drop the episode.") from error
            check_size(view, number, image_HW3.shape[:2], sizes[view])
            hashes.append(hashlib.sha256(image_HW3.tobytes()).digest())
        same = sum(a == b for a, b in pairwise(hashes))
        if len(hashes) > 1 and same >= STILL_SHARE * (len(hashes) - 1):
            notes.append(Note("frozen", f"{view} is frozen: {same} of its {len(hashes)} images equal the one before"))
        if (shown := tuple(hashes)) in view_of:
            notes.append(Note("same_view", f"{view} shows the same as {view_of[shown]}"))
        view_of[shown] = view
    return notes


def stat_of(path: Path) -> list[int]:
    """Size and time of a file, for stamps; zeros if it does not exist."""
    if not path.is_file():
        return [0, 0]
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]
