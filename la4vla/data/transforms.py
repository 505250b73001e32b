"""The chain of transforms between raw samples and model inputs, and the one function that builds it.

Each transform is a frozen dataclass: `__call__(sample) -> sample` towards the model and `.inverse(action, state)` back
to raw units of the embodiment. The chain is written into a checkpoint's manifest by name and fields and rebuilt
from it by `serve`, so that training and serving cannot differ. Random augmentation is not part of it (augment.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.config import DataConfig
from la4vla.data.bounds import ReleasedBounds
from la4vla.data.normalize import Normalize, Stats
from la4vla.data.rotation import rotation_vectors, wrapped
from la4vla.types import ARMS, GRIPPERS, ROTATION, Embodiment, InputSpec, Sample, UserError, VectorSpec


class Transform(Protocol):
    """state: float32 [S], raw, of the frame the chunk starts at; or [T, S], one row for each action."""

    def __call__(self, sample: Sample) -> Sample: ...

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray: ...

    def to_dict(self) -> dict[str, Any]: ...


def clean_sentence(text: str) -> str:
    """What CleanInstruction makes of an instruction."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".").rstrip().lower()


@dataclass(frozen=True)
class CleanInstruction:
    """One spelling for training and serving: lower case, single spaces, no final dot (which broke openvla#279)."""

    def __call__(self, sample: Sample) -> Sample:
        return sample.but(instruction=clean_sentence(sample.instruction))

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        return action_TA

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SelectViews:
    """Keeps the views the model may be shown, in slot order. `la` samples pass. A view that is not there has no slot
    filled and later no token; any other sample with none of the views is an error."""

    views: tuple[str, ...]

    def __call__(self, sample: Sample) -> Sample:
        if sample.kind == "la":
            return sample
        chosen = {name: sample.views[name] for name in self.views if name in sample.views}
        if not chosen:
            raise UserError(
                f"{sample.key}: none of the policy's views ({', '.join(self.views) or 'none'}) is among those given "
                f"({', '.join(sample.views) or 'none'}); rename or add views."
            )
        return sample.but(views=chosen, slots={name: slot for slot, name in enumerate(self.views)})

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        return action_TA

    def to_dict(self) -> dict[str, Any]:
        return {"views": list(self.views)}


