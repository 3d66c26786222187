"""Writes a connection's outbox as the messages of an ASGI WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from crossband.session import Connection

if TYPE_CHECKING:
    from starlette.types import Send


class Writer:
    """Drains a connection's queue into an ASGI WebSocket, in one task."""

    __slots__ = ("_connection", "_idle", "_send", "closing")

    def __init__(self, connection: Connection, send: Send) -> None:
        self._connection = connection
        self._send = send
        # None while writing; else what wake() resolves.
        self._idle: asyncio.Future[None] | None = None
        # Set once, to end the WebSocket after what is queued.
        self.closing: tuple[int, str] | None = None

    @property
    def busy(self) -> bool:
        """Whether the peer does not take what was written: between ticks, else idle."""
        return self._idle is None

    def wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def close(self, code: int, reason: str) -> None:
        if self.closing is None:
            self.closing = (code, reason)
            self.wake()

    async def run(self) -> None:
        connection = self._connection
        loop = asyncio.get_running_loop()
        send = self._send
        waited = False
        # The server raises when the peer is gone; the reader sees that too, and cleans up.
        with contextlib.suppress(Exception):
            while True:
                if connection.queue:
                    if waited:
                        # What came meanwhile came for a client that was behind.
                        connection.drop()
                    waited = True
                    for wire in connection.take_batch():
                        for part in wire.messages:
                            kind = "text" if isinstance(part, str) else "bytes"
                            await send({"type": "websocket.send", kind: part})
                        connection.wrote(wire.size)
                elif self.closing is not None:
                    code, reason = self.closing
                    await send({"type": "websocket.close", "code": code, "reason": reason})
                    return
                else:
                    waited = False
                    self._idle = loop.create_future()
                    await self._idle
                    self._idle = None
