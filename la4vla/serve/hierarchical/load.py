"""A checkpoint of a policy, and what says its low-level instructions, as one policy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from la4vla import manifest
from la4vla.config import HierarchicalConfig
from la4vla.config.hierarchical import QUESTIONS
from la4vla.levels import levels_of
from la4vla.manifest import Manifest
from la4vla.serve.hierarchical.instructors import Instructor, TrueInstructions, WrittenInstructions
from la4vla.serve.hierarchical.policy import HierarchicalPolicy
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.text.writer import VlmWriter
from la4vla.types import Embodiment, UserError

PLACES = ("high", "high_base")
"""Settings that say where weights lie, and change nothing of what is said."""


def load_hierarchical(
    low: str | Path,
    config: HierarchicalConfig,
    device: str | torch.device = "cpu",
    base: str = "",
    embodiment: str = "",
    weights: str = "raw",
) -> HierarchicalPolicy:
    """The policy of a checkpoint folder, or of a run's newest checkpoint, told instructions as `config` says.

    base: where the weights lie that the policy's adapters belong to. embodiment: name of the robot to drive, where it
    knows several. weights: of the policy, one of manifest.WHICH_WEIGHTS; what writes instructions has its raw ones.
    Raises UserError for a policy that learned no low-level instructions, a model that was never asked for one, two
    robots, and damaged or other weights.
    """
    folder = manifest.resolve(low)
    description = manifest.read(folder)
    manifest.require_policy(folder, description)
    if not description.text.get("instructions"):
        raise UserError(
            f"{folder} learned whole demonstrations by their tasks alone, so it knows no low-level instructions; train "
            "it on the clips of `la4vla construct` (la or vla), or evaluate it without --high."
        )
    levels = levels_of(description.config)
    policy = ServedPolicy.load(folder, device, base, embodiment, weights)
    settings = {name: value for name, value in asdict(config).items() if name not in PLACES}
    versions: dict[str, str] = {"torch": torch.__version__}
    instructor: Instructor = TrueInstructions()
    parts = [policy.identity]
    if config.instructor == "vlm":
        high = manifest.resolve(config.high)
        written = manifest.read(high)
        question = _question(high, written, config.question)
        _check_fit(high, written, policy.embodiment)
        instructor = WrittenInstructions(VlmWriter.load(high, written, device, config.high_base), question, config)
        settings["question"] = question
        parts.append(written.weights_sha256)
        versions["transformers"] = transformers.__version__
    digest = hashlib.sha256(json.dumps([parts, settings, levels], sort_keys=True).encode()).hexdigest()
    identity = f"{policy.identity[:40]}-{config.instructor}-{digest[:12]}"
    return HierarchicalPolicy(policy, instructor, levels, config.replan, identity, versions)


def _question(folder: Path, description: Manifest, wanted: str) -> str:
    """As which type of question this model says the next instruction. Raises UserError where it was not trained to."""
    if description.learner != "vlm":
        raise UserError(f"high: {folder} is a policy with actions; name a checkpoint of learner vlm.")
    asked = [question for question in QUESTIONS if question in description.text.get("questions", [])]
    if not asked or (wanted and wanted not in asked):
        what = f"the question {wanted}" if wanted and asked else "for the next instruction"
        raise UserError(
            f"high: {folder} was never asked {what}; train it on the texts of `la4vla construct texts`, "
            f"{wanted or ' or '.join(QUESTIONS)} among their questions."
        )
    if len(asked) > 1 and not wanted:
        raise UserError(f"high: {folder} was asked {' and '.join(asked)}; say which with `question`.")
    return wanted or asked[0]


def _check_fit(folder: Path, description: Manifest, embodiment: Embodiment) -> None:
    """Raises UserError unless the model learned texts of this robot."""
    if not description.robots:
        raise UserError(
            f"high: {folder} learned texts of no robot; write them with `la4vla construct texts` from a robot's clips."
        )
    if differs := embodiment.difference(Embodiment.from_dict(description.robot(embodiment.name).embodiment)):
        raise UserError(
            f"high: {folder} learned texts of another embodiment than the policy's ({differs.field} is "
            f"{differs.other}, the policy's is {differs.mine}); train both on one robot's demonstrations."
        )