@dataclass(frozen=True)
class ResizeImages:
    """uint8 RGB [H, W, 3] -> [size, size, 3], aspect not kept (FACTS 4.1, image path); area average when shrinking."""

    size: int

    def __call__(self, sample: Sample) -> Sample:
        if not sample.views:
            return sample
        return sample.but(views={name: self.resized(image) for name, image in sample.views.items()})

    def resized(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3] -> [size, size, 3]."""
        height, width = image.shape[:2]
        if (height, width) == (self.size, self.size):
            return image
        smaller = height >= self.size and width >= self.size
        return cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        return action_TA

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class DeltaToState:
    """Each absolute action minus the state of its own frame (FACTS 4.4), on `action_dims` (`state_dims` in the state).

    rotation_dims  positions *in the action* of rx ry rz, or (). Euler angles are subtracted and wrapped into (-pi, pi]
                   one by one; axis-angle vectors are composed as rotations, in the base frame or the tool's.
    rotation_near  of the absolute action (VectorSpec), for the way back
    """

    action_dims: tuple[int, ...]
    state_dims: tuple[int, ...]
    rotation_dims: tuple[int, ...]
    rotation: Literal["none", "axis_angle", "euler_xyz"]
    frame: Literal["base", "tool"]
    rotation_near: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, sample: Sample) -> Sample:
        if sample.action is None:
            return sample
        assert sample.action_states is not None, "a training sample carries the states of its actions' frames"
        action = self.forward(sample.action, sample.action_states)
        action[~sample.action_valid] = 0.0
        return sample.but(action=action)

    @cached_property
    def _plain(self) -> tuple[list[int], list[int]]:
        pairs = [
            pair for pair in zip(self.action_dims, self.state_dims, strict=True) if pair[0] not in self.rotation_dims
        ]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    @cached_property
    def _turn(self) -> tuple[list[int], list[int]]:
        at = dict(zip(self.action_dims, self.state_dims, strict=True))
        return list(self.rotation_dims), [at[dim] for dim in self.rotation_dims]

    def forward(self, action_TA: np.ndarray, states_TS: np.ndarray) -> np.ndarray:
        """Absolute -> delta, float32 [T, A]; row t uses the state of row t."""
        delta = action_TA.astype(np.float64)
        (plain, of_state), (turn, turn_of_state) = self._plain, self._turn
        delta[:, plain] -= states_TS[:, of_state]
        if turn:
            delta[:, turn] = self._minus(delta[:, turn], states_TS[:, turn_of_state])
        return delta.astype(np.float32)

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Delta -> absolute, float32 [T, A].

        With `state` [T, S] row t is added to the state of row t: the exact inverse. With `state` [S], when only the
        present state is known, row 0 is added to it and row t to what row t - 1 commanded, which is where the
        robot is by then if it tracks its commands.
        """
        absolute = action_TA.astype(np.float64)
        present = np.array(state if state.ndim == 1 else state[0], dtype=np.float64)
        for t in range(len(absolute)):
            if state.ndim == 2:
                present = state[t].astype(np.float64)
            (plain, of_state), (turn, turn_of_state) = self._plain, self._turn
            absolute[t, plain] += present[of_state]
            if turn:
                absolute[t, turn] = self._plus(absolute[t, turn], present[turn_of_state])
                present[turn_of_state] = absolute[t, turn]
            present[of_state] = absolute[t, plain]
        return absolute.astype(np.float32)

    def _minus(self, target_T3: np.ndarray, present_T3: np.ndarray) -> np.ndarray:
        if self.rotation == "euler_xyz":
            return wrapped(target_T3 - present_T3)
        target, present = Rotation.from_rotvec(target_T3), Rotation.from_rotvec(present_T3)
        turn = target * present.inv() if self.frame == "base" else present.inv() * target
        return turn.as_rotvec()

    def _plus(self, delta_3: np.ndarray, present_3: np.ndarray) -> np.ndarray:
        if self.rotation == "euler_xyz":
            return wrapped(delta_3 + present_3, self.rotation_near)
        delta, present = Rotation.from_rotvec(delta_3), Rotation.from_rotvec(present_3)
        return rotation_vectors(delta * present if self.frame == "base" else present * delta, self.rotation_near)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def delta_to_state(embodiment: Embodiment) -> DeltaToState | None:
    """The transform for this embodiment, or None where its action dims do not line up with its state dims.

    Grippers stay absolute (FACTS 4.4). Both vectors must be absolute and every other action dim be in the state. The
    turns of two arms do not line up: one transform has one rotation.
    """
    state, action = embodiment.state, embodiment.action
    moved = tuple(name for name in action.names if name not in GRIPPERS)
    turns = tuple(name for name in moved if name in ROTATION)
    lines_up = (
        bool(moved)
        and not {f"{arm}_{name}" for arm in ARMS for name in ROTATION} & set(moved)
        and set(moved) <= set(state.names)
        and (action.reference, state.reference, action.frame) == ("absolute", "absolute", state.frame)
        and (not turns or (turns == ROTATION and action.rotation == state.rotation != "none"))
    )
    if not lines_up:
        return None
    return DeltaToState(
        action_dims=tuple(action.dims(*moved)),
        state_dims=tuple(state.dims(*moved)),
        rotation_dims=tuple(action.dims(*turns)),
        rotation=action.rotation if turns else "none",
        frame=action.frame,
        rotation_near=action.rotation_near,
    )


@dataclass(frozen=True)
class Pad:
    """Zeros up to the model's sizes, and masks that say which dims are real. Padding comes after normalisation:
    the released server padded raw states first and so showed the model -1 instead of 0 (FACTS 4.3)."""

    state_dim: int
    action_dim: int
    raw_action_dim: int

    def __call__(self, sample: Sample) -> Sample:
        state, state_mask = _padded(sample.state, self.state_dim), _padded(sample.state_mask, self.state_dim)
        action = None if sample.action is None else _padded(sample.action, self.action_dim)
        action_mask = _padded(sample.action_mask, self.action_dim)
        return sample.but(state=state, state_mask=state_mask, action=action, action_mask=action_mask)

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        return action_TA[:, : self.raw_action_dim]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _padded(values: np.ndarray, width: int) -> np.ndarray:
    padded = np.zeros((*values.shape[:-1], width), values.dtype)
    padded[..., : values.shape[-1]] = values
    return padded


