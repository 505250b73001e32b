"""The client of `la4vla serve`: a policy on another machine behind the interface of the one in process.

It has one connection and sends one message at a time, with no more queries than the server computes together. A
UserError of one sentence says that no server answers, that it wants another token or speaks another dialect, and what
it refuses. PolicyLost says that it went away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from la4vla.serve import wire
from la4vla.serve.dialects import SCHEMA
from la4vla.serve.policy import PolicyLost, require_match
from la4vla.serve.policy_like import EpisodeKey, NoiseKey, Said, TrainedInputs
from la4vla.types import Embodiment, Observation, UserError

DIALECT = "la4vla"
MAX_REPLY = 2**24  # bytes: a batch of 64 chunks of 50 x 24 takes a third of a megabyte


class RemotePolicy:
    """A served policy with what `ServedPolicy` has: identity, step, embodiment, views, versions, check,
    open, infer, said and others (Served).

    Close it, or use it in `with`.

    contract   the server's hello
    timing     of the last answer, as the server measured it, and the state's dimensions `outside` their trained range
    """

    def __init__(self, url: str, token: str = "", timeout_s: float = 60.0) -> None:
        """Connects. Raises UserError where no server lets us in.

        url         `ws://host:port`
        token       that the server asks for, or empty
        timeout_s   for the connection and for each answer
        """
        self.url = url
        self.timeout_s = timeout_s
        self.timing: dict[str, Any] = {}
        self._said: list[tuple[Said, ...]] = []
        self._closing = ExitStack()
        with ExitStack() as opening:  # closes the connection again where the server is refused
            self._socket = opening.enter_context(_connected(url, token, timeout_s))
            self.contract = self._receive("hello")
            if self.contract["schema"] != SCHEMA:
                raise UserError(
                    f"{url}: the server speaks schema {self.contract['schema']}, this client {SCHEMA}; upgrade."
                )
            if self.contract["dialect"] != DIALECT:
                spoken = self.contract["dialect"]
                raise UserError(f"{url}: the server speaks the dialect {spoken}; serve with --dialect {DIALECT}.")
            self.identity: str = self.contract["identity"]
            self.step: int = self.contract["step"]
            self.views: tuple[str, ...] = tuple(self.contract["views"])
            self.versions: dict[str, str] = self.contract["versions"]
            self.horizon: int = self.contract["horizon"]
            self.counts_on: int = self.contract["counts_on"]
            self.privileged: tuple[str, ...] = tuple(self.contract["privileged"])
            self.embodiment = Embodiment.from_dict(self.contract["embodiment"])
            self._closing = opening.pop_all()

    @property
    def trained(self) -> TrainedInputs | None:
        told = self.contract
        if not told["state_min"]:
            return None
        sizes = {name: tuple((height, width) for height, width in sizes) for name, sizes in told["view_sizes"].items()}
        return TrainedInputs(tuple(told["state_min"]), tuple(told["state_max"]), sizes, told["image_size"])

    def check(self, embodiment: Embodiment, views: Sequence[str]) -> None:
        """Raises UserError where an env with this embodiment and these views cannot be driven by this policy."""
        require_match(self.embodiment, self.views, embodiment, views)

    def open(self, episode: EpisodeKey) -> None:
        """Does nothing: the server opens an episode when its first query comes."""

    def infer(self, observations: Sequence[Observation], noise_keys: Sequence[NoiseKey]) -> list[np.ndarray]:
        """One chunk for each observation: float32 [T, A of the embodiment], raw units, not clipped.

        What the server notes about the observations goes to stderr. Raises UserError for what the server refuses, and
        PolicyLost where the connection is lost.
        """
        queries = [
            {
                "views": {name: given.views[name] for name in self.views if name in given.views},
                "state": np.asarray(given.state, np.float32),
                "instruction": given.instruction,
                **({"privileged": dict(given.privileged)} if self.privileged else {}),
                **({"replan": True} if given.replan else {}),
                **key._asdict(),
            }
            for given, key in zip(observations, noise_keys, strict=True)
        ]
        chunks: list[np.ndarray] = []
        self._said = []
        size = self.contract["max_batch"]
        for start in range(0, len(queries), size):
            answer = self._ask({"type": "infer", "queries": queries[start : start + size]}, "actions")
            self.timing = answer["timing"]
            for note in answer["notes"]:
                print(f"{self.url}: {note}", file=sys.stderr, flush=True)
            chunks += list(answer["actions"])
            self._said += [tuple(Said(**text) for text in texts) for texts in answer["said"]]
        return chunks

    def said(self) -> list[tuple[Said, ...]]:
        return self._said

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, message: dict[str, Any], kind: str) -> dict[str, Any]:
        try:
            self._socket.send(wire.pack(message))
        except ConnectionClosed as error:
            raise self._lost(error) from error
        return self._receive(kind)

    def _receive(self, kind: str) -> dict[str, Any]:
        try:
            answer = wire.unpack(self._socket.recv(self.timeout_s))
        except TimeoutError as error:
            self.close()  # an answer that comes later must not be taken for the next query's
            seconds = f"{self.timeout_s:g} s"
            raise PolicyLost(f"{self.url}: no answer in {seconds}; is it a server of our dialect?") from error
        except ConnectionClosed as error:
            raise self._lost(error) from error
        if answer.get("type") == "error":
            raise UserError(f"{self.url} refuses: {answer['error']}")
        if answer.get("type") != kind:
            raise UserError(f"{self.url} does not speak our dialect; serve with --dialect {DIALECT}.")
        return answer

    def _lost(self, error: ConnectionClosed) -> PolicyLost:
        return PolicyLost(f"{self.url}: the connection is lost ({error}); connect again.")


def _connected(url: str, token: str, timeout_s: float) -> ClientConnection:
    """An open connection. Raises UserError for a bad address and where no server lets us in."""
    try:
        return connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"} if token else {},
            compression=None,
            open_timeout=timeout_s,
            max_size=MAX_REPLY,
            ping_interval=None,
            proxy=None,
        )
    except (OSError, InvalidHandshake) as error:
        if isinstance(error, InvalidStatus) and error.response.status_code == HTTPStatus.UNAUTHORIZED:
            raise UserError(f"{url}: HTTP 401; give the token that the server has or printed.") from error
        raise UserError(f"{url}: no policy server answers there ({error}); start `la4vla serve`.") from error
    except (InvalidURI, ValueError) as error:  # ValueError: a port that is no number, or none that there is
        raise UserError(f"{url}: not an address ({error}); give one such as ws://127.0.0.1:8000.") from error
