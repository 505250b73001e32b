"""The chain of transforms between raw samples and model inputs, and the one function that builds it.

Each transform is a frozen dataclass: `__call__(sample) -> sample` towards the model and `.inverse(action, state)` back
to raw units of the embodiment. The chain is written into a checkpoint's manifest by name and fields and rebuilt
from it by `serve`, so that training and serving cannot differ. Random augmentation is not part of it (augment.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from la4vla.config import DataConfig
from la4vla.data.bounds import ReleasedBounds
from la4vla.data.delta import DELTA_TO_STATE, DELTAS, RECORDED, DeltaAction, delta_action
from la4vla.data.normalize import Normalize, Stats
from la4vla.types import Embodiment, InputSpec, Sample, UserError, VectorSpec


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
    def action_form(self) -> str:
        """The value of `data.action` that it was built for."""
        forms = {reference: form for form, reference in DELTAS.items()}
        return next((forms[item.reference] for item in self.transforms if isinstance(item, DeltaAction)), RECORDED)

    @property
    def takes_every_state(self) -> bool:
        """Whether a sample's actions depend on the states of all their frames, not on the first one alone."""
        return self.action_form == DELTA_TO_STATE


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
    if config.action in DELTAS:
        transform = delta_action(embodiment, config.action)
        if transform is None:
            raise UserError(
                f"data.action={config.action} needs absolute actions whose dims are in the state, and "
                f"{embodiment.name} has none; set data.action=recorded."
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


PLAIN_TRANSFORMS: tuple[type[Transform], ...] = (CleanInstruction, SelectViews, ResizeImages, DeltaAction, Pad)
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