@dataclass(frozen=True)
class Chain:
    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample) -> Sample:
        """Raw sample -> what collate takes. The input's arrays are not written to."""
        for transform in self.transforms:
            sample = transform(sample)
        return sample

    def inverse(self, action_TA: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Model chunk, float32 [T, A of the model] -> float32 [T, A of the embodiment], raw units.

        state: float32 [S], raw (not transformed), of the observation the chunk answers.
        """
        for transform in reversed(self.transforms):
            action_TA = transform.inverse(action_TA, state)
        return action_TA

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views in slot order."""
        return next(item.views for item in self.transforms if isinstance(item, SelectViews))

    @property
    def normalize(self) -> Normalize:
        return next(item for item in self.transforms if isinstance(item, Normalize))

    @property
    def delta(self) -> bool:
        return any(isinstance(item, DeltaToState) for item in self.transforms)


def build_chain(
    config: DataConfig, embodiment: Embodiment, views: tuple[str, ...], stats: tuple[Stats, Stats], spec: InputSpec
) -> Chain:
    """The chain of a run. views: in slot order. stats: (state, action in the form `config.action` asks for).

    Raises UserError if the embodiment does not fit the model, the statistics or `data.action`.
    """
    _check_size("state", embodiment.state, spec.state_dim)
    _check_size("action", embodiment.action, spec.action_dim)
    for what, vector, part in (("state", embodiment.state, stats[0]), ("action", embodiment.action, stats[1])):
        if part.names != vector.names:
            raise UserError(
                f"the statistics' {what} dims ({' '.join(part.names)}) are not those of the data "
                f"({' '.join(vector.names)}); set data.stats_source to one of this run's sources."
            )
    delta = ()
    if config.action == "delta_to_state":
        transform = delta_to_state(embodiment)
        if transform is None:
            raise UserError(
                f"data.action=delta_to_state needs absolute actions whose dims are in the state, and {embodiment.name} "
                "has none; set data.action=recorded."
            )
        delta = (transform,)
    mode: Any = config.normalization
    return Chain(
        (
            CleanInstruction(),
            SelectViews(views),
            ResizeImages(spec.image_size),
            *delta,
            Normalize(mode, *stats),
            Pad(spec.state_dim, spec.action_dim, len(embodiment.action.names)),
        )
    )


def _check_size(what: str, vector: VectorSpec, room: int) -> None:
    if len(vector.names) > room:
        raise UserError(
            f"the data's {what} has {len(vector.names)} dims, the model takes {room}; "
            f"set model.{what}_dim={len(vector.names)}."
        )


def chain_to_dicts(chain: Chain) -> list[dict[str, Any]]:
    """JSON-able, in order: {"name": class, **fields}."""
    return [{"name": type(item).__name__, **item.to_dict()} for item in chain.transforms]


def chain_from_dicts(raw: Sequence[Mapping[str, Any]]) -> Chain:
    """The inverse of chain_to_dicts. Raises UserError for a transform this version does not know, or a damaged one."""
    try:
        return Chain(tuple(_transform_from_dict(item) for item in raw))
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"the checkpoint's transforms are damaged ({problem}); copy the checkpoint again.") from error


PLAIN_TRANSFORMS: tuple[type[Transform], ...] = (CleanInstruction, SelectViews, ResizeImages, DeltaToState, Pad)
"""Their fields are scalars and tuples of scalars; Normalize, which holds statistics, reads itself."""


def _transform_from_dict(raw: Mapping[str, Any]) -> Transform:
    values = {key: value for key, value in raw.items() if key != "name"}
    if raw["name"] in (Normalize.__name__, ReleasedBounds.__name__):
        return (Normalize if raw["name"] == Normalize.__name__ else ReleasedBounds).from_dict(values)
    kinds = {kind.__name__: kind for kind in PLAIN_TRANSFORMS}
    if raw["name"] not in kinds:
        raise UserError(
            f"the checkpoint uses a transform `{raw['name']}` that this la4vla does not know; upgrade la4vla."
        )
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kinds[raw["name"]](**fields)


def action_variants(embodiment: Embodiment, state_FS: np.ndarray, action_FA: np.ndarray) -> dict[str, np.ndarray]:
    """Every form of the actions that `data.action` can ask of this embodiment -> float32 [F, A]; F frames."""
    delta = delta_to_state(embodiment)
    recorded = {"recorded": action_FA}
    return recorded if delta is None else {**recorded, "delta_to_state": delta.forward(action_FA, state_FS)}
