"""Building: an episode store becomes three shard folders.

    la/     atomic clips without pixels; a sample starts at every frame
    vla/    the same clips under the same keys and spans, with pictures; samples start where pictures are
    task/   whole demonstrations with pictures and the task's sentence

A clip's own frame 0 must have a picture, so all spans start at multiples of the store's frame_stride, in la/ too: the
two are matched. `build.json` holds a fingerprint of everything the output depends on (labeller version, settings, and
the sha256 of every episode file); a build whose fingerprint is there already is skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import simplejpeg
from tqdm import tqdm

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Episode, Frames, episode_path, read_episode, write_atomic
from la4vla.construct.keyframes import detect
from la4vla.construct.propose import QUALITY, propose
from la4vla.construct.record import kept_episodes
from la4vla.construct.vocabulary import contradictions, lint
from la4vla.data.shards import Clip, ShardWriter, View, read_index
from la4vla.rng import RngUse, generator
from la4vla.types import UserError

FOLDERS = ("la", "vla", "task")
FINGERPRINT = "build.json"

LABELLER_VERSION = 2
"""Counts changes of what the same episodes and settings are cut and labelled into."""

EXPERT_QUALITY = 3.0
"""What a whole successful demonstration carries on the annotators' scale of 0..3."""


def build(config: ConstructConfig) -> None:
    """Writes out_dir/{la,vla,task} from the kept episodes of the store and prints a table of what they hold.

    Raises UserError if the store has fewer episodes than the config wants, or a file of it is damaged.
    """
    paths = _episode_paths(config)
    out, fingerprint = Path(config.out_dir), _fingerprint(config, paths)
    if _is_built(out, fingerprint):
        print(f"{out}: up to date, nothing to build")
    else:
        (out / FINGERPRINT).unlink(missing_ok=True)
        primitives = _write(config, out, paths)
        about = {"fingerprint": fingerprint, "primitives": primitives}
        write_atomic(out / FINGERPRINT, json.dumps(about, indent=1).encode())
    print(table(out))


def cut(episode: Episode, config: ConstructConfig) -> list[Clip]:
    """The atomic clips of an episode, without pictures. Waits and what is shorter than `min_clip_frames` are in none of
    them (propose); `table` says how many frames that is."""
    spec = episode.embodiment.state
    proposals = propose(
        episode.state,
        episode.action,
        episode.embodiment,
        detect(episode.state, spec, config.keyframes),
        config.propose,
        episode.frame_stride,
        generator(config.record.seed, RngUse.WORDING, episode.key),
    )
    clips = []
    for item in proposals:
        faults = lint(item.instruction) + contradictions(item.instruction, np.array(item.displacement))
        assert not faults, (episode.key, item, faults)
        clips.append(
            Clip(
                key=f"{episode.key}-{item.start:05d}",
                instruction=item.instruction,
                primitive=item.primitive,
                object_status=item.status,
                task=episode.task,
                episode=episode.key,
                span=(item.start, item.end),
                fps=episode.fps,
                quality=QUALITY,
                state=episode.state[item.start : item.end],
                action=episode.action[item.start : item.end],
            )
        )
    return clips


def whole(episode: Episode) -> Clip:
    """The episode as one clip with its task's sentence, without pictures."""
    return Clip(
        key=episode.key,
        instruction=episode.instruction,
        primitive="task",
        object_status="",
        task=episode.task,
        episode=episode.key,
        span=(0, len(episode)),
        fps=episode.fps,
        quality=EXPERT_QUALITY,
        state=episode.state,
        action=episode.action,
    )


def with_frames(clip: Clip, frames: dict[str, Frames]) -> Clip:
    """The clip with the pictures of its span, counted from its own frame 0."""
    start, end = clip.span
    inside = {
        view: {t - start: image for t, image in images.items() if start <= t < end} for view, images in frames.items()
    }
    return replace(clip, frames=inside)


