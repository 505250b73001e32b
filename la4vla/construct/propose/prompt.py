"""The prompt of the VLM proposer: what a model is told and shown of one episode (FACTS 1.3.3, paper 7.3).

Owns the sentences, the schema of the answer and the choice and size of the images. Pure functions; nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg

from la4vla.chat.conversation import Message, Part, complaint, image_part, text_part, video_part
from la4vla.config import VlmConfig
from la4vla.construct.episodes import BadEpisode, Episode
from la4vla.construct.propose.keyframes import Keyframe, prompt_lines
from la4vla.construct.vocabulary import DIRECTION_SPELLINGS, NEUTRAL, PRIMITIVES, VERBS
from la4vla.types import UserError

LABELS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("grasp", "place", "lift", "lower", "transport", "wrist_rotate")},
    "reorient": ("reorient", "reorient_free"),
    **{name: (name,) for name in ("push", "pull", "press", "move")},
    "rotate": ("rotate_free",),
    "wait": ("wait",),
}
"""The 13 words of the paper's prompt -> the primitives they may mean (vocabulary.canonical tells which)."""

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "segments": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "subaction": {"type": "string", "enum": list(LABELS)},
                    "status": {"type": "string", "enum": ["HOLDING", "EMPTY"]},
                    "instruction": {"type": "string"},
                    "start": {"type": "number"},
                    "end": {"type": "number"},
                },
                "required": ["subaction", "status", "instruction", "start", "end"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["segments"],
    "additionalProperties": False,
}
"""JSON schema of the answer: the paper's list, with the object's status, inside an object as strict endpoints want."""

_ROLE = """\
You cut a robot demonstration into short atomic actions. Watch all views together: they show the same moments from
different places, and what one hides another may show. Cover the demonstration from its start to its end in order of
time, without overlaps."""

_ASSIGNMENT = """\
Which label:
- One label a segment, that of its main physical effect. A side effect may be mentioned in the instruction.
- Gripper closes on or lets go of an object: grasp, place. These are short.
- Object in the gripper: lift or lower if it mostly goes up or down, transport if it mostly goes sideways, wrist_rotate
  if it turns about the tool's axis, reorient if it is brought upright, flat, vertical or horizontal.
- Object moved or pressed without being held: push away from the gripper, pull toward it, press downward.
- Nothing held and nothing touched: move, rotate, reorient. Nothing happens: wait.
- A new segment starts where the task phase, the contact or the main direction changes, nowhere else."""

_STATUS = """\
Object status: HOLDING if the gripper holds an object at the end of the segment, else EMPTY."""

_DIRECTIONS = """\
Directions are the robot's own, seen from its base and not from a camera: forward is away from its base, left is its own
left, up is against gravity."""

_INSTRUCTION = """\
The instruction of a segment is one short imperative sentence that somebody without any picture could follow: type of
action, direction, and if it helps whether the object is held. Say "the object" and "the gripper". Never say what the
object is, its colour, shape, material or size. Never name other things or places of the scene, nor cameras."""

_GRANULARITY = """\
How fine: "place cup" is five segments, move, grasp, lift, transport, place. "open drawer" is move, grasp, pull, place.
"press button" is move, press, move. "turn bottle upright" is move, grasp, lift, reorient, lower, place. A grasp takes
about a second, a transport or reorient may take several."""

_OUTPUT = """\
Answer with JSON only, times in seconds:
{"segments": [{"subaction": "lift", "status": "HOLDING", "instruction": "lift the object upward while holding it", \
"start": 3.50, "end": 5.00}]}"""

_ARMS = """\
The robot has two arms, left and right as it sees them itself. Begin every instruction with the arm that acts: "with the
left arm, ...", "with the right arm, ...", or "with both arms, ..." if both do the same. If they do different things at
once, that is one segment: "with the left arm, ..., and with the right arm, ...". A new segment starts also where the
other arm begins or ends a motion. Status is HOLDING if either gripper holds an object at the end."""

_LEAST_FRAMES = 4  # shown of a short episode; Qwen's endpoints refuse videos of fewer frames
_JPEG_QUALITY = 90


def system_text() -> str:
    """The part of the prompt that is the same for every episode."""
    return "\n\n".join(
        (_ROLE, labels_text(), _ASSIGNMENT, _STATUS, _DIRECTIONS, _INSTRUCTION, words_text(), _GRANULARITY, _OUTPUT)
    )


def words_text() -> str:
    """All words that vocabulary.lint allows, so that no segment is lost because the model chose a synonym."""
    return "Use no words but these: " + " ".join(sorted(VERBS | NEUTRAL | DIRECTION_SPELLINGS.keys()))


