"""An episode as a published client shows it to its policy, where a protocol asks for that: mirrored, cropped, resized
pictures, swapped channels, and numbers of state and action that are not ours.

The simulator's own observation is left as it is; rows, videos of our own protocols and experts never see these numbers.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from benchmarks.results.protocols import INPUTS, Protocol
from la4vla.sim.env import Env
from la4vla.sim.registry import ClientNumbers, Simulator
from la4vla.types import Embodiment, Observation, UserError


def numbers(protocol: Protocol, simulator: Simulator) -> ClientNumbers | None:
    """The client's numbers that a protocol asks for; None for our own. Raises UserError for a name that the simulator
    does not have."""
    if protocol.state == INPUTS["state"]:
        return None
    if protocol.state not in simulator.clients:
        known = ", ".join([str(INPUTS["state"]), *simulator.clients])
        raise UserError(f"{protocol.title}: state `{protocol.state}` is none of {simulator.name}; use one of {known}.")
    return simulator.clients[protocol.state]


def embodiment(protocol: Protocol, simulator: Simulator) -> Embodiment:
    """What the policy's numbers mean under this protocol."""
    asked = numbers(protocol, simulator)
    return asked.embodiment if asked else simulator.embodiment


def said(protocol: Protocol) -> str:
    """What of the policy's inputs is not the usual, to print behind a sentence; empty where all is."""
    return "".join(f", {key} {value}" for key, value in protocol.inputs.items() if value != INPUTS[key])


def shown(observation: Observation, protocol: Protocol, numbers: ClientNumbers | None, env: Env) -> Observation:
    """An env's present observation as the policy gets it. numbers: what `numbers` gives."""
    views = {name: picture(image_HWC, protocol) for name, image_HWC in observation.views.items()}
    return replace(observation, views=views, state=numbers.state(env) if numbers else observation.state)


def picture(image_HWC: np.ndarray, protocol: Protocol) -> np.ndarray:
    """uint8 RGB, upright, as rendered -> uint8 [S, S, 3] as the protocol says."""
    if protocol.orientation == "mirrored":
        image_HWC = image_HWC[:, ::-1]
    if protocol.crop:
        top, left = ((side - protocol.crop) // 2 for side in image_HWC.shape[:2])
        image_HWC = image_HWC[top : top + protocol.crop, left : left + protocol.crop]
    if protocol.shown_size and image_HWC.shape[:2] != (protocol.shown_size, protocol.shown_size):
        sides = (protocol.shown_size, protocol.shown_size)
        image_HWC = cv2.resize(np.ascontiguousarray(image_HWC), sides, interpolation=cv2.INTER_LINEAR)
    if protocol.channels == "bgr":
        image_HWC = image_HWC[:, :, ::-1]
    return np.ascontiguousarray(image_HWC)
