"""Building: the kept clips of a dataset become three shard folders.

    la/     atomic clips without pixels; a sample starts at every frame
    vla/    the same clips under the same keys and spans, with images; a sample starts at every frame with an image
    task/   whole demonstrations with images and the task's sentence

The first frame of a clip must have an image, so every span starts at a multiple of the dataset's frame_stride. This
holds for la/ as well, because la/ and vla/ hold the same spans. `build.json` holds a fingerprint of everything the
output depends on; a build with the same fingerprint is skipped. A dataset without images gives la/ only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Dataset, Episode, Frames, named
from la4vla.construct.ledger import Ledger, LedgerRow, digest
from la4vla.construct.propose.candidates import candidate_key
from la4vla.construct.readers.checks import check_size, jpeg_size
from la4vla.data.shards.idle import Idle
from la4vla.data.shards.writer import WHOLE, Clip, ShardWriter, View, read_index
from la4vla.files import write_atomic
from la4vla.types import UserError

FOLDERS = ("la", "vla", "task")
FINGERPRINT = "build.json"

BUILD_VERSION = 5
"""Raised when the same kept clips would be written differently."""

EXPERT_QUALITY = 3.0
"""Quality of a whole successful demonstration on the annotators' scale of 0 to 3."""


def build(config: ConstructConfig, dataset: Dataset, kept: Ledger) -> None:
    """Writes out_dir/{la,vla,task} from the kept clips and prints a table of their contents.

    Raises UserError if nothing was kept or an episode can no longer be read.
    """
    wanted = set(dataset.keys)
    chosen = [row for row in kept if row["key"] in wanted]
    out = Path(config.out_dir)
    made_of = sorted(row["of"] for row in chosen)
    fingerprint = digest(BUILD_VERSION, config.shards, config.jpeg_quality, asdict(config.read.idle), made_of)
    if _is_built(out, fingerprint):
        print(f"{out}: up to date, nothing to build")
    else:
        (out / FINGERPRINT).unlink(missing_ok=True)
        about = {"fingerprint": fingerprint, **_write(config, out, dataset, {row["key"]: row for row in chosen})}
        write_atomic(out / FINGERPRINT, json.dumps(about, indent=1).encode())
    print(summary_table(out))


def clips(episode: Episode, row: LedgerRow) -> list[Clip]:
    """The kept clips of an episode, without images."""
    return [
        Clip(
            key=candidate_key(episode.key, item["start"]),
            instruction=item["instruction"],
            primitive=item["primitive"],
            object_status=item["status"],
            task=episode.instruction,
            episode=episode.key,
            span=(item["start"], item["end"]),
            fps=episode.fps,
            quality=item["quality"],
            state=episode.state[item["start"] : item["end"]],
            action=episode.action[item["start"] : item["end"]],
        )
        for item in row["kept"]
    ]


def task_clip(episode: Episode) -> Clip:
    """The whole episode as one clip with its task's sentence, without images."""
    return Clip(
        key=episode.key,
        instruction=episode.instruction,
        primitive=WHOLE,
        object_status="",
        task=episode.instruction,
        episode=episode.key,
        span=(0, len(episode)),
        fps=episode.fps,
        quality=EXPERT_QUALITY,
        state=episode.state,
        action=episode.action,
    )


def with_frames(clip: Clip, frames: dict[str, Frames]) -> Clip:
    """The clip with the images of its span. frames: of the episode; the clip counts them from its own frame 0."""
    start, end = clip.span
    inside = {
        view: {t - start: image for t, image in images.items() if start <= t < end} for view, images in frames.items()
    }
    return replace(clip, frames=inside)


