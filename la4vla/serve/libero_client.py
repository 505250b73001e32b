"""Translates the images and the state that the LIBERO clients of openpi and Evo-1 send to those of our LIBERO env.

Both turn robosuite's bottom-up images by 180 degrees, which sets them upright and mirrors them left-right; ours are not
mirrored. Both send eight numbers of state (FACTS 4.7): hand position, axis times angle, and the two finger joints; ours
has the distance of the fingers instead. A UserError refuses a policy of another state, and a state that needs this
translation where the user did not ask for it.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from la4vla.data.rotation import rotation_vectors
from la4vla.serve import wire
from la4vla.types import Embodiment, Observation, UserError, VectorSpec

STATE = VectorSpec(
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "absolute",
    rotation="axis_angle",
    rotation_near=(3.1416, 0.0, 0.0),
    metres_per_unit=1.0,
    radians_per_unit=1.0,
)
"""Of our LIBERO env: metres, radians, 1 = open."""

WIDTH = 8  # numbers of a client's state
FINGER_SPAN = 0.08  # m between the fingers of an open gripper; each finger's joint runs to half of it


def require_fit(embodiment: Embodiment) -> None:
    """Raises UserError for a policy whose state is not the one that a client's is translated to."""
    if embodiment.state != STATE:
        raise UserError(
            f"--libero-client: translates to the state {', '.join(STATE.names)} of our LIBERO env, this policy has "
            f"{', '.join(embodiment.state.names)}; leave it out if the policy was trained on what the client sends."
        )


def require_asked(embodiment: Embodiment, state: np.ndarray) -> None:
    """Raises UserError for a client's state [S] that reaches a policy of our LIBERO env untranslated."""
    if embodiment.state == STATE and (len(state) == WIDTH or state[len(STATE.names) :].any()):
        raise UserError(
            "the state has LIBERO's eight numbers, two of them fingers, and this policy takes seven; "
            "serve with --libero-client to translate what such clients send."
        )


def translated(seen: Observation) -> Observation:
    """The observation of a client (images mirrored, state [8]) as our env shows it (state [7])."""
    views = {name: np.ascontiguousarray(image_HWC[:, ::-1]) for name, image_HWC in seen.views.items()}
    return Observation(views, _state(seen.state), seen.instruction)


def _state(sent: np.ndarray) -> np.ndarray:
    """float32 [8] -> float32 [7]. The client's angle runs to 2 pi: its quaternion may have either sign."""
    if len(sent) != WIDTH:
        raise UserError(f"the state of a LIBERO client has {WIDTH} numbers, {len(sent)} came.")
    position, turn, fingers = np.split(sent.astype(np.float64), (3, 6))
    ours = rotation_vectors(Rotation.from_rotvec(turn), STATE.rotation_near)
    translated = np.concatenate([position, ours, [(fingers[0] - fingers[1]) / FINGER_SPAN]])
    return wire.vector(translated, "the translated state")