def labels_text() -> str:
    """The labels, each with its definition."""
    lines = [f"- {label}: {' '.join(PRIMITIVES[name].definition for name in names)}" for label, names in LABELS.items()]
    return "\n".join(["Labels:", *lines])


def episode_text(instruction: str, seconds: float, views: Sequence[str], hints: Sequence[str]) -> str:
    """Task, length, views and keyframes of an episode. hints: lines made by keyframes.prompt_lines."""
    lines = [
        f"Task of the whole demonstration: {instruction}",
        f"It takes {seconds:.2f} s and is shown in {len(views)} view{'s' * (len(views) > 1)}: {', '.join(views)}.",
    ]
    if hints:
        lines += ["The robot's state suggests these moments. They are hints, not boundaries:", *hints]
    return "\n".join(lines)


def shown_frames(frames: int, fps: float, stride: int, shown_fps: float) -> list[int]:
    """The frames that the model sees, ascending: `shown_fps` a second, at least 4, each a multiple of `stride`.

    frames, fps: length and rate of the episode. An episode that has fewer than 4 images is shown with all it has.
    """
    count = max(int((frames - 1) / fps * shown_fps + 1e-6) + 1, _LEAST_FRAMES)
    step = min(fps / shown_fps, (frames - 1) / max(count - 1, 1))
    last = (frames - 1) // stride
    return sorted({min(round(number * step / stride), last) * stride for number in range(count)})


def fitted(height: int, width: int, config: VlmConfig) -> tuple[int, int]:
    """Height and width in pixels at which an image is shown.

    The largest size within vlm.height and vlm.width that keeps the image's proportions; no bars are added.
    """
    scale = min(config.height / height, config.width / width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resized(jpeg: bytes, config: VlmConfig) -> bytes:
    """A camera's JPEG at the size at which it is shown. Raises ValueError if it is no JPEG."""
    image_HW3 = simplejpeg.decode_jpeg(jpeg)
    own_height, own_width, _ = image_HW3.shape
    height, width = fitted(own_height, own_width, config)
    method = cv2.INTER_AREA if height < own_height else cv2.INTER_CUBIC
    resized_HW3 = cv2.resize(image_HW3, (width, height), interpolation=method)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(resized_HW3), quality=_JPEG_QUALITY)


def messages(episode: Episode, keyframes: Sequence[Keyframe], config: VlmConfig) -> list[Message]:
    """The beginning of the conversation: the system's message, and the user's with text and images.

    Raises UserError for an episode without views, BadEpisode for an image that does not decode.
    """
    check_views(episode)
    hints = prompt_lines(keyframes, episode.fps)
    text = episode_text(episode.instruction, len(episode) / episode.fps, episode.views, hints)
    if episode.robot.arms:
        text = f"{text}\n\n{_ARMS}"
    content = [text_part(text)]
    numbers = shown_frames(len(episode), episode.fps, episode.frame_stride, config.fps)
    for view in episode.views:
        content += view_parts(view, episode, numbers, config)
    return [{"role": "system", "content": system_text()}, {"role": "user", "content": content}]


def check_views(episode: Episode) -> None:
    """Raises UserError for an episode without views."""
    if not episode.views:
        raise UserError(
            f"{episode.key} has no images, and proposer=vlm looks at them; set read.images=true or proposer=kinematic."
        )


def again(answer: str, problems: Sequence[str], frames: int, fps: float) -> list[Message]:
    """The messages that follow an unusable answer. frames, fps: length and rate of the episode."""
    text = "\n".join(
        [
            "That answer cannot be used:",
            *(f"- {problem}" for problem in problems),
            f"The demonstration has {frames} frames, {fps:g} a second. Answer again with the whole JSON, nothing else.",
        ]
    )
    return complaint(answer, text)


def view_parts(view: str, episode: Episode, numbers: Sequence[int], config: VlmConfig) -> list[Part]:
    """A view's label and its images with their times, as one video or as single images."""
    frames = episode.frames(view, numbers)
    try:
        images = [resized(frames[number], config) for number in numbers]
    except ValueError as error:
        raise BadEpisode(
            f"{episode.key}: an image of view {view} does not decode ({error}); read.decode=true finds such episodes."
        ) from error
    if config.frames_as == "video":
        # A single image has no rate of its own; any rate will do.
        shown = (len(numbers) - 1) / (numbers[-1] - numbers[0]) * episode.fps if len(numbers) > 1 else config.fps
        return [text_part(f"View {view}, one frame every {1 / shown:.2f} s from 0.00 s on:"), video_part(images, shown)]
    parts = [text_part(f"View {view}:")]
    for number, image in zip(numbers, images, strict=True):
        parts += [text_part(f"{number / episode.fps:.2f} s"), image_part(image)]
    return parts
