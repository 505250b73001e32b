"""What a run makes of each robot in its data: which sources are of it, their views in slots, statistics, transforms.

Sources whose embodiments have the same name are of one robot, and their embodiments must agree in every field. Robots
of different names have a chain of transforms each, with statistics of their own data, and share the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from la4vla.config import TrainConfig
from la4vla.data.collate import Encode
from la4vla.data.delta import WINDOWED, stored_as
from la4vla.data.normalize import Stats
from la4vla.data.processor import Processor
from la4vla.data.shards.index import Index, read_index, read_stats
from la4vla.data.transforms import Chain, build_chain, chain_from_dicts, chain_to_dicts
from la4vla.manifest import Checkpoint, TrainedRobot
from la4vla.types import Embodiment, InputSpec, UserError


@dataclass(frozen=True)
class RobotSetup:
    """What a run with actions makes of one robot.

    embodiment  of all its clips
    processor   what turns their samples into batches
    sources     names of those that hold its clips, in the order of the config
    """

    embodiment: Embodiment
    processor: Processor
    sources: tuple[str, ...]

    @property
    def chain(self) -> Chain:
        return self.processor.chain

    def trained(self, view_sizes: Mapping[str, list[list[int]]]) -> TrainedRobot:
        """What a checkpoint says of it. view_sizes: view -> [height, width] of its images, one for each size."""
        chain = self.chain
        sizes = {view: view_sizes[view] for view in chain.views}
        return TrainedRobot(self.embodiment.to_dict(), chain_to_dicts(chain), list(chain.views), sizes)


def make_robots(
    config: TrainConfig,
    indexes: Mapping[str, Index],
    views: Mapping[str, Sequence[str]],
    spec: InputSpec,
    encode: Encode,
    inherited: Checkpoint | None,
    own: bool,
) -> dict[str, RobotSetup]:
    """Embodiment's name -> its setup, in the order of the sources. indexes: of the sources of clips. views: source ->
    those that it shows, in order.

    inherited: the checkpoint that the run goes on from or takes its weights from. own: it is this run's. Raises
    UserError for sources, statistics or a checkpoint that do not fit together.
    """
    of_stats_source = _robot_of_stats_source(config, indexes) if config.data.stats_source else ""
    robots, grouped = {}, by_embodiment(indexes)
    order = places(grouped, inherited)
    for name, sources in grouped.items():
        theirs = {source: indexes[source] for source in sources}
        embodiment = theirs[sources[0]].embodiment
        slots = slot_order({source: views[source] for source in sources})
        asked = action_form(config, name, sources)
        data = replace(config.data, action=asked)
        first = data.stats_source if name == of_stats_source else sources[0]
        stats = _stats(config, asked, spec.horizon, embodiment, first, inherited, own)
        chain = build_chain(data, embodiment, slots, stats, spec)
        robots[name] = RobotSetup(embodiment, Processor(chain, encode, spec, config.flow, order.index(name)), sources)
    return robots


def places(names: Iterable[str], inherited: Checkpoint | None) -> list[str]:
    """Names of embodiments in the order in which a model numbers them: those that a checkpoint's model knows apart,
    then new ones."""
    known = inherited.manifest.model.get("embodiments", []) if inherited else []
    return list(dict.fromkeys([*known, *names]))


def by_embodiment(indexes: Mapping[str, Index]) -> dict[str, tuple[str, ...]]:
    """Embodiment's name -> its sources, both in the order of the config. Raises UserError where two embodiments of one
    name differ."""
    found: dict[str, tuple[str, ...]] = {}
    for name, index in indexes.items():
        robot = index.embodiment
        found[robot.name] = (*found.get(robot.name, ()), name)
        first = found[robot.name][0]
        if differs := indexes[first].embodiment.difference(robot):
            raise UserError(
                f"sources {first} and {name} have different embodiments of the name {robot.name} ({differs.field} is "
                f"{_shown(differs.mine)} and {_shown(differs.other)}); convert one of them, or give its robot file "
                "another name."
            )
    return found


def one_embodiment(indexes: Mapping[str, Index], why: str) -> Embodiment:
    """That of all sources. Raises UserError where there are several. why: it must be one, as a clause."""
    robots = by_embodiment(indexes)
    if len(robots) > 1:
        listed = "; ".join(f"{name} in {', '.join(sources)}" for name, sources in robots.items())
        raise UserError(f"these sources have different embodiments ({listed}), and {why}; train on one of them.")
    return next(iter(indexes.values())).embodiment


def slot_order(views: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """All views of a robot in slot order: as listed by its first source, new ones of later sources behind them.

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


def action_form(config: TrainConfig, robot: str, sources: Sequence[str]) -> str:
    """`data.action`, or what the sources of one robot say instead. Raises UserError where they disagree."""
    asked = {config.data.sources[source].action or config.data.action: source for source in sources}
    if len(asked) > 1:
        said = " and ".join(f"{form} ({source})" for form, source in asked.items())
        raise UserError(
            f"the sources of {robot} ask for different actions, {said}; one robot's actions have one form: set "
            "data.sources.NAME.action alike."
        )
    return next(iter(asked))


def _robot_of_stats_source(config: TrainConfig, indexes: Mapping[str, Index]) -> str:
    """Name of its embodiment. Raises UserError where it is none of this run's."""
    data = config.data
    name = data.stats_source
    if data.sources[name].kind == "text":
        raise UserError(
            f"data.stats_source is {name}, a source of conversations, which has no statistics; name one of clips."
        )
    if name in indexes:
        return indexes[name].embodiment.name
    index = read_index(data.sources[name].path)
    if by_embodiment({**indexes, name: index})[index.embodiment.name] == (name,):
        raise UserError(
            f"data.stats_source is {name}, whose embodiment none of this run's sources has; name a source of one of "
            "its robots."
        )
    return index.embodiment.name


def _stats(
    config: TrainConfig,
    action: str,
    horizon: int,
    embodiment: Embodiment,
    source: str,
    inherited: Checkpoint | None,
    own: bool,
) -> tuple[Stats, Stats]:
    """(state, action) of one robot. A run that goes on keeps those of its own checkpoint, whatever became of the
    folders since; a new one takes `init_from`'s unless `stats_source` is set, else those of
    `source`: `stats_source` for its own robot, for another one its first source."""
    data = config.data
    if inherited and (own or not data.stats_source):
        cure = "set run.dir to a new folder" if own else "set data.stats_source to one of this run's sources"
        return _inherited(inherited, config, action, horizon, embodiment, cure)
    stats = read_stats(data.sources[source].path)
    return stats.state, stats.action(stored_as(action, horizon))


def _inherited(
    source: Checkpoint, config: TrainConfig, action: str, horizon: int, embodiment: Embodiment, cure: str
) -> tuple[Stats, Stats]:
    """A checkpoint's statistics. Raises UserError where they are of another robot or of another form of actions."""
    checkpoint, robots = source.folder, source.manifest.trained_robots
    made = next((robot for robot in robots if robot.name == embodiment.name), robots[0])
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
    if chain.action_form != action:
        raise UserError(
            f"{checkpoint} was trained with data.action={chain.action_form}, not {action}; set it so, or {cure}."
        )
    if action in WINDOWED and (then := source.manifest.input_spec["horizon"]) != horizon:
        raise UserError(
            f"{checkpoint} was trained with chunks of {then} steps, whose data.action={action} has other statistics "
            f"than that of {horizon}; set model.horizon={then}, or {cure}."
        )
    return chain.normalize.state, chain.normalize.action


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else f"`{value}`"