def table(out: Path) -> str:
    """What the three folders hold, and how much of the demonstrations is in no atomic clip, as text."""
    indexes = {name: read_index(out / name) for name in FOLDERS}
    lines = [f"{'folder':8}{'episodes':>9}{'clips':>8}{'frames':>9}{'frames/clip':>13}{'samples':>9}{'MB':>8}"]
    for name, index in indexes.items():
        keys = [key for shard in index.shards for key in shard.keys]
        episodes = len({key if name == "task" else key.rsplit("-", 1)[0] for key in keys})
        size_mb = sum(shard.size for shard in index.shards) / 1e6
        lines.append(
            f"{name:8}{episodes:>9}{index.clips:>8}{index.frames:>9}{index.frames / index.clips:>13.1f}"
            f"{index.samples:>9}{size_mb:>8.1f}"
        )
    total = indexes["task"].frames
    left = total - indexes["la"].frames
    lines.append(f"in no clip: {left} of {total} frames ({left / total:.1%}), waits and segments too short for one")
    counts = json.loads((out / FINGERPRINT).read_text())["primitives"]
    lines.append("primitives: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return "\n".join(lines)


def _write(config: ConstructConfig, out: Path, paths: Sequence[Path]) -> dict[str, int]:
    """Writes the three folders. Returns primitive -> number of atomic clips, the most frequent first."""
    first = read_episode(paths[0])
    views = {view: _view(first, view) for view in first.views}
    stride, embodiment = first.frame_stride, first.embodiment
    counts = Counter[str]()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        la, vla, task = (
            stack.enter_context(ShardWriter(out / name, embodiment, shown, steps, config.shards, overwrite=True))
            for name, shown, steps in zip(FOLDERS, ({}, views, views), (1, stride, stride), strict=True)
        )
        for episode in tqdm(_episodes(paths, first), desc="building shards", unit="episode", total=len(paths)):
            frames = {view: episode.frames(view) for view in episode.views}
            for clip in cut(episode, config):
                la.add(clip)
                vla.add(with_frames(clip, frames))
                counts[clip.primitive] += 1
            task.add(with_frames(whole(episode), frames))
    return dict(counts.most_common())


def _episodes(paths: Sequence[Path], like: Episode) -> Iterator[Episode]:
    """The episodes; all must be of one robot with the same views, as a shard folder is."""
    for path in paths:
        episode = read_episode(path)
        if (episode.embodiment, episode.views, episode.frame_stride) != (
            like.embodiment,
            like.views,
            like.frame_stride,
        ):
            raise UserError(
                f"{path}: another robot, view or frame_stride than {like.key}; keep them in separate stores."
            )
        yield episode


def _view(episode: Episode, view: str) -> View:
    height, width, _, _ = simplejpeg.decode_jpeg_header(episode.frames(view)[0])
    return View(int(height), int(width), camera=view)


def _episode_paths(config: ConstructConfig) -> list[Path]:
    store, settings = Path(config.episodes_dir), config.record
    paths = []
    for task in settings.tasks:
        numbers = kept_episodes(store, task, settings)
        if len(numbers) < settings.episodes:
            raise UserError(
                f"{store}: {len(numbers)} of {settings.episodes} episodes of {task}; record the rest first."
            )
        paths += [episode_path(store, task, number) for number in numbers]
    if not paths:
        raise UserError("record.tasks is empty; name the tasks whose episodes become shards.")
    return paths


def _fingerprint(config: ConstructConfig, paths: Sequence[Path]) -> str:
    settings = {
        "labeller": LABELLER_VERSION,
        "keyframes": asdict(config.keyframes),
        "propose": asdict(config.propose),
        "shards": config.shards,
        "seed": config.record.seed,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in paths:
        digest.update(f"{path.parent.name}/{path.name}".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_built(out: Path, fingerprint: str) -> bool:
    path = out / FINGERPRINT
    if not path.is_file() or not all((out / name / "index.json").is_file() for name in FOLDERS):
        return False
    return json.loads(path.read_text())["fingerprint"] == fingerprint
