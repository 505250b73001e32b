"""What clients of three kinds say and hear: ours, openpi's (FACTS 4.9) and Evo-1's (FACTS 4.6).

A dialect turns a message into observations and noise keys, and chunks into a reply. It changes nothing on the way that
the user did not ask for (`libero_client` is such a wish): pictures are checked, never resized or reinterpreted; what a
client shows and the policy was not trained to see is an error unless the user named the views. Refuses, with a
UserError of one sentence, every message that does not fit the policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

import la4vla
from la4vla.serve import libero_client, wire
from la4vla.serve.batcher import Answer, Question
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import Observation, UserError

SCHEMA = 1
DIALECTS = ("la4vla", "openpi", "evo1")
PORTS = {"la4vla": 8000, "openpi": 8000, "evo1": 9000}  # where clients of each kind look (FACTS 4.6, 4.9)
OPENPI_VIEWS = ("observation/image", "observation/wrist_image")  # as openpi's LIBERO client names them (FACTS 4.9)
EVO1_SLOTS = 3
EVO1_WIDTH = 24  # numbers of a padded state or action
PICTURE_BYTES = 1280 * 720 * 3  # the largest picture that fits under the default size limit
ELSE_BYTES = 2**20  # for all that is not pixels
JSON_PICTURE_BYTES = 640 * 480 * 3 * 5  # the same for JSON, which spells a byte as "255, " and is slow beyond this


@dataclass
class Session:
    """What one connection remembers: where its next noise is drawn from, and how long its last reply took.

    Noise keys count questions, so two connections with the same name and the same questions get the same actions.
    """

    seed: int
    task: str
    episode: int
    query: int = 0
    last_total_ms: float | None = None

    def key(self) -> NoiseKey:
        return NoiseKey(self.seed, self.task, self.episode, self.query)

    def reset(self, seed: int, task: str, episode: int) -> None:
        """A new episode begins: the next question is its first."""
        self.seed, self.task, self.episode, self.query = seed, task, episode, 0


class Dialect(Protocol):
    """One way to talk. max_bytes: what the largest message it should ever need takes."""

    @property
    def max_bytes(self) -> int: ...

    def hello(self, contract: Mapping[str, Any]) -> bytes | None:
        """What is said when a connection opens, if anything."""
        ...

    def read(self, message: bytes | str, session: Session) -> Question | bytes:
        """A message as a question, or the reply at once where there is nothing to compute. Raises UserError."""
        ...

    def reply(self, answer: Answer, session: Session) -> bytes | str: ...

    def error(self, sentence: str) -> bytes | str: ...


def contract(policy: ServedPolicy, dialect: str, max_batch: int, max_bytes: int) -> dict[str, Any]:
    """All that a client can check before it moves a robot."""
    return {
        "type": "hello",
        "schema": SCHEMA,
        "la4vla": la4vla.__version__,
        "identity": policy.identity,
        "step": policy.step,
        "embodiment": policy.embodiment.to_dict(),
        "views": list(policy.views),
        "image_size": policy.spec.image_size,
        "horizon": policy.spec.horizon,
        "control_hz": policy.embodiment.control_hz,
        "versions": policy.versions,
        "dialect": dialect,
        "max_batch": max_batch,
        "max_bytes": max_bytes,
    }


@dataclass(frozen=True)
class La4vla:
    """Our own: msgpack maps with a `type`. Views that the policy does not take are ignored, as they are in process."""

    policy: ServedPolicy
    max_batch: int

    @property
    def max_bytes(self) -> int:
        return self.max_batch * len(self.policy.views) * PICTURE_BYTES + ELSE_BYTES

    def hello(self, contract: Mapping[str, Any]) -> bytes:
        return wire.pack(contract)

    def read(self, message: bytes | str, session: Session) -> Question | bytes:
        request = wire.unpack(message)
        kind = wire.text(request, "type")
        if kind == "reset":
            session.reset(wire.count(request, "seed"), wire.text(request, "task"), wire.count(request, "episode"))
            return wire.pack({"type": "ready", **session.key()._asdict()})
        if kind != "infer":
            raise UserError(f"`type` must be `infer` or `reset`, not {wire.shown(kind)}.")
        queries = wire.part(request, "queries")
        if not (isinstance(queries, list) and queries and all(isinstance(query, dict) for query in queries)):
            raise UserError(f"`queries` must be a list of at least one map, not {wire.shown(queries)}.")
        seen = [self._observation(query) for query in queries]
        if len(queries) == 1 and not queries[0].keys() & set(NoiseKey._fields):
            return _next_question(seen[0], session)
        return Question(seen, [_key(query) for query in queries])

    def reply(self, answer: Answer, session: Session) -> bytes:
        timing = {"queue_ms": answer.queue_ms, "infer_ms": answer.infer_ms, "batch": answer.batch}
        one_length = len({len(chunk) for chunk in answer.chunks}) == 1
        actions = np.stack(answer.chunks) if one_length else list(answer.chunks)
        return wire.pack({"type": "actions", "actions": actions, "timing": timing, "identity": self.policy.identity})

    def error(self, sentence: str) -> bytes:
        return wire.pack({"type": "error", "error": sentence})

    def _observation(self, query: Mapping[Any, Any]) -> Observation:
        views = wire.mapping(query, "views")
        return Observation(
            {name: wire.picture(wire.part(views, name), name) for name in self.policy.views},
            wire.vector(wire.part(query, "state"), "state"),
            wire.text(query, "instruction"),
        )


@dataclass(frozen=True)
class Openpi:
    """openpi's policy server. views: the client's key -> our view. chosen: the user named them, others are ignored.

    libero: its LIBERO client asks, and is translated.
    """

    policy: ServedPolicy
    views: Mapping[str, str]
    chosen: bool
    libero: bool

    @property
    def max_bytes(self) -> int:
        return max(len(OPENPI_VIEWS), len(self.views)) * PICTURE_BYTES + ELSE_BYTES

    def hello(self, contract: Mapping[str, Any]) -> bytes:
        return wire.pack(contract)

    def read(self, message: bytes | str, session: Session) -> Question | bytes:
        request = wire.unpack(message)
        pictures = {key for key, value in request.items() if isinstance(value, np.ndarray) and value.ndim == 3}
        if self.policy.views and not self.chosen and (unknown := pictures - set(self.views)):
            raise _unseen(self.policy, min(map(str, unknown)))
        seen = Observation(
            {ours: wire.picture(wire.part(request, key), key) for key, ours in self.views.items()},
            wire.vector(wire.part(request, "observation/state"), "observation/state"),
            wire.text(request, "prompt"),
        )
        if self.libero:
            seen = libero_client.translated(seen)
        else:
            libero_client.require_asked(self.policy.embodiment, seen.state)
        return _next_question(seen, session)

    def reply(self, answer: Answer, session: Session) -> bytes:
        timing: dict[str, Any] = {"infer_ms": answer.infer_ms, "queue_ms": answer.queue_ms, "batch": answer.batch}
        if session.last_total_ms is not None:
            timing["prev_total_ms"] = session.last_total_ms
        policy_timing = {"infer_ms": answer.infer_ms}
        return wire.pack({"actions": answer.chunks[0], "policy_timing": policy_timing, "server_timing": timing})

    def error(self, sentence: str) -> str:
        return sentence  # a text message is an error to openpi's client


@dataclass(frozen=True)
class Evo1:
    """Evo-1's and LA4VLA's policy server. views: picture slot -> our view. chosen: the user named them. libero: its
    LIBERO client asks, and is translated.

    channels: order of the pictures that come in; the LIBERO clients send rgb, the MetaWorld ones bgr (FACTS 4.6).
    gripper: `opening` sends the gripper as 1 = open, 0 = closed, which Evo-1's LIBERO client thresholds at 0.5
    (FACTS 4.7); `raw` sends what the embodiment says. trim_state: a state longer than the embodiment's loses its end.
    """

    policy: ServedPolicy
    views: Mapping[int, str]
    chosen: bool
    libero: bool
    channels: Literal["bgr", "rgb"]
    gripper: Literal["raw", "opening"]
    trim_state: bool

    @property
    def max_bytes(self) -> int:
        return EVO1_SLOTS * JSON_PICTURE_BYTES + ELSE_BYTES

    def hello(self, contract: Mapping[str, Any]) -> None:
        return None

    def read(self, message: bytes | str, session: Session) -> Question | bytes:
        request = wire.unpack_json(message)
        self._check_action_mask(wire.part(request, "action_mask"))
        images = wire.part(request, "image")
        if not (isinstance(images, list) and len(images) == EVO1_SLOTS):
            raise UserError(f"`image` must be a list of {EVO1_SLOTS} pictures, not {wire.shown(images)}.")
        shown = wire.vector(wire.part(request, "image_mask"), "image_mask")
        if len(shown) != EVO1_SLOTS or not np.isin(shown, (0, 1)).all():
            raise UserError(f"`image_mask` must be a list of {EVO1_SLOTS} zeros and ones.")
        views = {}
        for slot, ours in self.views.items():
            if not shown[slot]:
                raise UserError(f"`image_mask` hides slot {slot}, which is the policy's view `{ours}`; show it.")
            pixels_HWC = wire.picture_from_lists(images[slot], str(slot))
            views[ours] = pixels_HWC if self.channels == "rgb" else np.ascontiguousarray(pixels_HWC[:, :, ::-1])
        if self.policy.views and not self.chosen and (unknown := set(np.flatnonzero(shown)) - set(self.views)):
            raise _unseen(self.policy, f"slot {min(unknown)}")
        state = self._state(wire.vector(wire.part(request, "state"), "state"))
        seen = Observation(views, state, wire.text(request, "prompt"))
        return _next_question(libero_client.translated(seen) if self.libero else seen, session)

    def reply(self, answer: Answer, session: Session) -> str:
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
        """Evo-1 has no handshake: the mask is the only thing in it that tells one robot from another."""
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


def build(
    name: str, policy: ServedPolicy, views: Sequence[str], max_batch: int, libero: bool, evo1: Mapping[str, Any]
) -> La4vla | Openpi | Evo1:
    """The dialect of a name. views: `client's key=our view` each; empty for the client's own order of them.

    libero: its LIBERO client asks. evo1: options of that dialect, those that were given; for its LIBERO client the
    others are what that client needs. Raises UserError for what does not belong to the dialect.
    """
    if name not in DIALECTS:
        raise UserError(f"dialect `{name}` does not exist; choose one of {', '.join(DIALECTS)}.")
    if name != "evo1" and evo1:
        raise UserError(f"{', '.join(evo1)}: only --dialect evo1 has this option.")
    if name == "la4vla":
        if views:
            raise UserError("--view is for foreign clients; ours name the policy's views.")
        if libero:
            raise UserError("--libero-client is for foreign clients; ours show what our LIBERO env shows.")
        return La4vla(policy, max_batch)
    if libero:
        libero_client.require_fit(policy.embodiment)
    keys = OPENPI_VIEWS if name == "openpi" else tuple(map(str, range(EVO1_SLOTS)))
    pairs = _view_pairs(policy, keys, views)
    if name == "openpi":
        return Openpi(policy, pairs, bool(views), libero)
    if bad := [key for key in pairs if key not in keys]:
        raise UserError(f"--view {bad[0]}=...: Evo-1's pictures are numbered {', '.join(keys)}.")
    sizes = len(policy.embodiment.state.names), len(policy.embodiment.action.names)
    if max(sizes) > EVO1_WIDTH:
        raise UserError(f"Evo-1's clients have room for {EVO1_WIDTH} numbers; this embodiment has {max(sizes)}.")
    client = ("rgb", "opening") if libero else ("bgr", "raw")
    options = {"channels": client[0], "gripper": client[1], "trim_state": False, **evo1}
    if options["gripper"] == "opening" and not policy.embodiment.action.dims("gripper"):
        raise UserError("--gripper opening: this embodiment's action has no dimension named gripper.")
    slots = {int(key): ours for key, ours in pairs.items()}
    return Evo1(policy, slots, bool(views), libero, **options)


def _view_pairs(policy: ServedPolicy, keys: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """The client's key -> our view: as the user said, or in order."""
    if not given:
        if len(policy.views) > len(keys):
            raise UserError(f"the policy has {len(policy.views)} views; name the client's key of each with --view.")
        return dict(zip(keys, policy.views, strict=False))
    pairs = {key: ours for key, _, ours in (pair.rpartition("=") for pair in given)}
    if sorted(pairs.values()) != sorted(policy.views) or len(pairs) != len(given) or not all(pairs):
        needed = ", ".join(policy.views) or "no view"
        raise UserError(f"--view takes KEY=VIEW once for each view of the policy, which has {needed}.")
    return pairs


def _key(query: Mapping[Any, Any]) -> NoiseKey:
    return NoiseKey(
        wire.count(query, "seed"), wire.text(query, "task"), wire.count(query, "episode"), wire.count(query, "query")
    )


def _next_question(seen: Observation, session: Session) -> Question:
    question = Question([seen], [session.key()])
    session.query += 1
    return question


def _unseen(policy: ServedPolicy, what: str) -> UserError:
    return UserError(
        f"{wire.shown(what)} shows a view that this policy ({', '.join(policy.views)}) was not trained with; "
        "serve with --view to say which are used."
    )
