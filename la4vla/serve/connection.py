"""Websocket connections that name `--max-bytes` when a message is too large for them."""

from __future__ import annotations

from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode
from websockets.server import ServerProtocol
from websockets.typing import LoggerLike

CLOSE_REASON = 123  # bytes that a close frame has room for


class _SizedProtocol(ServerProtocol):
    """Names the option in the reason when it closes a connection for a message that is too large."""

    def __init__(self, max_bytes: int, logger: LoggerLike) -> None:
        super().__init__(max_size=max_bytes, logger=logger)
        self._max_bytes = max_bytes

    def fail(self, code: CloseCode | int, reason: str = "") -> None:
        if code == CloseCode.MESSAGE_TOO_BIG:
            over = f"the message is over --max-bytes {self._max_bytes}; send smaller images or serve with more"
            reason = f"{over} ({reason})"[:CLOSE_REASON]
        super().fail(code, reason)


def connection_type(max_bytes: int) -> type[ServerConnection]:
    """The class of connections whose messages may have that many bytes, for websockets' `create_connection`."""

    class SizedConnection(ServerConnection):
        def __init__(self, protocol: ServerProtocol, *arguments: Any, **options: Any) -> None:
            super().__init__(_SizedProtocol(max_bytes, protocol.logger), *arguments, **options)

    return SizedConnection
