"""`la4vla data preview DIR`: one HTML page that shows what a shard folder holds, with clips drawn by chance."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from la4vla.data.inspect.contents import Label, contents
from la4vla.data.inspect.conversations import preview_texts
from la4vla.data.inspect.describe import estimated_tokens
from la4vla.data.shards.index import Index, read_index
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import Clip
from la4vla.page import page
from la4vla.page.strips import Example, Plot, plot, strip
from la4vla.rng import RngUse, generator
from la4vla.types import TRANSLATION, UserError, VectorSpec

PAGE = "preview.html"
CLIPS = 24
SEED = 0  # the same folder gives the same page
TEMPLATES = Path(__file__).parent / "templates"


def preview(location: str, out: str = "") -> Path:
    """Writes the page of a shard folder (local path, URL or pipe:) to `out`, or into the folder, and returns its path.

    Shards are read once; images only of those shards that hold a clip to be shown. Raises UserError for a folder that
    cannot be read, that holds no clip, or that is not local while `out` is empty.
    """
    index = read_index(location, None)
    if not index.clips:
        raise UserError(f"{location}: holds no clip; write clips into it.")
    if not out and not Path(location).is_dir():
        raise UserError(f"{location}: no local folder to write to; say `la4vla data preview {location} OUT.html`.")
    target = Path(out) if out else Path(location) / PAGE
    if index.holds == "texts":
        page.write(target, preview_texts(index, estimated_tokens))
        return target
    labels, episodes, shown = _read(index)
    size = sum(shard.size for shard in index.shards)
    folder = {
        "embodiment": index.embodiment.name,
        "hz": index.embodiment.control_hz,
        "views": [f"{name} {view.height} x {view.width}" for name, view in index.views.items()],
        "frame_stride": index.frame_stride,
        "shards": len(index.shards),
        "samples": index.samples,
        "mib": size / 2**20,
        "episodes": episodes,
    }
    values = {"title": location, "folder": folder, "content": contents(labels), "examples": shown}
    page.write(target, page.render(TEMPLATES, "preview.html.j2", values))
    return target


def _read(index: Index) -> tuple[list[Label], int, list[Example]]:
    """Labels of all clips, the number of their episodes, and the examples."""
    drawn = _drawn(index)
    labels: list[Label] = []
    episodes: set[str] = set()
    shown: list[Example] = []
    for number in tqdm(range(len(index.shards)), desc="reading", unit="shard", disable=None):
        of_shard = drawn.get(number, set())
        for clip in read_shard(index, number, tuple(index.views) if of_shard else ()):
            labels.append(
                Label(clip.primitive, clip.object_status, clip.instruction, len(clip), clip.fps, clip.quality)
            )
            episodes.add(clip.episode)
            if clip.key in of_shard:
                shown.append(_example(clip, index.embodiment.state))
    return labels, len(episodes), shown


def _drawn(index: Index) -> dict[int, set[str]]:
    """Shard number -> keys of its clips that are shown."""
    places = [(number, key) for number, shard in enumerate(index.shards) for key in shard.keys]
    chosen = generator(SEED, RngUse.EXAMPLES).permutation(len(places))[:CLIPS]
    drawn: dict[int, set[str]] = {}
    for place in chosen:
        number, key = places[place]
        drawn.setdefault(number, set()).add(key)
    return drawn


def _example(clip: Clip, spec: VectorSpec) -> Example:
    about = (clip.object_status, clip.task, f"{len(clip) / clip.fps:.2f} s", f"quality {clip.quality:g}")
    return Example(
        key=clip.key,
        title=clip.primitive or "(none)",
        instruction=clip.instruction,
        about=tuple(fact for fact in about if fact),
        strips=tuple(strip(view, pictures) for view, pictures in clip.frames.items()),
        plot=_plot(clip, spec),
    )


def _plot(clip: Clip, spec: VectorSpec) -> Plot:
    """Of x, y and z where the state has them, of all its dimensions but the gripper otherwise."""
    dims = spec.dims(*TRANSLATION) or [dim for dim, name in enumerate(spec.names) if name != "gripper"]
    unit = spec.unit if spec.dims(*TRANSLATION) else ""
    return plot(clip.state[:, dims], [spec.names[dim] for dim in dims], unit, spec.opening(clip.state))
