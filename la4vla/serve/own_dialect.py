"""Our own dialect: msgpack maps with a `type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from la4vla.serve import wire
from la4vla.serve.batcher import Answer, Queries
from la4vla.serve.dialect import ELSE_BYTES, IMAGE_BYTES, Session, next_queries
from la4vla.serve.input_check import Findings
from la4vla.serve.policy_like import NoiseKey, Served
from la4vla.serve.privileged import TEXTS
from la4vla.types import Observation, UserError


@dataclass(frozen=True)
class La4vla:
    """Views that the policy does not take are ignored, as they are in process.

    policy      that is served
    max_batch   queries that one message may hold
    """

    policy: Served
    max_batch: int

    @property
    def max_bytes(self) -> int:
        return self.max_batch * len(self.policy.views) * IMAGE_BYTES + ELSE_BYTES

    def hello(self, contract: Mapping[str, Any]) -> bytes:
        return wire.pack(contract)

    def read(self, message: bytes | str, session: Session) -> Queries | bytes:
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
        observations = [self._observation(query) for query in queries]
        if len(queries) == 1 and not queries[0].keys() & set(NoiseKey._fields):
            return next_queries(observations[0], session)
        return Queries(observations, [_key(query) for query in queries])

    def reply(self, answer: Answer, findings: Findings, session: Session) -> bytes:
        timing = {"queue_ms": answer.queue_ms, "infer_ms": answer.infer_ms, "batch": answer.batch}
        timing["outside"] = list(findings.outside)
        one_length = len({len(chunk) for chunk in answer.chunks}) == 1
        actions = np.stack(answer.chunks) if one_length else list(answer.chunks)
        said = [[text._asdict() for text in texts] for texts in answer.said]
        about = {"timing": timing, "said": said, "notes": list(findings.notes), "identity": self.policy.identity}
        return wire.pack({"type": "actions", "actions": actions, **about})

    def error(self, sentence: str) -> bytes:
        return wire.pack({"type": "error", "error": sentence})

    def _observation(self, query: Mapping[Any, Any]) -> Observation:
        views = wire.mapping(query, "views")
        return Observation(
            {name: wire.image(wire.part(views, name), name) for name in self.policy.views},
            wire.vector(wire.part(query, "state"), "state"),
            wire.text(query, "instruction"),
            self._privileged(query),
            "replan" in query and wire.flag(query, "replan"),
        )

    def _privileged(self, query: Mapping[Any, Any]) -> dict[str, float | str]:
        """What the policy needs to be told of the simulator."""
        if not self.policy.privileged:
            return {}
        told = wire.mapping(query, "privileged")
        return {
            name: wire.text(told, name) if name in TEXTS else float(wire.vector([wire.part(told, name)], name)[0])
            for name in self.policy.privileged
        }


def _key(query: Mapping[Any, Any]) -> NoiseKey:
    return NoiseKey(
        wire.count(query, "seed"), wire.text(query, "task"), wire.count(query, "episode"), wire.count(query, "query")
    )
