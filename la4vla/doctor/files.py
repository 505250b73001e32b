"""A checkpoint's contract and a shard folder's index, as far as they can be checked without a model."""

from __future__ import annotations

from pathlib import Path

from la4vla import manifest
from la4vla.data.inspect.verify import verify
from la4vla.data.shards.index import read_index
from la4vla.doctor.check import Check, Demand, failed
from la4vla.serve.policy import contents, require_match, whole_weights
from la4vla.sim.registry import SIMULATORS
from la4vla.types import UserError


def checkpoint_check(path: Path, demand: Demand | None) -> Check:
    """Whether the checkpoint is complete, has the weights and tokenizer that its manifest names, rebuilds its
    transforms, and fits the protocol's robot and views."""
    try:
        folder = manifest.resolve(path)
        about = manifest.read(folder)
        whole_weights(folder, about)
        wanted = SIMULATORS[demand.suite].embodiment.name if demand else about.trained_robots[0].name
        held = contents(folder, about, wanted)
        robot = held.embodiment
        if demand is not None:
            require_match(robot, held.views, SIMULATORS[demand.suite].embodiment, demand.setting.views)
    except UserError as error:
        return failed("checkpoint", str(error), "check the path")
    views = ", ".join(held.views) or "none"
    known = next((sim.name for sim in SIMULATORS.values() if sim.embodiment == robot), "no simulator of ours")
    says = (
        f"{folder}: step {about.step}, {robot.name} ({known}), views {views}; weights, tokenizer and transforms whole."
    )
    return Check("checkpoint", "ok", says)


def shards_check(folder: str, demand: Demand | None = None) -> Check:
    """Whether index, sha256, clips and statistics agree, as `la4vla data verify` compares them; with a protocol,
    whether a policy that is trained on these shards alone could be evaluated under it."""
    try:
        report = verify(folder)
    except UserError as error:
        return failed("shards", str(error), "check the path")
    problems = [*report.folder_problems, *(f"{s.name}: {p}" for s in report.shards for p in s.problems)]
    if problems:
        more = f" ({len(problems) - 1} more)" if problems[1:] else ""
        cure = f"la4vla data verify {folder} lists all; copy or write the folder again"
        return Check("shards", "fail", f"{folder}: {problems[0].rstrip('.')}{more}.", cure)
    index = read_index(folder, None)
    if demand is not None and index.holds == "clips":
        try:
            require_match(
                index.embodiment, tuple(index.views), SIMULATORS[demand.suite].embodiment, demand.setting.views
            )
        except UserError as error:
            says, _, _ = str(error).rpartition("; ")
            cure = "to evaluate what is trained on them, construct with its robot and views (read.robot, read.views)"
            return Check("shards", "warn", f"{folder}: whole, but under {demand.title} {says}.", cure)
    what = "sha256 and statistics" if index.holds == "clips" else "sha256 and images"
    says = f"{folder}: {len(report.shards)} shards, {index.clips} {index.holds}, {what} as indexed."
    return Check("shards", "ok", says)
