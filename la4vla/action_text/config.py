"""Every setting of action text. It serializes to JSON and goes into manifests and text shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from la4vla.types import UserError

CodecName = Literal["decimals", "sentence", "tokens", "fast"]
AXES = ("+x", "-x", "+y", "-y", "+z", "-z")


@dataclass(frozen=True)
class MergeConfig:
    """When steps become one row (the paper's appendix B.2; FACTS 2.2).

    cap      m; no row moves further along one axis
    stop_at  m; a row that has moved so far along one axis is closed. None: only the cap closes it, as in the paper's
             own example
    least    m; a step's displacement along one axis below this has no sign
    """

    cap: float = 0.05
    stop_at: float | None = None
    least: float = 0.002


@dataclass(frozen=True)
class PlayConfig:
    """How a row becomes control steps.

    step_m         m, the most that a step moves along one axis; None: `speed` times what a command of 1.0 is, for a
                   robot whose commands have a unit of their own
    step_rad       rad, the same for turns
    speed          share of a command of 1.0 that steps use where step_m or step_rad is None
    gain           what is commanded for a displacement of 1; above 1 for `reached` motion of an arm that goes less far
                   than it is told, such as LIBERO's
    settle         steps that are waited behind every row, for the hand to arrive
    gripper        steps that a change of the gripper gets in its row
    gripper_order  whether the gripper changes before or after the motion of its row
    """

    step_m: float | None = None
    step_rad: float | None = None
    speed: float = 1.0
    gain: float = 1.0
    settle: int = 0
    gripper: int = 10
    gripper_order: Literal["last", "first"] = "last"


@dataclass(frozen=True)
class ActionTextConfig:
    """Everything that decides what text an action becomes and what it does.

    codec     decimals, sentence, tokens or fast
    motion    whether a text holds `commanded` displacements (sums of commands) or `reached` ones (differences of
              states)
    forward   signed axis of the robot's base frame, such as `+y`; so are `left` and `up`
    merge     of steps to rows; `fast` does not merge
    play      of rows as control steps
    settings  of the codec, by name; those left out have its defaults
    """

    codec: CodecName = "decimals"
    motion: Literal["commanded", "reached"] = "commanded"
    forward: str = "+x"
    left: str = "+y"
    up: str = "+z"
    merge: MergeConfig = field(default_factory=MergeConfig)
    play: PlayConfig = field(default_factory=PlayConfig)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        axes = (self.forward, self.left, self.up)
        if any(axis not in AXES for axis in axes) or len({axis[1] for axis in axes}) < 3:
            raise UserError(f"action text: forward, left and up are {axes}; give three different axes such as +x.")
        if self.motion not in ("commanded", "reached"):
            raise UserError(f"action text: motion is `{self.motion}`; use commanded or reached.")
        if not (self.merge.cap > 0 and self.merge.least >= 0 and (self.merge.stop_at or 1.0) > 0):
            raise UserError("action text: merge.cap and merge.stop_at must be above 0 and merge.least at least 0.")
        play = self.play
        if not (0 < play.speed <= 1 and play.settle >= 0 and play.gripper >= 1 and play.gain > 0):
            raise UserError(
                "action text: play.speed must be in (0, 1], play.gain above 0, play.settle at least 0 and play.gripper "
                "at least 1."
            )
        if min(play.step_m or 1.0, play.step_rad or 1.0) <= 0 or play.gripper_order not in ("last", "first"):
            raise UserError(
                "action text: play.step_m and play.step_rad must be above 0, play.gripper_order last or first."
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> ActionTextConfig:
        """Raises UserError for a setting that does not exist."""
        values = {**raw}
        for name, block in (("merge", MergeConfig), ("play", PlayConfig)):
            if name in values:
                values[name] = _of(block, values[name], f"{name}.")
        return _of(ActionTextConfig, values, "")


def _of(block: type, values: Mapping[str, Any], prefix: str) -> Any:
    known = {item.name for item in fields(block)}
    if wrong := set(values) - known:
        raise UserError(f"action text: `{prefix}{min(wrong)}` is no setting; use some of {', '.join(sorted(known))}.")
    return block(**values)
