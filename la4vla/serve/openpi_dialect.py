"""What openpi's clients say and hear (FACTS 4.9).

Its examples agree on the transport and not on the keys: LIBERO has one state, DROID and UR5 name the joints and the
gripper apart, ALOHA nests its images, turns them to [3, H, W] and may send no instruction. `--state`, `--view` and
`--prompt` say which keys are meant. A key `a/b` is looked up as it stands, and then as `b` in the map `a`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from la4vla.serve import libero_client, wire
from la4vla.serve.batcher import Answer, Queries
from la4vla.serve.dialect import ELSE_BYTES, IMAGE_BYTES, Session, next_queries, unseen_view
from la4vla.serve.input_check import Findings
from la4vla.serve.policy_like import Served
from la4vla.types import Observation, UserError

VIEW_KEYS = ("observation/image", "observation/wrist_image")  # as openpi's LIBERO client names them (FACTS 4.9)
STATE_KEY = "observation/state"


@dataclass(frozen=True)
class Openpi:
    """What openpi's policy server does.

    policy   that is served
    views    the client's key -> our view
    chosen   whether the user named them; other images are then ignored
    libero   whether the client is openpi's LIBERO client, whose observations are translated
    states   the client's keys of the state's parts, in the order of the embodiment's dimensions
    prompt   the instruction of a message that has none; empty where every message must have one
    """

    policy: Served
    views: Mapping[str, str]
    chosen: bool
    libero: bool
    states: tuple[str, ...]
    prompt: str

    @property
    def max_bytes(self) -> int:
        return max(len(VIEW_KEYS), len(self.views)) * IMAGE_BYTES + ELSE_BYTES

    def hello(self, contract: Mapping[str, Any]) -> bytes:
        return wire.pack(contract)

    def read(self, message: bytes | str, session: Session) -> Queries | bytes:
        request = wire.unpack(message)
        images = {key for key, value in _leaves(request) if isinstance(value, np.ndarray) and value.ndim == 3}
        if self.policy.views and not self.chosen and (unknown := images - set(self.views)):
            raise unseen_view(self.policy, min(unknown))
        observation = Observation(
            {ours: wire.image(_channels_last(_part(request, key, "--view")), key) for key, ours in self.views.items()},
            np.concatenate([_row(_part(request, key, "--state"), key) for key in self.states]),
            self.prompt if self.prompt and "prompt" not in request else self._instruction(request),
        )
        if self.libero:
            observation = libero_client.translated(observation)
        else:
            libero_client.require_asked(self.policy.embodiment, observation.state)
        return next_queries(observation, session)

    def reply(self, answer: Answer, findings: Findings, session: Session) -> bytes:
        timing: dict[str, Any] = {"infer_ms": answer.infer_ms, "queue_ms": answer.queue_ms, "batch": answer.batch}
        timing["outside"] = len(findings.outside)  # openpi's clients average every number of `server_timing`
        if session.last_total_ms is not None:
            timing["prev_total_ms"] = session.last_total_ms
        about = {"policy_timing": {"infer_ms": answer.infer_ms}, "server_timing": timing, "notes": list(findings.notes)}
        return wire.pack({"actions": answer.chunks[0], **about})

    def error(self, sentence: str) -> str:
        return sentence  # a text message is an error to openpi's client

    def _instruction(self, request: Mapping[Any, Any]) -> str:
        _part(request, "prompt", "--prompt")
        return wire.text(request, "prompt")


def _leaves(request: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The keys and values of a message, those of the maps in it as `map/key`."""
    for key, value in request.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{inner}", leaf) for inner, leaf in value.items())
        else:
            yield str(key), value


def _part(request: Mapping[Any, Any], key: str, option: str) -> Any:
    """The value under a key. Raises UserError where there is none. option: that names another key."""
    place = _place(request, key)
    if place is None:
        there = wire.shown(", ".join(name for name, _ in _leaves(request)))
        raise UserError(f"the message has no `{key}`; it has {there}, and {option} says which is meant.")
    return wire.part(*place)


def _place(request: Mapping[Any, Any], key: str) -> tuple[Mapping[Any, Any], str] | None:
    """The map that holds a key, and the key's name there."""
    if key in request:
        return request, key
    for end, letter in enumerate(key):
        inner = request.get(key[:end]) if letter == "/" else None
        if isinstance(inner, dict) and (place := _place(inner, key[end + 1 :])):
            return place
    return None


def _row(value: Any, key: str) -> np.ndarray:
    """float32 [N] of a part of the state: a row, or a single number (a gripper's)."""
    if isinstance(value, int | float) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = np.reshape(value, 1)
    return wire.vector(value, key)


def _channels_last(value: Any) -> Any:
    """[3, H, W] as [H, W, 3]; everything else unchanged, [3, H, 3] too."""
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[0] == 3 and value.shape[2] != 3:
        return np.ascontiguousarray(value.transpose(1, 2, 0))
    return value
