"""`la4vla serve`: a checkpoint behind a websocket. The transport only; what is said is in `dialects`.

Listens on this machine alone unless told otherwise, and then asks every client for a token. A browser's page is turned
away (its requests name their origin). `GET /healthz` answers without a token. Refuses messages beyond the size limit by
closing the connection; every other bad message is answered by one sentence and the connection stays open.
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
from la4vla.serve.batcher import Answer, Batcher, Question
from la4vla.serve.policy import PolicyLost, ServedPolicy
from la4vla.types import UserError

HEALTH = "/healthz"
PATIENCE_S = (
    10.0  # at the end, for clients that take no reply; as long as websockets waits for one that says no goodbye
)


@dataclass(frozen=True)
class Settings:
    """What `la4vla serve` takes, and the defaults.

    folder: a checkpoint, or a run. port: None for the dialect's own, 0 for any free one. seed: of connections that
    name none. device: empty for the best there is. max_batch: chunks computed together at most. max_bytes: of one
    message; None for what the dialect's largest needs. token: asked of every client; empty for none on this machine and
    for a fresh one elsewhere. views: `client's key=our view` each. libero_client: openpi's or Evo-1's LIBERO client
    asks. evo1: options of that dialect.
    """

    folder: Path
    dialect: str = "la4vla"
    host: str = "127.0.0.1"
    port: int | None = None
    seed: int = 0
    device: str = ""
    max_batch: int = 16
    max_bytes: int | None = None
    token: str = ""
    views: Sequence[str] = ()
    libero_client: bool = False
    evo1: dict[str, str | bool] = field(default_factory=dict)


def serve(settings: Settings) -> int:
    """Loads the checkpoint and serves it until SIGTERM or SIGINT. Returns 0. Raises UserError for bad input."""
    if not 1 <= settings.max_batch <= wire.MAX_ITEMS:
        raise UserError(f"--max-batch {settings.max_batch}: must be from 1 to {wire.MAX_ITEMS}.")
    if settings.seed < 0 or (settings.max_bytes is not None and settings.max_bytes < 1):
        raise UserError("--seed must be at least 0 and --max-bytes at least 1.")
    if not 0 <= (settings.port or 0) <= 65535:
        raise UserError(f"--port {settings.port}: ports go from 0 to 65535.")
    device = usable_device(settings.device)
    policy = ServedPolicy.load(settings.folder, device)
    # Pictures in JSON are half a million lists; the collector need not walk through all of torch while they are made.
    gc.collect()
    gc.freeze()
    try:
        return asyncio.run(_until_signal(policy, settings))
    finally:
        gc.unfreeze()


async def _until_signal(policy: ServedPolicy, settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(policy, settings, stop, _announce)
    return 0


async def run(
    policy: ServedPolicy, settings: Settings, stop: asyncio.Event, started: Callable[[Server, str], None]
) -> None:
    """Serves until `stop` is set. started: called with the server and its URL once clients may come.

    Raises UserError where it cannot listen, and what the policy raises if that is no UserError.
    """
    server = Server(policy, settings)
    port = dialects.PORTS[settings.dialect] if settings.port is None else settings.port
    try:
        listening = await listen(
            server.talk,
            settings.host,
            port,
            process_request=server.admit,
            origins=[None],
            compression=None,
            max_size=server.max_bytes,
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


class Server:
    """One policy and its clients."""

    def __init__(self, policy: ServedPolicy, settings: Settings) -> None:
        self.policy = policy
        self.settings = settings
        self.batcher = Batcher(policy, settings.max_batch)
        self.dialect = dialects.build(
            settings.dialect, policy, settings.views, settings.max_batch, settings.libero_client, settings.evo1
        )
        self.max_bytes = self.dialect.max_bytes if settings.max_bytes is None else settings.max_bytes
        self.token = settings.token or ("" if _is_here(settings.host) else secrets.token_urlsafe(24))
        self._numbers = count()
        self._owed: set[asyncio.Future[None]] = set()

    async def stop(self) -> None:
        """What is being computed is still answered, all else refused. Connections stay; nobody on them waits."""
        await self.batcher.stop()
        if self._owed:
            await asyncio.wait(self._owed, timeout=PATIENCE_S)

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before the connection is one: the health check, and 401 for who lacks the token."""
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = [_token(header) for header in request.headers.get_all("Authorization")]
        if self.token and not (len(given) == 1 and hmac.compare_digest(given[0], self.token.encode())):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "this server wants its token in `Authorization`.\n")
        return None

    async def talk(self, connection: ServerConnection) -> None:
        """One connection from hello to its end."""
        number = next(self._numbers)
        session = self._session(connection, number)
        quiet = False
        contract = dialects.contract(self.policy, self.settings.dialect, self.settings.max_batch, self.max_bytes)
        try:
            if (hello := self.dialect.hello(contract)) is not None:
                await connection.send(hello)
            async for message in connection:
                came = time.perf_counter()
                with self._owing():
                    try:
                        asked = self.dialect.read(message, session)
                        if isinstance(asked, bytes):
                            reply = asked
                        else:
                            reply = self.dialect.reply(await self._answer(asked, connection), session)
                    except PolicyLost as error:
                        await connection.close(CloseCode.INTERNAL_ERROR, str(error))
                        return
                    except UserError as error:
                        sentence = "".join(letter if letter.isprintable() else "?" for letter in str(error))
                        reply = self.dialect.error(sentence)
                        if not quiet:  # Evo-1's clients do not show it; once is enough for a log
                            print(f"client {number}: {sentence}", file=sys.stderr, flush=True)
                            quiet = True
                    await connection.send(reply)
                session.last_total_ms = 1000 * (time.perf_counter() - came)
        except ConnectionClosed:
            pass  # clients may leave in the middle of a word

    @contextmanager
    def _owing(self) -> Iterator[None]:
        """A client is owed a reply."""
        replied = asyncio.get_running_loop().create_future()
        self._owed.add(replied)
        try:
            yield
        finally:
            self._owed.remove(replied)
            replied.set_result(None)

    async def _answer(self, question: Question, connection: ServerConnection) -> Answer:
        """Raises ConnectionClosed, and asks no more, where the client leaves before it is answered."""
        asking = asyncio.create_task(self.batcher.ask(question))
        leaving = asyncio.create_task(connection.wait_closed())
        await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not asking.done():
            asking.cancel()
            raise connection.protocol.close_exc
        return asking.result()

    def _session(self, connection: ServerConnection, number: int) -> dialects.Session:
        """ws://host:port/NAME draws its noise from NAME, other connections from their number."""
        assert connection.request is not None
        path = unquote(connection.request.path)  # raw bytes in it have become lone surrogates, which name nothing
        name = path.encode(errors="replace").decode().strip("/")
        if name:
            return dialects.Session(self.settings.seed, name, 0)
        return dialects.Session(self.settings.seed, "connection", number)


def _announce(server: Server, url: str) -> None:
    policy = server.policy
    print(f"policy {policy.identity[:16]} step {policy.step}, views: {', '.join(policy.views) or 'none'}")
    if server.token and not server.settings.token:
        print(f"token: {server.token}")
    print(f"serving {server.settings.dialect} on {url}", flush=True)


def _is_here(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
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