def summary_table(out: Path) -> str:
    """A text table of what the folders hold, and how many frames of the demonstrations are in no atomic clip."""
    about = json.loads((out / FINGERPRINT).read_text())
    indexes = {name: read_index(out / name) for name in about["folders"]}
    lines = [f"{'folder':8}{'episodes':>9}{'clips':>8}{'frames':>9}{'frames/clip':>13}{'samples':>9}{'MB':>8}"]
    for name, index in indexes.items():
        keys = [key for shard in index.shards for key in shard.keys]
        episodes = len({key if name == "task" else key.rsplit("-", 1)[0] for key in keys})
        size_mb = sum(shard.size for shard in index.shards) / 1e6
        lines.append(
            f"{name:8}{episodes:>9}{index.clips:>8}{index.frames:>9}{index.frames / index.clips:>13.1f}"
            f"{index.samples:>9}{size_mb:>8.1f}"
        )
    for name, index in indexes.items():
        if index.left_out:
            lines.append(f"idle: {index.left_out} of {index.left_out + index.samples} samples of {name}/ are left out")
    if list(indexes) == ["la"]:
        lines.append("the dataset has no images: vla/ and task/ are not written, train with la/ alone")
    total = about["frames"]
    left = total - indexes["la"].frames
    share = f"{left} of {total} frames ({left / total:.1%})"
    lines.append(f"in no clip: {share}; these are waits, segments too short for a clip, and what the filter left out")
    lines.append("primitives: " + ", ".join(f"{name} {count}" for name, count in about["primitives"].items()))
    return "\n".join(lines)


def _write(config: ConstructConfig, out: Path, dataset: Dataset, kept: Mapping[str, LedgerRow]) -> dict[str, Any]:
    """Writes the folders. Returns their names, the frames of all episodes, and the number of clips by primitive."""
    keys = [key for key in dataset.keys if key in kept]
    if not any(kept[key]["kept"] for key in keys):
        raise UserError(f"{out}: no candidate was kept; lower filter.min_quality or review the candidates.")
    with named(keys[0]):
        first = dataset.read(keys[0])
        views = {view: _view(first, view) for view in first.views}
    shown = (views, first.frame_stride)
    shapes: dict[str, tuple[dict[str, View], int]] = {"la": ({}, 1), "vla": shown, "task": shown}
    folders = FOLDERS if views else FOLDERS[:1]
    if stale := [name for name in FOLDERS if name not in folders and (out / name).exists()]:
        raise UserError(
            f"{out / stale[0]} is left from a build with images, and this build has none; remove the folder or set "
            "another out_dir."
        )
    counts, total = Counter[str](), 0
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                ShardWriter(out / name, first.embodiment, *shapes[name], config.shards, True, _idle(config))
            )
            for name in folders
        }
        for key in tqdm(keys, desc="building shards", unit="episode"):
            with named(key):
                episode = dataset.read(key)
                _check_like(episode, first)
                numbers = range(0, len(episode), episode.frame_stride)
                frames = {view: episode.frames(view, numbers) for view in episode.views}
                for view, images in frames.items():
                    for number, image in images.items():
                        check_size(view, number, jpeg_size(image), (views[view].height, views[view].width))
            for clip in clips(episode, kept[key]):
                writers["la"].add(clip)
                if views:
                    writers["vla"].add(with_frames(clip, frames))
                counts[clip.primitive] += 1
            if views:
                writers["task"].add(with_frames(task_clip(episode), frames))
            total += len(episode)
    return {"folders": list(folders), "frames": total, "primitives": dict(counts.most_common())}


def _idle(config: ConstructConfig) -> Idle | None:
    """Which samples are left out; None: all stay."""
    idle = config.read.idle
    unit: Literal["raw", "normalized"] = "normalized" if idle.unit == "normalized" else "raw"
    which: Literal["any", "first"] = "first" if idle.which == "first" else "any"
    return Idle(idle.threshold, unit, tuple(idle.dims), idle.frames, which) if idle.threshold else None


def _check_like(episode: Episode, first: Episode) -> None:
    """Raises UserError unless both episodes have one robot and the same views, as all clips of a shard folder must."""
    if (episode.embodiment, episode.views, episode.frame_stride) != (first.embodiment, first.views, first.frame_stride):
        raise UserError(
            f"{episode.key} has another robot, other views or another frame_stride than {first.key}; keep them in "
            "separate datasets."
        )


def _view(episode: Episode, view: str) -> View:
    return View(*jpeg_size(episode.frames(view, [0])[0]), camera=view)


def _is_built(out: Path, fingerprint: str) -> bool:
    path = out / FINGERPRINT
    if not path.is_file():
        return False
    about = json.loads(path.read_text())
    return about["fingerprint"] == fingerprint and all(
        (out / name / "index.json").is_file() for name in about["folders"]
    )
