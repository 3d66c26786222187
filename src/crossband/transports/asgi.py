"""A WebSocket over ASGI messages, for servers that lend no lane."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from crossband.transports.framed import CLOSE_TIME, FramedConnection
from crossband.transports.http import Request


class ASGIWebSocket:
    """Carries a connection: one task reads its frames, another one drains its outbox."""

    __slots__ = ("_closing", "_connection", "_idle", "_reading", "_request")

    def __init__(self, connection: FramedConnection, request: Request) -> None:
        self._connection = connection
        self._request = request
        # None while writing; else what wake() resolves.
        self._idle: asyncio.Future[None] | None = None
        # Set once, to end the WebSocket after what is queued.
        self._closing: tuple[int, str] | None = None
        # Stops the reading when our close gets no answer. None before it begins.
        self._reading: asyncio.Timeout | None = None

    @property
    def busy(self) -> bool:
        """Whether the peer does not take what was written: between ticks, else idle."""
        return self._idle is None

    def wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def close(self, code: int, reason: str, *, now: bool = False) -> None:
        if self._closing is None:
            self._closing = (code, reason)
            self.wake()
        self._stop_reading(0.1 if now else CLOSE_TIME)

    def _stop_reading(self, seconds: float) -> None:
        if self._reading is not None:
            # Raised when the timeout is expiring already.
            with contextlib.suppress(RuntimeError):
                self._reading.reschedule(asyncio.get_running_loop().time() + seconds)

    async def carry(self, receive_frame: Callable[[str | bytes], None]) -> None:
        """Read and write until the WebSocket has ended."""
        writing = asyncio.get_running_loop().create_task(self._write())
        try:
            # The timeout is of those who were closed, and did not answer.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None) as self._reading:
                    if self._closing is not None:
                        self._stop_reading(CLOSE_TIME)
                    await self._read(receive_frame)
        finally:
            writing.cancel()

    async def _read(self, receive_frame: Callable[[str | bytes], None]) -> None:
        connection = self._connection
        read = self._request.read
        while (message := await read())["type"] != "websocket.disconnect":
            if connection.closed:
                continue
            frame = message.get("text")
            receive_frame(frame if frame is not None else message["bytes"])
            if not connection.closed:
                await connection.rested()
                await connection.wait_for_space()

    async def _write(self) -> None:
        connection = self._connection
        loop = asyncio.get_running_loop()
        send = self._request.send
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
                elif self._closing is not None:
                    code, reason = self._closing
                    await send({"type": "websocket.close", "code": code, "reason": reason})
                    return
                else:
                    waited = False
                    self._idle = loop.create_future()
                    await self._idle
                    self._idle = None
