"""What openpi's clients say and hear (FACTS 4.9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from la4vla.serve import libero_client, wire
from la4vla.serve.batcher import Answer, Queries
from la4vla.serve.dialect import ELSE_BYTES, IMAGE_BYTES, Session, next_queries, unseen_view
from la4vla.serve.policy import ServedPolicy
from la4vla.types import Observation

OPENPI_VIEWS = ("observation/image", "observation/wrist_image")  # as openpi's LIBERO client names them (FACTS 4.9)


@dataclass(frozen=True)
class Openpi:
    """What openpi's policy server does.

    policy   that is served
    views    the client's key -> our view
    chosen   whether the user named them; other images are then ignored
    libero   whether the client is openpi's LIBERO client, whose observations are translated
    """

    policy: ServedPolicy
    views: Mapping[str, str]
    chosen: bool
    libero: bool

    @property
    def max_bytes(self) -> int:
        return max(len(OPENPI_VIEWS), len(self.views)) * IMAGE_BYTES + ELSE_BYTES

    def hello(self, contract: Mapping[str, Any]) -> bytes:
        return wire.pack(contract)

    def read(self, message: bytes | str, session: Session) -> Queries | bytes:
        request = wire.unpack(message)
        images = {key for key, value in request.items() if isinstance(value, np.ndarray) and value.ndim == 3}
        if self.policy.views and not self.chosen and (unknown := images - set(self.views)):
            raise unseen_view(self.policy, min(map(str, unknown)))
        observation = Observation(
            {ours: wire.image(wire.part(request, key), key) for key, ours in self.views.items()},
            wire.vector(wire.part(request, "observation/state"), "observation/state"),
            wire.text(request, "prompt"),
        )
        if self.libero:
            observation = libero_client.translated(observation)
        else:
            libero_client.require_asked(self.policy.embodiment, observation.state)
        return next_queries(observation, session)

    def reply(self, answer: Answer, session: Session) -> bytes:
        timing: dict[str, Any] = {"infer_ms": answer.infer_ms, "queue_ms": answer.queue_ms, "batch": answer.batch}
        if session.last_total_ms is not None:
            timing["prev_total_ms"] = session.last_total_ms
        policy_timing = {"infer_ms": answer.infer_ms}
        return wire.pack({"actions": answer.chunks[0], "policy_timing": policy_timing, "server_timing": timing})

    def error(self, sentence: str) -> str:
        return sentence  # a text message is an error to openpi's client
