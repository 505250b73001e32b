"""What the clients of Evo-1 and LA4VLA say and hear (FACTS 4.6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from la4vla.serve import libero_client, wire
from la4vla.serve.batcher import Answer, Queries
from la4vla.serve.dialect import ELSE_BYTES, Session, next_queries, unseen_view
from la4vla.serve.input_check import Findings
from la4vla.serve.policy_like import Served
from la4vla.types import Observation, UserError

EVO1_SLOTS = 3
EVO1_WIDTH = 24  # numbers of a padded state or action
JSON_IMAGE_BYTES = 640 * 480 * 3 * 5  # JSON spells a byte as "255, " and is slow beyond this size


@dataclass(frozen=True)
class Evo1:
    """What Evo-1's and LA4VLA's policy server does.

    policy       that is served
    views        image slot -> our view
    chosen       whether the user named them; other slots are then ignored
    libero       whether the client is Evo-1's LIBERO client, whose observations are translated
    channels     order of the channels that come in; LIBERO clients send rgb, MetaWorld ones bgr (FACTS 4.6)
    gripper      `opening` sends 1 for open and 0 for closed, which Evo-1's LIBERO client compares with 0.5 (FACTS 4.7);
                 `raw` sends what the embodiment says
    trim_state   whether numbers behind the embodiment's state are cut off
    """

    policy: Served
    views: Mapping[int, str]
    chosen: bool
    libero: bool
    channels: Literal["bgr", "rgb"]
    gripper: Literal["raw", "opening"]
    trim_state: bool

    @property
    def max_bytes(self) -> int:
        return EVO1_SLOTS * JSON_IMAGE_BYTES + ELSE_BYTES

    def hello(self, contract: Mapping[str, Any]) -> None:
        return None

    def read(self, message: bytes | str, session: Session) -> Queries | bytes:
        request = wire.unpack_json(message)
        self._check_action_mask(wire.part(request, "action_mask"))
        images = wire.part(request, "image")
        if not (isinstance(images, list) and len(images) == EVO1_SLOTS):
            raise UserError(f"`image` must be a list of {EVO1_SLOTS} images, not {wire.shown(images)}.")
        shown = wire.vector(wire.part(request, "image_mask"), "image_mask")
        if len(shown) != EVO1_SLOTS or not np.isin(shown, (0, 1)).all():
            raise UserError(f"`image_mask` must be a list of {EVO1_SLOTS} zeros and ones.")
        views = {}
        for slot, ours in self.views.items():
            if not shown[slot]:
                raise UserError(f"`image_mask` hides slot {slot}, which is the policy's view `{ours}`; show it.")
            pixels_HWC = wire.image_from_lists(images[slot], str(slot))
            views[ours] = pixels_HWC if self.channels == "rgb" else np.ascontiguousarray(pixels_HWC[:, :, ::-1])
        if self.policy.views and not self.chosen and (unknown := set(np.flatnonzero(shown)) - set(self.views)):
            raise unseen_view(self.policy, f"slot {min(unknown)}")
        state = self._state(wire.vector(wire.part(request, "state"), "state"))
        observation = Observation(views, state, wire.text(request, "prompt"))
        return next_queries(libero_client.translated(observation) if self.libero else observation, session)

    def reply(self, answer: Answer, findings: Findings, session: Session) -> str:
        """A list of actions, which has no place for findings."""
        chunk_TA = answer.chunks[0].astype(np.float64)
        if self.gripper == "opening":
            action = self.policy.embodiment.action
            for dim in action.dims("gripper"):
                spread = action.gripper_open - action.gripper_closed
                chunk_TA[:, dim] = (chunk_TA[:, dim] - action.gripper_closed) / spread
        padded_TA = np.zeros((len(chunk_TA), EVO1_WIDTH))
        padded_TA[:, : chunk_TA.shape[1]] = chunk_TA
        return json.dumps(padded_TA.tolist(), allow_nan=False)

    def error(self, sentence: str) -> str:
        return json.dumps({"error": sentence})

    def _check_action_mask(self, value: Any) -> None:
        """Raises UserError for another robot's mask: Evo-1's clients say nothing else about their robot."""
        nested = isinstance(value, list) and len(value) == 1  # as its xarm client sends it (FACTS B23)
        mask = wire.vector(value[0] if nested else value, "action_mask")
        dims = len(self.policy.embodiment.action.names)
        if len(mask) != EVO1_WIDTH or not np.array_equal(mask, np.arange(EVO1_WIDTH) < dims):
            raise UserError(
                f"`action_mask` must be {dims} ones, as this policy's actions, and {EVO1_WIDTH - dims} zeros."
            )

    def _state(self, state: np.ndarray) -> np.ndarray:
        if not self.libero:
            libero_client.require_asked(self.policy.embodiment, state)
        dims = libero_client.WIDTH if self.libero else len(self.policy.embodiment.state.names)
        if not dims <= len(state) <= EVO1_WIDTH:
            raise UserError(f"`state` has {len(state)} numbers; {dims} are needed here, padded to at most 24.")
        if state[dims:].any() and not self.trim_state:
            raise UserError(
                f"`state` goes on after the {dims} numbers of this policy's embodiment; "
                "serve with --trim-state to ignore the rest."
            )
        return state[:dims]
