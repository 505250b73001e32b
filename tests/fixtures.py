"""Small synthetic shard folders for the tests of every room: seeded, quick, images that say which frame they are."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch

from la4vla.config import DataConfig, RunConfig, SourceConfig, StageConfig, TrainConfig
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.texts import StoredImage, TextRecord, TextWriter
from la4vla.data.shards.writer import Clip, Index, ShardWriter, View, read_index
from la4vla.types import NOT_COUNTED, Embodiment, InputSpec, TextBatch, TextRow, Turn, UserError, VectorSpec

ARM = Embodiment(
    "test_arm",
    10.0,
    state=VectorSpec(("x", "y", "z", "gripper"), "absolute"),
    action=VectorSpec(("x", "y", "z", "gripper"), "delta"),
)
POSE = Embodiment(
    "test_pose",
    15.0,
    state=VectorSpec(("x", "y", "z", "rx", "ry", "rz", "gripper"), "absolute", rotation="euler_xyz"),
    action=VectorSpec(("x", "y", "z", "rx", "ry", "rz", "gripper"), "absolute", rotation="euler_xyz"),
)
DIRECTIONS = ("left", "right", "up", "down", "forward")


def image(number: int, height: int, width: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] whose upper left quarter is dark (so that flips show) and whose colour tells `number`."""
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[:] = [(37 * number) % 200 + 40, (91 * number) % 200 + 40, (53 * number) % 200 + 40]
    picture[: height // 2, : width // 2] = 0
    return picture


def make_clip(
    number: int,
    length: int,
    embodiment: Embodiment = ARM,
    views: Mapping[str, View] | None = None,
    frame_stride: int = 1,
    instruction: str | None = None,
) -> Clip:
    """Clip `number`: seeded values in [-1, 1]; action dim 0 holds number + frame / 1000, to tell frames apart."""
    draw = np.random.Generator(np.random.Philox(number))
    state = draw.uniform(-1, 1, (length, len(embodiment.state.names))).astype(np.float32)
    action = draw.uniform(-1, 1, (length, len(embodiment.action.names))).astype(np.float32)
    action[:, 0] = number + np.arange(length) / 1000
    direction = DIRECTIONS[number % len(DIRECTIONS)]
    return Clip(
        key=f"clip-{number:05d}",
        instruction=instruction or f"Move the gripper {direction}.",
        primitive="move" if number % 2 else "lift",
        object_status="EMPTY" if number % 2 else "HOLDING",
        task="test",
        episode=f"episode-{number // 3}",
        span=(0, length),
        fps=embodiment.control_hz,
        quality=3.0,
        state=state,
        action=action,
        frames={
            name: {
                t: simplejpeg.encode_jpeg(image(number + t, view.height, view.width), quality=90)
                for t in range(0, length, frame_stride)
            }
            for name, view in (views or {}).items()
        },
    )


def write_shards(
    folder: Path,
    clips: int | Sequence[Clip] = 16,
    shards: int = 4,
    views: Mapping[str, View] | Sequence[str] = (),
    frame_stride: int = 1,
    embodiment: Embodiment = ARM,
    image_size: int = 16,
) -> Index:
    """A shard folder of `clips` clips (a number: made by make_clip with lengths 5 to 11, or the clips themselves)."""
    named = views if isinstance(views, Mapping) else {name: View(image_size, image_size) for name in views}
    if isinstance(clips, int):
        clips = [make_clip(number, 5 + (3 * number) % 7, embodiment, named, frame_stride) for number in range(clips)]
    with ShardWriter(folder, embodiment, named, frame_stride, shards) as writer:
        for clip in clips:
            writer.add(clip)
        return writer.close()


def make_text(number: int, images: int | None = None, image_size: int = 16) -> TextRecord:
    """Row `number`: a question about 0 to 2 images (unless told how many), with answers of different lengths."""
    count = number % 3 if images is None else images
    shown = tuple(
        StoredImage("front", t, simplejpeg.encode_jpeg(image(number + t, image_size, image_size), quality=90))
        for t in range(count)
    )
    answer = " ".join([f"answer {number}", *["again"] * (number % 4)])
    return TextRecord(
        key=f"row-{number:05d}",
        turns=(Turn("user", f"What is {number}?", tuple(range(count))), Turn("assistant", answer)),
        images=shown,
        question="next" if number % 2 else "scene",
        task="test",
        episode=f"episode-{number // 3}",
        span=(0, 5) if number % 2 else None,
        instruction="Move the gripper left." if number % 2 else "",
    )


def write_texts(
    folder: Path, rows: int | Sequence[TextRecord] = 16, shards: int = 4, robot: Embodiment | None = ARM
) -> Index:
    """A folder of `rows` conversations (a number: made by make_text, or the rows themselves)."""
    with TextWriter(folder, shards, robot) as writer:
        for row in map(make_text, range(rows)) if isinstance(rows, int) else rows:
            writer.add(row)
        return writer.close()


class WordEncoder:
    """A stand-in for a model's TextEncoder: a token a word, 4 of id 1 an image; images as they are, pixels first."""

    LONGEST = 64

    def prepare(self, row: TextRow) -> tuple[str, list[int], list[int], list[np.ndarray]]:
        ids: list[int] = []
        labels: list[int] = []
        for turn in row.turns:
            said = [1] * 4 * len(turn.images) + [100 + sum(word.encode()) % 900 for word in turn.text.split()]
            ids += said
            labels += said if turn.role == "assistant" else [NOT_COUNTED] * len(said)
        if len(ids) > self.LONGEST:
            raise UserError(f"{row.key}: {len(ids)} tokens, and the model takes {self.LONGEST}; shorten the row.")
        return row.key, ids, labels, list(row.images)

    def batch(self, prepared: Sequence[tuple[str, list[int], list[int], list[np.ndarray]]]) -> TextBatch:
        length = max(len(ids) for _, ids, _, _ in prepared)
        rows = [[*ids, *[0] * (length - len(ids))] for _, ids, _, _ in prepared]
        labels = [[*given, *[NOT_COUNTED] * (length - len(given))] for _, _, given, _ in prepared]
        images = [torch.from_numpy(image).permute(2, 0, 1) for _, _, _, shown in prepared for image in shown]
        counts = torch.tensor([len(shown) for _, _, _, shown in prepared])
        return TextBatch(
            kind="text",
            input_ids_BL=torch.tensor(rows),
            text_mask_BL=torch.tensor(rows) != 0,
            labels_BL=torch.tensor(labels),
            answer_index=(torch.tensor(labels).flatten() != NOT_COUNTED).nonzero().flatten(),
            images={"pixel_values": torch.stack(images), "image_counts": counts} if images else {},
            keys=tuple(key for key, _, _, _ in prepared),
        )


def spoil(folder: Path, key: str, what: str, frame: int, dim: int, value: float) -> None:
    """Writes a number into a clip of a folder as another hand would that makes shards: the index's sums are right, its
    statistics are not touched."""
    index = read_index(folder)
    number = next(number for number, shard in enumerate(index.shards) if key in shard.keys)
    clip = next(clip for clip in read_shard(index, number, ()) if clip.key == key)
    arrays = {"state": clip.state.copy(), "action": clip.action.copy()}
    arrays[what][frame, dim] = value
    written = io.BytesIO()
    np.savez(written, **arrays)
    path = folder / index.shards[number].name
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{key}.npz")
    assert member.size == len(written.getvalue())
    data = bytearray(path.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = written.getvalue()
    path.write_bytes(data)
    raw = json.loads((folder / "index.json").read_text())
    raw["shards"][number]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "index.json").write_text(json.dumps(raw))


SPEC = InputSpec(
    image_size=16,
    image_tokens=4,
    horizon=6,
    state_dim=8,
    action_dim=8,
    max_tokens=64,
    image_token_id=1,
    pad_token_id=0,
)


def encode(instruction: str, slots: tuple[int, ...]) -> list[int]:
    """A stand-in for the tokenizer: `10 + slot`, the image tokens, for each view; then a token a word."""
    images = [token for slot in slots for token in (10 + slot, *[SPEC.image_token_id] * SPEC.image_tokens)]
    return [*images, *(100 + sum(word.encode()) % 900 for word in instruction.split())]


def train_config(
    sources: Mapping[str, tuple[Path | str, str]],
    mixture: Mapping[str, float] | None = None,
    steps: int = 6,
    global_batch: int = 16,
    micro_batch: int = 4,
    streams: int = 4,
) -> TrainConfig:
    """A one-stage config over sources: name -> (folder, kind); they share the mixture evenly unless told."""
    stage = StageConfig(
        mixture=dict(mixture or dict.fromkeys(sources, 1.0)),
        steps=steps,
        global_batch=global_batch,
        micro_batch=micro_batch,
    )
    opened = {name: SourceConfig(path=str(path), kind=kind) for name, (path, kind) in sources.items()}
    data = DataConfig(sources=opened, streams=streams, decode_threads=2)
    return TrainConfig(run=RunConfig(dir="unused"), data=data, stages={"first": stage})
