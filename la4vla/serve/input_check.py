"""Finds where a client's observations differ from those that the policy was trained on.

The policy answers such observations with a plausible chunk: its transforms clip the state to the trained range and
squeeze every image to the model's square. So the server says the difference in its log and in the reply, or refuses the
observation (`--strict`). An image that is mirrored, or another camera's, is not found: nothing in it tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from la4vla.data.rotation import on_side
from la4vla.serve.policy_like import TrainedInputs
from la4vla.types import ROTATION, Observation, VectorSpec

OUTSIDE = 0.6
"""A state is outside where it lies beyond the trained minimum or maximum by more than this share of their distance. An
arm that strays to the end of MetaWorld's workspace gets 0.50 beyond the quickstart's data; zeros for a state get 0.81
beyond it, swapped x and y at least 0.75, millimetres hundreds."""

NARROW = 0.05
"""The least distance that counts, in the embodiment's units (5 cm, 3 degrees, a twentieth of a gripper), for dimensions
that hardly moved in training."""

FULL_TURN = 6.3  # rad, rounded up

ASPECT = 0.02
"""Of the ratio of width to height: smaller differences come from rounding to whole pixels."""

STRIDE = 16  # pixels between those that are compared first, to see cheaply that an image is not constant


@dataclass(frozen=True)
class InputDifference:
    """One way in which observations differ from the training data.

    about       what is different, the same words each time it is found
    dimension   of the state, or empty
    what        it is, and what training had; the beginning of a sentence
    cure        what the client should send; the end of the sentence
    """

    about: str
    dimension: str
    what: str
    cure: str

    @property
    def sentence(self) -> str:
        return f"{self.what}; {self.cure}."


@dataclass(frozen=True)
class Findings:
    """What a reply says of its observations.

    outside   state dimensions that are outside the trained range
    notes     sentences that the client was not sent before
    """

    outside: tuple[str, ...]
    notes: tuple[str, ...]


class InputCheck:
    """Compares observations with a policy's training data. Observations that the policy refuses are not compared."""

    def __init__(self, state: VectorSpec, trained: TrainedInputs) -> None:
        """state: of the policy's embodiment."""
        self._spec = state
        self._low, self._high = np.asarray(trained.state_min), np.asarray(trained.state_max)
        self._room = np.maximum(OUTSIDE * (self._high - self._low), NARROW)
        self._sizes = trained.view_sizes

    def differences(self, observations: Sequence[Observation]) -> list[InputDifference]:
        """What differs in any of the observations of a message, each difference once."""
        first: dict[str, InputDifference] = {}
        for observation in observations:
            for difference in self._of(observation):
                first.setdefault(difference.about, difference)
        return list(first.values())

    def _of(self, observation: Observation) -> Iterator[InputDifference]:
        if observation.state.shape == self._low.shape:
            yield from self._of_state(self._on_side(observation.state).astype(np.float64))
        for name, sizes in self._sizes.items():
            if name in observation.views:
                yield from _of_image(name, sizes, observation.views[name])

    def _on_side(self, state: np.ndarray) -> np.ndarray:
        """The state as the policy takes it, where angles may be counted from another side; angles of more than a turn
        stay, for they are degrees."""
        angles = state[self._spec.dims(*ROTATION)]
        return state if (np.abs(angles) > FULL_TURN).any() else on_side(state, self._spec)

    def _of_state(self, state: np.ndarray) -> Iterator[InputDifference]:
        beyond = np.maximum(self._low - state, state - self._high)
        for dim in np.flatnonzero(beyond > self._room):
            name, width = self._spec.names[dim], self._high[dim] - self._low[dim]
            times = f", {beyond[dim] / width:.3g} times that range" if width >= NARROW else ""
            yield InputDifference(
                f"state {name}",
                name,
                f"state {name} is {state[dim]:.4g}, which is {beyond[dim]:.4g} outside the trained range of "
                f"{self._low[dim]:.4g} to {self._high[dim]:.4g}{times}",
                f"send {' '.join(self._spec.names)} in this order and in the units of training",
            )


def refusal(differences: Sequence[InputDifference]) -> str:
    """The sentence with which `--strict` refuses observations."""
    cures = dict.fromkeys(difference.cure for difference in differences)
    what = ", and ".join(difference.what for difference in differences)
    return f"--strict: {what}; {', and '.join(cures)}."


def _of_image(name: str, sizes: Sequence[tuple[int, int]], image_HWC: np.ndarray) -> Iterator[InputDifference]:
    height, width = image_HWC.shape[:2]
    ratios = [(width / height) / (trained[1] / trained[0]) for trained in sizes]
    if not any(1 / (1 + ASPECT) <= ratio <= 1 + ASPECT for ratio in ratios):
        trained = " and ".join(f"{trained[0]} x {trained[1]}" for trained in sizes)
        yield InputDifference(
            f"aspect ratio of {name}",
            "",
            f"view {name} is {height} x {width} pixels (height x width), and training had {trained}, of another aspect "
            "ratio",
            "send whole images of that ratio, without borders",
        )
    if _is_constant(image_HWC):
        color = " ".join(map(str, image_HWC[0, 0]))
        yield InputDifference(
            f"colour of {name}",
            "",
            f"view {name} has a single colour ({color})",
            "send the camera's image",
        )


def _is_constant(image_HWC: np.ndarray) -> bool:
    first = image_HWC[0, 0]
    return bool((image_HWC[::STRIDE, ::STRIDE] == first).all() and (image_HWC == first).all())
