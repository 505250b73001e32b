"""What a run's config means for its data: sources opened, views given slots, statistics chosen, the chain built.

`prepare` (and `prepare_texts`, for a model that only writes) is where bad input of a run surfaces, before a model is
built: a folder that is none or of another kind, an unknown view, sources of different embodiments, too few shards for
the streams, statistics that do not fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from la4vla.config import DataConfig, TrainConfig
from la4vla.data.collate import Encode
from la4vla.data.groups import Groups, make_groups
from la4vla.data.normalize import STATS, FolderStats, Stats
from la4vla.data.order import Stream, make_streams
from la4vla.data.processor import Processor
from la4vla.data.shards.index import Index, read_index, read_stats
from la4vla.data.shards.read import clip_places
from la4vla.data.transforms import Chain, build_chain, chain_from_dicts
from la4vla.levels import LEVELS, Levels
from la4vla.manifest import Checkpoint
from la4vla.types import KINDS, Embodiment, InputSpec, Kind, TextEncoder, UserError


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
class RobotSetup:
    """What a run with actions makes of them.

    embodiment  of all its clips
    processor   what turns their samples into batches
    """

    embodiment: Embodiment
    processor: Processor


@dataclass(frozen=True)
class Setup:
    """What a run reads, and what it makes of it. Only what some stage mixes is in it.

    sources  of clips, in the order of the config
    texts    of conversations, likewise
    robot    None where there is no source of clips
    encoder  what turns conversations into batches; None where there are none
    groups   of each source of kind `contrast`; with them no source is of another kind
    """

    sources: Mapping[str, Source]
    texts: Mapping[str, TextSource]
    robot: RobotSetup | None
    encoder: TextEncoder | None
    groups: Mapping[str, Groups] = field(default_factory=dict)

    @property
    def every_source(self) -> dict[str, Source | TextSource]:
        return {**self.sources, **self.texts}

    @property
    def embodiment(self) -> Embodiment:
        """Of a run with actions, like `processor` and `chain`."""
        return self._acting.embodiment

    @property
    def processor(self) -> Processor:
        return self._acting.processor

    @property
    def chain(self) -> Chain:
        return self.processor.chain

    @property
    def _acting(self) -> RobotSetup:
        assert self.robot is not None, "this run reads conversations alone"
        return self.robot


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
        return Setup({}, texts, None, encoder)
    embodiment = _embodiment(indexes)
    views = {
        name: () if config.data.sources[name].kind == "la" else _views_of(name, config.data.sources[name].views, index)
        for name, index in indexes.items()
    }
    sources = {name: _source(config, name, index, views[name]) for name, index in indexes.items()}
    chain = build_chain(
        config.data, embodiment, slot_order(views), _stats(config, embodiment, indexes, inherited, own), spec
    )
    robot = RobotSetup(embodiment, Processor(chain, encode, spec, config.flow))
    return Setup(sources, texts, robot, encoder if texts else None)


def prepare_texts(config: TrainConfig, encoder: TextEncoder) -> Setup:
    """The same for a model that only writes. Raises UserError for a source that is no conversation, too."""
    indexes = _indexes(config)
    for name in indexes:
        if (kind := config.data.sources[name].kind) != "text":
            raise UserError(
                f"data.sources.{name}.kind is {kind}, and this model learns conversations alone; write its clips as "
                "texts with `la4vla construct texts`, and use them with kind text."
            )
    return Setup({}, {name: _text_source(config, name, index) for name, index in indexes.items()}, None, encoder)


def prepare_pairs(
    config: TrainConfig, image_size: int, encode: Encode, max_tokens: int, inherited: Checkpoint | None, own: bool
) -> Setup:
    """The same for a grounding model, whose sources are all of kind `contrast`. image_size: 0 without vision."""
    indexes = _indexes(config)
    embodiment = _embodiment(indexes)
    views = {name: _pair_view(config, name, index) for name, index in indexes.items()}
    sources = {}
    for name, index in indexes.items():
        sources[name] = Source(name, "contrast", index, _folder_stats(name, index), views[name], "low", ())
    sizes = (len(embodiment.state.names), len(embodiment.action.names))
    spec = InputSpec(image_size, 0, config.grounding.horizon, *sizes, max_tokens, -1, -1)
    stats = _stats(config, embodiment, indexes, inherited, own)
    chain = build_chain(config.data, embodiment, slot_order(views), stats, spec)
    size = config.data.contrast_group
    groups = {name: make_groups(config.run.seed, name, size, clip_places(index)) for name, index in indexes.items()}
    robot = RobotSetup(embodiment, Processor(chain, encode, spec, config.flow))
    return Setup(sources, {}, robot, None, groups)


def fingerprints(setup: Setup) -> dict[str, str]:
    """Source name -> its fingerprint. A folder that was written again with other clips under a run's feet is noticed by
    it on resume."""
    return {name: fingerprint(source.index) for name, source in setup.every_source.items()}


def view_sizes(setup: Setup) -> dict[str, list[list[int]]]:
    """View -> [height, width] in pixels of its stored images, one for each size that the sources have."""
    sizes: dict[str, list[list[int]]] = {name: [] for name in setup.chain.views}
    for source in setup.sources.values():
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


def slot_order(views: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """All views of a run in slot order: as listed by the first source, new ones of later sources behind them.

    views: source -> its views in order. Raises UserError if two sources disagree about the order.
    """
    order = list(dict.fromkeys(view for names in views.values() for view in names))
    for source, names in views.items():
        if sorted(names, key=order.index) != list(names):
            raise UserError(
                f"data.sources.{source}.views lists {', '.join(names)} in another order than the sources before it; "
                f"list them as {', '.join(sorted(names, key=order.index))}."
            )
    return tuple(order)


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


def _embodiment(indexes: Mapping[str, Index]) -> Embodiment:
    (first, one), *others = indexes.items()
    for name, index in others:
        if differs := one.embodiment.difference(index.embodiment):
            raise UserError(
                f"sources {first} and {name} have different embodiments ({differs.field} is {_shown(differs.mine)} and "
                f"{_shown(differs.other)}); convert one of them, or train them in separate runs with init_from."
            )
    return one.embodiment


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


def _stats(
    config: TrainConfig,
    embodiment: Embodiment,
    indexes: Mapping[str, Index],
    inherited: Checkpoint | None,
    own: bool,
) -> tuple[Stats, Stats]:
    """(state, action). A run that goes on keeps those of its own checkpoint, whatever became of the folders since;
    a new one takes `stats_source`'s, else `init_from`'s, else those of the first source in its mixtures."""
    data = config.data
    if inherited and (own or not data.stats_source):
        cure = "set run.dir to a new folder" if own else "set data.stats_source to one of this run's sources"
        return _inherited(inherited, config, embodiment, cure)
    name = data.stats_source or next(iter(indexes))
    path = data.sources[name].path
    if data.sources[name].kind == "text":
        raise UserError(
            f"data.stats_source is {name}, a source of conversations, which has no statistics; name one of clips."
        )
    if name not in indexes:
        _embodiment({**indexes, name: read_index(path)})
    stats = read_stats(path)
    return stats.state, stats.action(data.action)


def _inherited(source: Checkpoint, config: TrainConfig, embodiment: Embodiment, cure: str) -> tuple[Stats, Stats]:
    """A checkpoint's statistics. Raises UserError where they are of another robot or of another form of actions."""
    checkpoint, made = source.folder, source.manifest
    if differs := embodiment.difference(Embodiment.from_dict(made.embodiment)):
        raise UserError(
            f"{checkpoint} was trained on another embodiment than the data's ({differs.field} is "
            f"{_shown(differs.other)}, the data's is {_shown(differs.mine)}), so its statistics do not fit; {cure}."
        )
    chain = chain_from_dicts(made.transforms)
    if chain.normalize.mode != config.data.normalization:
        raise UserError(
            f"{checkpoint} was trained with data.normalization={chain.normalize.mode}, not "
            f"{config.data.normalization}; set it so, or {cure}."
        )
    if chain.delta != (config.data.action == "delta_to_state"):
        raise UserError(
            f"{checkpoint} was trained with other actions than data.action={config.data.action}; "
            f"change data.action or {cure}."
        )
    return chain.normalize.state, chain.normalize.action


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"`{value}`"
