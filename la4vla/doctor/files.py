"""A checkpoint's contract and a shard folder's index, as far as they can be checked without a model."""

from __future__ import annotations

import json
from pathlib import Path

from la4vla import manifest
from la4vla.data.transforms import chain_from_dicts
from la4vla.data.verify import verify
from la4vla.doctor.check import Check, Demand, failed
from la4vla.manifest import Manifest
from la4vla.model.tokenizer import FILE, Prompter
from la4vla.serve.policy import require_match, whole_weights
from la4vla.sim.libero import EMBODIMENT as LIBERO
from la4vla.sim.metaworld import EMBODIMENT as METAWORLD
from la4vla.types import Embodiment, InputSpec, UserError

ROBOTS = {"metaworld": METAWORLD, "libero": LIBERO}


def checkpoint_check(path: Path, demand: Demand | None) -> Check:
    """Complete, the weights and tokenizer its manifest names, a transform chain that rebuilds, the protocol's robot."""
    try:
        folder = manifest.resolve(path)
        about = manifest.read(folder)
        whole_weights(folder, about)
        robot = embodiment(folder, about)
        chain_from_dicts(about.transforms)
        tokenizer(folder, about)
        if demand is not None:
            require_match(robot, about.views, ROBOTS[demand.suite], demand.setting.views)
    except UserError as error:
        return failed("checkpoint", str(error))
    views = ", ".join(about.views) or "none"
    known = next((suite for suite, other in ROBOTS.items() if other == robot), "no suite of ours")
    says = (
        f"{folder}: step {about.step}, {robot.name} ({known}), views {views}; weights, tokenizer and transforms whole."
    )
    return Check("checkpoint", "ok", says)


def embodiment(folder: Path, about: Manifest) -> Embodiment:
    """The checkpoint's robot. Raises UserError where the manifest's entry is damaged."""
    try:
        return Embodiment.from_dict(about.embodiment)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: its embodiment is damaged ({_named(error)}); copy the checkpoint again.") from error


def tokenizer(folder: Path, about: Manifest) -> Prompter:
    """The checkpoint's tokenizer. Raises UserError where it is missing, damaged or not the model's."""
    file = folder / manifest.TOKENIZER / FILE
    if not file.is_file():
        raise UserError(f"{file}: missing; copy the checkpoint again.")
    try:
        whole = {"added_tokens", "model"} <= set(json.loads(file.read_text()))
        spec = InputSpec(**about.input_spec)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged, or its input spec is ({error}); copy the checkpoint again.") from error
    if not whole:
        raise UserError(f"{file}: no tokenizer in it; copy the checkpoint again.")
    return Prompter.load(file.parent, spec)


def shards_check(folder: str) -> Check:
    """Index, sha256 and clips of every shard, statistics: what `la4vla data verify` compares."""
    try:
        report = verify(folder)
    except UserError as error:
        return failed("shards", str(error))
    problems = [*report.folder_problems, *(f"{s.name}: {p}" for s in report.shards for p in s.problems)]
    if problems:
        more = f" ({len(problems) - 1} more)" if problems[1:] else ""
        cure = f"la4vla data verify {folder} lists all; copy or write the folder again"
        return Check("shards", "fail", f"{folder}: {problems[0].rstrip('.')}{more}.", cure)
    clips = sum(shard.clips for shard in report.shards)
    return Check(
        "shards", "ok", f"{folder}: {len(report.shards)} shards, {clips} clips, sha256 and statistics as indexed."
    )


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
