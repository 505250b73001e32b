"""What a user should read before step 0: the arithmetic of a run's data, and warnings about it."""

from __future__ import annotations

from collections.abc import Iterator

from la4vla.config import TrainConfig
from la4vla.data.delta import stored_as
from la4vla.data.groups import Groups
from la4vla.data.mixture import Schedule
from la4vla.data.normalize import Normalize, beyond, near_constant, rare_dims
from la4vla.data.setup import Setup, Source, TextSource
from la4vla.data.values import outliers
from la4vla.types import SOURCE_KINDS

UNEVEN = 1.5
"""How many times as often as others a clip may be seen before it is said; a few clips a shard differ by less."""


def explain(config: TrainConfig, setup: Setup, world_size: int) -> str:
    """The arithmetic of a run, to be read before step 0: samples, ranks, micro-batches, passes over each source."""
    schedule, sources = Schedule(config), setup.every_source
    lines = []
    for name, stage in config.stages.items():
        total = schedule.total(name)
        kinds = {kind: sum(n for source, n in total.items() if sources[source].kind == kind) for kind in SOURCE_KINDS}
        parts = {kind: count / stage.steps for kind, count in kinds.items() if count}
        samples = " + ".join(f"{count:g} {kind}" for kind, count in parts.items())
        micro = " + ".join(f"{count / world_size / stage.micro_batch:.3g} {kind}" for kind, count in parts.items())
        lines.append(
            f"stage {name}: a step is {stage.global_batch} = {samples} samples = {world_size} ranks x ({micro}) "
            f"micro-batches of {stage.micro_batch}; "
            f"{stage.steps:,} steps = {stage.steps * stage.global_batch:,} samples"
        )
        if stage.warmup_steps >= stage.steps:
            top = stage.lr * (stage.steps - 1) / stage.warmup_steps
            lines.append(
                f"warning: stage {name} ends inside its warm-up of {stage.warmup_steps:,} steps; its learning rate "
                f"gets to {top:.2g} and not to {stage.lr:g}"
            )
        for source, count in total.items():
            one = sources[source].index.samples
            lines.append(f"  {source}: {count:,} samples = {count / one:.2f} passes over {one:,}")
    resident = sum(stream.resident for source in sources.values() for stream in source.streams)
    gb = resident / 1e9
    lines.append(f"shards in memory: at most {gb / world_size:.3g} GB a rank, {gb:.3g} GB in all")
    for source in sources.values():
        lines += _about_groups(setup.groups[source.name]) if source.name in setup.groups else _about_shards(source)
        if isinstance(source, Source):
            robot = setup.robot_of(source)
            form = stored_as(robot.chain.action_form, robot.processor.spec.horizon)
            lines += _about_values(source, robot.chain.normalize, form)
    several = len(setup.robots) > 1
    for name, robot in setup.robots.items():
        lines += _about_statistics(robot.chain.normalize, f"{name}: " if several else "")
    return "\n".join(lines)


def _about_statistics(normalize: Normalize, of: str) -> Iterator[str]:
    """Warnings: dims that are hardly or not at all scaled."""
    for what, stats in (("state", normalize.state), ("action", normalize.action)):
        still = near_constant(normalize.mode, stats)
        if still:
            yield f"warning: {of}{what} dims {', '.join(still)} hardly move in the data: centred, not scaled"
        rare = rare_dims(normalize.mode, stats)
        if rare:
            yield (
                f"warning: {of}{what} dims {', '.join(rare)} move in hardly any frame (q01 equals q99): "
                "scaled by min and max instead"
            )


def _about_groups(groups: Groups) -> Iterator[str]:
    """What is told apart, and which sentences are drawn less often than they occur."""
    yield (
        f"{groups.source}: {len(groups.sentences):,} distinct sentences; a pass is {groups.per_pass:,} groups of "
        f"{groups.size}, each sentence at most once in a group, and leaves {groups.left_out:,} out, others every time"
    )
    if rare := groups.too_rare:
        every, most = sum(groups.samples), rare[0]
        theirs = sum(groups.samples[one] for one in rare)
        yield (
            f"  {len(rare):,} sentences, {theirs / every:.1%} of the samples, are drawn less often than they occur; "
            f"`{groups.sentences[most]}` is {groups.samples[most] / every:.1%} of the samples and "
            f"{1 / len(groups.sentences):.1%} of the draws"
        )


def _about_shards(source: Source | TextSource) -> Iterator[str]:
    """Warnings: records that are seen more often than others, and large shards."""
    counts = [stream.samples for stream in source.streams]
    least, most = min(counts), max(counts)
    if most > UNEVEN * least:
        yield (
            f"warning: {source.name}: some {source.index.holds} are seen {most / least:.1f} times as often as others, "
            f"because its shards do not share evenly into {len(counts)} streams; write it with a multiple of "
            f"{len(counts)} shards, or change data.streams"
        )
    sizes = [shard.size for shard in source.index.shards]
    if max(sizes) > (room := source.streams[0].shuffle_bytes):
        enough = len(counts) * -(-2 * sum(sizes) // (room * len(counts)))
        yield (
            f"warning: {source.name}: shards of up to {max(sizes) / 1e6:,.0f} MB are read whole, above "
            f"data.shuffle_bytes ({room / 1e6:,.0f} MB); write the folder with {enough:,} shards to take less memory"
        )


def _about_values(source: Source, normalize: Normalize, action: str) -> Iterator[str]:
    """Warnings: dims that the statistics in use clip, and recorded values far off."""
    own = source.stats
    pairs = {"state": (normalize.state, own.state), "action": (normalize.action, own.action(action))}
    for what, (stats, ours) in pairs.items():
        if cut_off := beyond(normalize.mode, stats, ours):
            yield (
                f"warning: {source.name}: {what} dims {', '.join(cut_off)} go beyond the statistics in use and are "
                "clipped there in more than 1 % of the frames; data.stats_source says whose statistics are used"
            )
    for what, stats in (("state", own.state), ("action", own.action("recorded"))):
        for phrase in outliers(stats):
            yield f"warning: {source.name}: {what} {phrase}; look at the few frames beyond, they are trained on"
