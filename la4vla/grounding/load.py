"""Scorers by name, as commands and configs give them.

FOLDER                       a grounding checkpoint, or a run of one (then its best checkpoint by held-out loss)
action_only:FOLDER           the same, of a model that is not shown the scene
clip:FOLDER, siglip:FOLDER   a local folder in transformers' layout
rules:PLACE@+y,-x,+z         direction words; PLACE is a folder of clips or a grounding checkpoint, whose robot moves,
                             and forward, left and up are these axes of its base frame (`frame:` in its robot file)
"""

from __future__ import annotations

from pathlib import Path

from la4vla import manifest
from la4vla.data.shards.index import INDEX, read_index
from la4vla.device import usable_device
from la4vla.grounding.rules import RulesScorer
from la4vla.grounding.scorer import ACTION_ONLY, GroundingScorer
from la4vla.types import Embodiment, Scorer, UserError

RULES = "rules"
AXES = ("+x", "-x", "+y", "-y", "+z", "-z")


def load_scorer(spec: str, device: str = "") -> Scorer:
    """device: empty for the best there is. Raises UserError for a name that is none, and for what it names."""
    kind, _, place = spec.partition(":")
    if kind == RULES:
        return _rules(spec, place)
    if kind in ("clip", "siglip"):
        # Imported only when asked for: it brings the classes of both families.
        from la4vla.grounding.dual import DualEncoderScorer

        return DualEncoderScorer(Path(place), kind, usable_device(device))
    blind = kind == ACTION_ONLY
    scorer = GroundingScorer.load(_checkpoint(place if blind else spec), usable_device(device))
    if blind and scorer.name != ACTION_ONLY:
        raise UserError(f"{place} is shown the scene; leave `{ACTION_ONLY}:` out, or give a run without vision.")
    return scorer


def _rules(spec: str, place: str) -> RulesScorer:
    folder, _, named = place.partition("@")
    axes = tuple(named.split(","))
    if not folder or len(axes) != 3 or set(axes) - set(AXES) or len({axis[1] for axis in axes}) < 3:
        raise UserError(
            f"`{spec}`: the rule has to know the robot; write {RULES}:PLACE@+y,-x,+z, with a folder of its clips or a "
            "grounding checkpoint for PLACE, and its axes forward, left and up (`frame` in its robot file)."
        )
    return RulesScorer(_robot(folder), (axes[0], axes[1], axes[2]))


def _robot(folder: str) -> Embodiment:
    if (Path(folder) / INDEX).is_file():
        return read_index(folder).embodiment
    return Embodiment.from_dict(manifest.read(_checkpoint(folder)).robot().embodiment)


def _checkpoint(place: str) -> Path:
    """A checkpoint, or of a run the one with the lowest held-out loss."""
    folder = manifest.resolve(place)
    return manifest.best(place) or folder if folder != Path(place) else folder
