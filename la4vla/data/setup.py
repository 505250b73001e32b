"""What a run's config means for its data: sources opened, views given slots, and what is made of each robot.

`prepare` (and `prepare_texts`, for a model that only writes) is where bad input of a run surfaces, before a model is
built: a folder that is none or of another kind, an unknown view, embodiments that differ under one name, too few
shards for the streams, statistics that do not fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from la4vla.config import DataConfig, TrainConfig
from la4vla.data.collate import Encode
from la4vla.data.groups import Groups, make_groups
from la4vla.data.normalize import STATS, FolderStats
from la4vla.data.order import Stream, make_streams
from la4vla.data.robots import RobotSetup, make_robots, one_embodiment
from la4vla.data.shards.index import Index, read_index, read_stats
from la4vla.data.shards.read import clip_places
from la4vla.levels import LEVELS, Levels
from la4vla.manifest import Checkpoint, TrainedRobot
from la4vla.types import KINDS, InputSpec, Kind, TextEncoder, UserError


@dataclass(frozen=True)
class Source:
    """A shard folder of clips, used as one kind.

    stats   what the folder says of its values
    views   those it shows, in slot order; empty for `la`, and for `contrast` without vision
    levels  what of its two levels of language a sample is told
    """

    name: str
    kind: Kind | Literal["contrast"]
    index: Index
    stats: FolderStats
    views: tuple[str, ...]
    levels: Levels
    streams: tuple[Stream, ...]

    @property
    def sample_kind(self) -> Kind:
        """Of its samples."""
        if self.kind == "contrast":
            return "vla" if self.views else "la"
        return self.kind


@dataclass(frozen=True)
class TextSource:
    """A shard folder of conversations."""

    name: str
    kind: Literal["text"]
    index: Index
    streams: tuple[Stream, ...]


@dataclass(frozen=True)
class Setup:
    """What a run reads, and what it makes of it. Only what some stage mixes is in it.

    sources  of clips, in the order of the config
    texts    of conversations, likewise
    robots   of the sources of clips, by the names of their embodiments; the first source's is the first
    encoder  what turns conversations into batches; None where there are none
    groups   of each source of kind `contrast`; with them no source is of another kind
    """

    sources: Mapping[str, Source]
    texts: Mapping[str, TextSource]
    robots: Mapping[str, RobotSetup]
    encoder: TextEncoder | None
    groups: Mapping[str, Groups] = field(default_factory=dict)

    @property
    def every_source(self) -> dict[str, Source | TextSource]:
        return {**self.sources, **self.texts}

    def robot_of(self, source: Source) -> RobotSetup:
        return self.robots[source.index.embodiment.name]

    @property
    def only_robot(self) -> RobotSetup:
        """Of a run whose learner takes one."""
        (robot,) = self.robots.values()
        return robot

    @property
    def trained_robots(self) -> tuple[TrainedRobot, ...]:
        """What a checkpoint says of the robots."""
        return tuple(robot.trained(view_sizes(self, name)) for name, robot in self.robots.items())


def prepare(
    config: TrainConfig,
    spec: InputSpec,
    encode: Encode,
    inherited: Checkpoint | None = None,
    own: bool = False,
    encoder: TextEncoder | None = None,
) -> Setup:
    """Opens the sources of a run. Raises UserError for anything in them that does not fit together.

    inherited: the checkpoint that the run goes on from or takes its weights from. own: it is this run's.
    encoder: for conversations; None: the model cannot write.
    """
    indexes = _indexes(config)
    of_texts = [name for name in indexes if config.data.sources[name].kind == "text"]
    if of_texts and encoder is None:
        raise UserError(
            f"{of_texts[0]} is a source of conversations (kind text), and this model has no language head that could "
            "learn them; take it out of the mixture."
        )
    texts = {name: _text_source(config, name, indexes.pop(name)) for name in of_texts}
    if not indexes:
        return Setup({}, texts, {}, encoder)
    views = {
        name: () if config.data.sources[name].kind == "la" else _views_of(name, config.data.sources[name].views, index)
        for name, index in indexes.items()
    }
    sources = {name: _source(config, name, index, views[name]) for name, index in indexes.items()}
    robots = make_robots(config, indexes, views, spec, encode, inherited, own)
    return Setup(sources, texts, robots, encoder if texts else None)


def prepare_texts(config: TrainConfig, encoder: TextEncoder) -> Setup:
    """The same for a model that only writes. Raises UserError for a source that is no conversation, too."""
    indexes = _indexes(config)
    for name in indexes:
        if (kind := config.data.sources[name].kind) != "text":
            raise UserError(
                f"data.sources.{name}.kind is {kind}, and this model learns conversations alone; write its clips as "
                "texts with `la4vla construct texts`, and use them with kind text."
            )
    return Setup({}, {name: _text_source(config, name, index) for name, index in indexes.items()}, {}, encoder)


def prepare_pairs(
    config: TrainConfig, image_size: int, encode: Encode, max_tokens: int, inherited: Checkpoint | None, own: bool
) -> Setup:
    """The same for a grounding model, whose sources are all of kind `contrast`. image_size: 0 without vision."""
    indexes = _indexes(config)
    embodiment = one_embodiment(indexes, "a grounding model judges the actions of one")
    views = {name: _pair_view(config, name, index) for name, index in indexes.items()}
    sources = {}
    for name, index in indexes.items():
        sources[name] = Source(name, "contrast", index, _folder_stats(name, index), views[name], "low", ())
    sizes = (len(embodiment.state.names), len(embodiment.action.names))
    spec = InputSpec(image_size, 0, config.grounding.horizon, *sizes, max_tokens, -1, -1)
    robots = make_robots(config, indexes, views, spec, encode, inherited, own)
    size = config.data.contrast_group
    groups = {name: make_groups(config.run.seed, name, size, clip_places(index)) for name, index in indexes.items()}
    return Setup(sources, {}, robots, None, groups)


def fingerprints(setup: Setup) -> dict[str, str]:
    """Source name -> its fingerprint. A folder that was written again with other clips under a run's feet is noticed by
    it on resume."""
    return {name: fingerprint(source.index) for name, source in setup.every_source.items()}


def view_sizes(setup: Setup, robot: str) -> dict[str, list[list[int]]]:
    """View of a robot -> [height, width] in pixels of its stored images, one for each size that its sources have."""
    sizes: dict[str, list[list[int]]] = {name: [] for name in setup.robots[robot].chain.views}
    for source in (setup.sources[name] for name in setup.robots[robot].sources):
        for name in source.views:
            view = source.index.views[name]
            if [view.height, view.width] not in sizes[name]:
                sizes[name].append([view.height, view.width])
    return sizes


def check_world(streams: int, world_size: int) -> None:
    """Raises UserError unless the ranks can share the streams evenly."""
    if streams % world_size:
        raise UserError(
            f"data.streams={streams} cannot be shared by {world_size} ranks; use a number of ranks that divides it, "
            f"or, for a new run, set data.streams to a multiple of {world_size}."
        )


def fingerprint(index: Index) -> str:
    """sha256 in hex over what an index says: frame_stride, the shards' names and sha256s, and the samples that are
    left out. No tar is read."""
    lines = [f"{index.frame_stride}", *(f"{shard.name} {shard.sha256}" for shard in index.shards)]
    lines += [f"{shard.name} {shard.kept}" for shard in index.shards if shard.kept is not None]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _indexes(config: TrainConfig) -> dict[str, Index]:
    """Of the sources that some stage mixes. Raises UserError for a folder that does not hold what its kind needs."""
    used = {name for stage in config.stages.values() for name in stage.mixture}
    indexes = {}
    for name, source in config.data.sources.items():
        if name not in used:
            continue
        indexes[name] = read_index(source.path, None)
        if (indexes[name].holds == "texts") != (source.kind == "text"):
            cure = "set it to text" if source.kind != "text" else f"set it to one of {', '.join(KINDS)}"
            raise UserError(
                f"data.sources.{name}.kind is {source.kind}, and {source.path} holds {indexes[name].holds}; {cure}, or "
                "name another folder."
            )
    return indexes


def _text_source(config: TrainConfig, name: str, index: Index) -> TextSource:
    if config.data.sources[name].views:
        raise UserError(
            f"data.sources.{name}.views is set, and a conversation shows the images it was written with; leave it out."
        )
    streams = make_streams(index, name, config.data.streams, config.run.seed, config.data.shuffle_bytes)
    return TextSource(name, "text", index, streams)


def _views_of(name: str, asked: Sequence[str], index: Index) -> tuple[str, ...]:
    if not index.views:
        raise UserError(f"{name}: {index.location} holds no images; use it with kind la, or write shards with views.")
    for view in asked:
        if view not in index.views:
            raise UserError(
                f"data.sources.{name}.views: `{view}` is not in {index.location}; it has {', '.join(index.views)}."
            )
    return tuple(asked or index.views)


def _pair_view(config: TrainConfig, name: str, index: Index) -> tuple[str, ...]:
    """The one view in which a grounding model sees a scene; none without vision."""
    asked = config.data.sources[name].views
    if not config.grounding.vision:
        if asked:
            raise UserError(f"data.sources.{name}.views is set and grounding.vision is false; leave one of them out.")
        return ()
    views = _views_of(name, asked, index)
    if len(views) > 1:
        raise UserError(
            f"{name}: a grounding model sees one view; set data.sources.{name}.views to one of {', '.join(views)}."
        )
    return views


def _source(config: TrainConfig, name: str, index: Index, views: tuple[str, ...]) -> Source:
    data: DataConfig = config.data
    kind = KINDS[KINDS.index(data.sources[name].kind)]
    stats = _folder_stats(name, index)
    streams = make_streams(index, name, data.streams, config.run.seed, data.shuffle_bytes)
    levels = LEVELS[LEVELS.index(data.sources[name].levels)]
    return Source(name, kind, index, stats, views, levels, streams)


def _folder_stats(name: str, index: Index) -> FolderStats:
    stats = read_stats(index.location)
    for what, names, vector in (
        ("state", stats.state.names, index.embodiment.state),
        ("action", stats.action("recorded").names, index.embodiment.action),
    ):
        if names != vector.names:
            raise UserError(
                f"{name}: {STATS} of {index.location} is of the {what} dims {' '.join(names)}, its shards are of "
                f"{' '.join(vector.names)}; write the folder again."
            )
    return stats
