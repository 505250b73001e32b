"""`la4vla serve`: a checkpoint behind a websocket. This is the transport; `dialects` has the messages.

The server listens on this machine alone unless told otherwise, and then asks every client for a token. A request that
names an origin comes from a page in a browser and is refused unless the user allows it. `GET /healthz` answers without
a token. A message beyond the size limit closes its connection; any other bad message gets one sentence for an answer,
and the connection stays open. The log has each kind of error once a connection.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hmac
import ipaddress
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from pathlib import Path
from urllib.parse import unquote

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from la4vla.device import usable_device
from la4vla.serve import dialects, wire
from la4vla.serve.batcher import Answer, Batcher, Queries
from la4vla.serve.client_log import ClientLog, printable
from la4vla.serve.connection import connection_type
from la4vla.serve.dialect import Session
from la4vla.serve.input_check import InputCheck, InputDifference, refusal
from la4vla.serve.load import load_served
from la4vla.serve.policy import PolicyLost
from la4vla.serve.policy_like import Served
from la4vla.types import UserError

HEALTH = "/healthz"
MAX_ORIGINS = 30  # refused ones that are logged
PATIENCE_S = 10.0  # at the end, for clients that do not take their reply; websockets waits as long for their goodbye


@dataclass(frozen=True)
class Settings:
    """The options of `la4vla serve` and their defaults.

    folder          a checkpoint, or a run (then its newest one)
    text            settings of a model that writes; None for a policy with actions
    high            settings of who says a policy's low-level instructions; None for a policy that is told the task
    base            where the weights lie that its adapters belong to; empty for where they lay in training
    dialect         that the clients speak
    host            to listen on
    port            None for the dialect's own, 0 for any free one
    seed            of the noise of clients that send none
    device          empty for the best there is
    max_batch       the most chunks that are computed together
    strict          whether observations that differ from the training data are refused
    max_bytes       size of a message at most; None for the largest that the dialect's clients should need
    token           asked of every client; empty for none on this machine and for a fresh one elsewhere
    allow_origins   that requests may name
    views           `client's key=our view` each
    libero_client   whether the client is openpi's or Evo-1's LIBERO client
    openpi          options of that dialect
    evo1            options of that dialect
    """

    folder: Path
    base: str = ""
    weights: str = "raw"
    text: Path | None = None
    high: Path | None = None
    embodiment: str = ""
    dialect: str = "la4vla"
    host: str = "127.0.0.1"
    port: int | None = None
    seed: int = 0
    device: str = ""
    max_batch: int = 16
    strict: bool = False
    max_bytes: int | None = None
    token: str = ""
    allow_origins: Sequence[str] = ()
    views: Sequence[str] = ()
    libero_client: bool = False
    openpi: dict[str, str] = field(default_factory=dict)
    evo1: dict[str, str | bool] = field(default_factory=dict)


def serve(settings: Settings) -> int:
    """Loads the checkpoint and serves it until SIGTERM or SIGINT. Returns 0. Raises UserError for bad input."""
    if not 1 <= settings.max_batch <= wire.MAX_QUERIES:
        raise UserError(f"--max-batch {settings.max_batch}: must be from 1 to {wire.MAX_QUERIES}.")
    if settings.seed < 0 or (settings.max_bytes is not None and settings.max_bytes < 1):
        raise UserError("--seed must be at least 0 and --max-bytes at least 1.")
    if not 0 <= (settings.port or 0) <= 65535:
        raise UserError(f"--port {settings.port}: ports go from 0 to 65535.")
    device = usable_device(settings.device)
    policy = load_served(
        settings.folder, settings.text, device, settings.base, settings.high, settings.embodiment, settings.weights
    )
    # An image in JSON is half a million lists, and the collector would walk through all of torch while they are made.
    gc.collect()
    gc.freeze()
    try:
        return asyncio.run(_until_signal(policy, settings))
    finally:
        gc.unfreeze()


async def _until_signal(policy: Served, settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(policy, settings, stop, _announce)
    return 0


async def run(
    policy: Served, settings: Settings, stop: asyncio.Event, started: Callable[[PolicyServer, str], None]
) -> None:
    """Serves until `stop` is set, and calls `started` with the server and its URL once clients can connect.

    Raises UserError where it cannot listen, and any error of the policy that is not a UserError.
    """
    server = PolicyServer(policy, settings)
    port = dialects.PORTS[settings.dialect] if settings.port is None else settings.port
    try:
        listening = await listen(
            server.talk,
            settings.host,
            port,
            process_request=server.admit,
            create_connection=connection_type(server.max_bytes),
            compression=None,
            max_queue=1,
            ping_interval=None,  # clients that step a simulator answer no ping for minutes
        )
    except OSError as error:
        raise UserError(f"cannot listen on {settings.host} port {port} ({error.strerror}); choose --port.") from error
    answering = asyncio.create_task(server.batcher.run())
    stopping = asyncio.create_task(stop.wait())
    async with listening:
        at = next(iter(listening.sockets)).getsockname()[1]
        started(server, f"ws://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{at}")
        await asyncio.wait((answering, stopping), return_when=asyncio.FIRST_COMPLETED)
        await server.stop()
    crashed = answering.done()
    answering.cancel()
    stopping.cancel()
    await asyncio.wait((answering, stopping))
    if crashed:
        answering.result()


class PolicyServer:
    """One policy and its clients."""

    def __init__(self, policy: Served, settings: Settings) -> None:
        self.policy = policy
        self.settings = settings
        self.batcher = Batcher(policy, settings.max_batch)
        self.dialect = dialects.build(
            settings.dialect,
            policy,
            settings.views,
            settings.max_batch,
            settings.libero_client,
            settings.openpi,
            settings.evo1,
        )
        self.max_bytes = self.dialect.max_bytes if settings.max_bytes is None else settings.max_bytes
        self.token = settings.token or ("" if _is_here(settings.host) else secrets.token_urlsafe(24))
        self._check = InputCheck(policy.embodiment.state, policy.trained) if policy.trained else None
        self._numbers = count()
        self._refused: set[str] = set()
        self._owed: set[asyncio.Future[None]] = set()

    async def stop(self) -> None:
        """Answers the present batch and refuses everything else. Connections stay open, and no client waits."""
        await self.batcher.stop()
        if self._owed:
            await asyncio.wait(self._owed, timeout=PATIENCE_S)

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers a request that does not become a connection: the health check, 403 for an origin that is not allowed,
        and 401 without the token."""
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        for origin in request.headers.get_all("Origin"):
            if origin not in self.settings.allow_origins:
                return connection.respond(HTTPStatus.FORBIDDEN, f"{self._refusal(origin)}\n")
        given = [_token(header) for header in request.headers.get_all("Authorization")]
        if self.token and not (len(given) == 1 and hmac.compare_digest(given[0], self.token.encode())):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "this server wants its token in `Authorization`.\n")
        return None

    async def talk(self, connection: ServerConnection) -> None:
        """Serves one connection from hello to its end."""
        number = next(self._numbers)
        session, log = self._session(connection, number), ClientLog(f"client {number}")
        contract = dialects.contract(self.policy, self.settings.dialect, self.settings.max_batch, self.max_bytes)
        try:
            if (hello := self.dialect.hello(contract)) is not None:
                await connection.send(hello)
            async for message in connection:
                came = time.perf_counter()
                with self._owing():
                    try:
                        queries = self.dialect.read(message, session)
                        if isinstance(queries, bytes):
                            reply = queries
                        else:
                            differences = self._compared(queries, log)
                            answer = await self._answer(queries, connection)
                            reply = self.dialect.reply(answer, session.findings(differences), session)
                    except PolicyLost as error:
                        await connection.close(CloseCode.INTERNAL_ERROR, str(error))
                        return
                    except UserError as error:
                        reply = self.dialect.error(printable(str(error)))
                        log.error(str(error))  # for clients that do not show it, as Evo-1's
                    await connection.send(reply)
                session.last_total_ms = 1000 * (time.perf_counter() - came)
        except ConnectionClosed as error:  # a client may leave at any moment
            if error.sent and error.sent.code == CloseCode.MESSAGE_TOO_BIG:
                log.error(f"connection closed, {error.sent.reason}")

    def _compared(self, queries: Queries, log: ClientLog) -> list[InputDifference]:
        """The observations' differences to the training data, which are logged. Raises UserError if there are any and
        the server is strict."""
        if self._check is None:
            return []
        differences = self._check.differences(queries.observations)
        if differences and self.settings.strict:
            raise UserError(refusal(differences))
        for difference in differences:
            log.note(difference)
        return differences

    @contextmanager
    def _owing(self) -> Iterator[None]:
        """While it lasts, a client is owed a reply, and `stop` waits for it."""
        replied = asyncio.get_running_loop().create_future()
        self._owed.add(replied)
        try:
            yield
        finally:
            self._owed.remove(replied)
            replied.set_result(None)

    async def _answer(self, queries: Queries, connection: ServerConnection) -> Answer:
        """Raises ConnectionClosed where the client leaves before it is answered; nothing more is computed for it."""
        asking = asyncio.create_task(self.batcher.ask(queries))
        leaving = asyncio.create_task(connection.wait_closed())
        await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not asking.done():
            asking.cancel()
            raise connection.protocol.close_exc
        return asking.result()

    def _refusal(self, origin: str) -> str:
        """Why an origin is refused, which is logged once each."""
        named = printable(origin[:200])
        why = f"the origin {named} is not allowed; if it is no page in a stranger's browser: --allow-origin {named}"
        if origin not in self._refused and len(self._refused) < MAX_ORIGINS:
            self._refused.add(origin)
            print(f"refused (HTTP 403): {why}", file=sys.stderr, flush=True)
        return why

    def _session(self, connection: ServerConnection, number: int) -> Session:
        """ws://host:port/NAME draws its noise from NAME, other connections from their number."""
        assert connection.request is not None
        path = unquote(connection.request.path)  # raw bytes in it have become lone surrogates, which name nothing
        name = path.encode(errors="replace").decode().strip("/")
        if name:
            return Session(self.settings.seed, name, 0)
        return Session(self.settings.seed, "connection", number)


def _announce(server: PolicyServer, url: str) -> None:
    policy = server.policy
    print(f"policy {policy.identity[:16]} step {policy.step}, views: {', '.join(policy.views) or 'none'}")
    if server.token and not server.settings.token:
        print(f"token: {server.token}")
    print(f"serving {server.settings.dialect} on {url}", flush=True)


def _is_here(host: str) -> bool:
    """Whether only this machine can reach a server on that host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(header: str) -> bytes:
    """The token of `Authorization: Bearer TOKEN`, `Api-Key TOKEN` (openpi's clients) or `Basic` with the token as the
    password (what any client sends for ws://any:TOKEN@host); empty for anything else."""
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() in ("bearer", "api-key"):
        return value.encode(errors="surrogateescape")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""
