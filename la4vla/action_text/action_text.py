"""`ActionText`: a robot's actions as text and back, made from an embodiment and one config."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from la4vla.action_text.codec import Codec
from la4vla.action_text.config import ActionTextConfig
from la4vla.action_text.decimals import Decimals
from la4vla.action_text.fast import Fast, FastSettings
from la4vla.action_text.merge import merge
from la4vla.action_text.motion import Motion, Parsed, Written
from la4vla.action_text.play import play
from la4vla.action_text.sentence import Sentence
from la4vla.action_text.space import MotionSpace
from la4vla.action_text.tokens import Tokens
from la4vla.types import Embodiment, UserError

CODECS = ("decimals", "sentence", "tokens", "fast")


@dataclass(frozen=True)
class ActionText:
    """Make one with `open`, or with `fitted` where the codec is fitted on data.

    config  all that it was made from
    space   the robot
    codec   between displacements and text
    """

    config: ActionTextConfig
    space: MotionSpace
    codec: Codec

    @staticmethod
    def open(config: ActionTextConfig, embodiment: Embodiment) -> ActionText:
        """Raises UserError for a robot of unknown units, a setting that the codec does not have and a `fast` without a
        vocabulary."""
        space = MotionSpace(embodiment, config)
        return ActionText(config, space, _codec(config, space))

    @staticmethod
    def fitted(
        config: ActionTextConfig,
        embodiment: Embodiment,
        clips: Iterable[tuple[np.ndarray, np.ndarray]],
        vocabulary: int = 512,
    ) -> ActionText:
        """As `open`, but `fast` gets its units and a vocabulary of so many pieces from clips, (states, actions) as
        `write` takes them; what config.settings say goes before."""
        if config.codec != "fast" or "vocabulary" in config.settings:
            return ActionText.open(config, embodiment)
        space = MotionSpace(embodiment, config)
        motions = [space.steps(states, actions).motion for states, actions in clips]
        if not motions:
            raise UserError("action text: `fast` is fitted on clips, and there are none; give it some.")
        of = FastSettings(**{**_units(motions), **_known(config, FastSettings)})
        fast = Fast.fit(motions, vocabulary, space.gripper, space.turns, of)
        return ActionText(replace(config, settings=dict(fast.settings)), space, fast)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Strings that the model's tokenizer must have as single tokens."""
        return self.codec.tokens

    def to_dict(self) -> dict[str, Any]:
        """For manifests: `from_dict` with the same embodiment gives the same texts."""
        return {"version": self.codec.version, **self.config.to_dict(), "settings": dict(self.codec.settings)}

    @staticmethod
    def from_dict(raw: Mapping[str, Any], embodiment: Embodiment) -> ActionText:
        """Raises UserError for a text of another version of the codec, and as `open` does."""
        config = ActionTextConfig.from_dict({name: value for name, value in raw.items() if name != "version"})
        opened = ActionText.open(config, embodiment)
        if raw["version"] != opened.codec.version:
            raise UserError(
                f"action text: made by version {raw['version']} of `{config.codec}`, this la4vla has "
                f"{opened.codec.version}; make the texts anew."
            )
        return opened

    def motion(self, states: np.ndarray, actions: np.ndarray) -> Motion:
        """The rows that a text of these control steps has, before the codec rounds them. Arguments as of `write`."""
        steps = self.space.steps(states, actions).motion
        return merge(steps, self.config.merge) if self.codec.merged else steps

    def write(self, states: np.ndarray, actions: np.ndarray) -> Written:
        """The text of control steps.

        actions  raw commands [T, A]
        states   raw states [T, S], or [T + 1, S] with the one behind the last command, which `reached` motion needs
        """
        dropped = Counter(self.space.steps(states, actions).dropped)
        written = self.codec.encode(self.motion(states, actions))
        return Written(written.text, dict(dropped + Counter(written.dropped)))

    def read(self, text: str) -> Parsed:
        """What any text says: a motion, or the reason why it is none."""
        return self.codec.decode(text)

    def play(self, motion: Motion, state: np.ndarray, opening: float | None) -> np.ndarray:
        """Raw commands float32 [T, A]. Arguments as of `play.play`."""
        return play(motion, self.space, state, opening)


def _codec(config: ActionTextConfig, space: MotionSpace) -> Codec:
    if config.codec == "decimals":
        return Decimals(space.gripper, **_known(config, Decimals))
    if config.codec == "tokens":
        return Tokens(space.gripper, **_known(config, Tokens))
    if config.codec == "sentence":
        return Sentence(space.gripper, space.turns, **_known(config, Sentence))
    if config.codec != "fast":
        raise UserError(f"action text: codec is `{config.codec}`; use one of {', '.join(CODECS)}.")
    if "vocabulary" not in config.settings:
        raise UserError("action text: `fast` has no vocabulary yet; construct the texts first, which fits one.")
    of = FastSettings(**_known(config, FastSettings))
    return Fast(json.dumps(config.settings["vocabulary"]), space.gripper, space.turns, of)


_NOT_SET = {"gripper", "turns", "name", "version", "merged"}
"""Fields of codecs that the robot or the codec itself decides."""


def _known(config: ActionTextConfig, codec: type) -> dict[str, Any]:
    """The codec's settings. Raises UserError for one that it does not have."""
    known = {item.name for item in fields(codec)} - _NOT_SET
    given = {
        name: value for name, value in config.settings.items() if name != "vocabulary" or codec is not FastSettings
    }
    if wrong := set(given) - known:
        raise UserError(
            f"action text: `{min(wrong)}` is no setting of {config.codec}; use some of {', '.join(sorted(known))}."
        )
    return given


def _units(motions: Sequence[Motion]) -> dict[str, float]:
    """Units of moves and turns in which nearly all steps lie within 1; not below the default's hundredth."""
    units = {}
    for name, values in (
        ("move_unit", [motion.move_R3 for motion in motions]),
        ("turn_unit", [motion.turn_R3 for motion in motions]),
    ):
        usual = float(np.quantile(np.abs(np.concatenate(values)), 0.99))
        units[name] = usual if usual > 1e-5 else 1e-5
    return units
