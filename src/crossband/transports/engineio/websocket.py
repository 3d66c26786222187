"""A session over an ASGI WebSocket, for servers that lend no lane."""

from __future__ import annotations

import asyncio
import contextlib

from crossband.errors import CloseCode
from crossband.transports.engineio.session import EngineConnection
from crossband.transports.framed import CLOSE_TIME
from crossband.transports.http import Request
from crossband.transports.writer import Writer


class WebSocket:
    """Carries a session by ASGI messages."""

    __slots__ = ("_reading", "_writer")

    def __init__(self, writer: Writer, reading: asyncio.Timeout) -> None:
        self._writer = writer
        # Stops the reading when our close gets no answer.
        self._reading = reading

    @property
    def busy(self) -> bool:
        return self._writer.busy

    def wake(self) -> None:
        self._writer.wake()

    def close(self, code: CloseCode, reason: str, *, now: bool) -> None:
        self._writer.close(code, reason)
        patience = 0.1 if now else CLOSE_TIME
        # Raised when the timeout is expiring already.
        with contextlib.suppress(RuntimeError):
            self._reading.reschedule(asyncio.get_running_loop().time() + patience)


async def carry(connection: EngineConnection, request: Request, *, accepted: bool) -> None:
    """Carry a session over a request's WebSocket until one of them ends."""
    writer = Writer(connection, request.send)
    writing: asyncio.Task[None] | None = None
    reason = "transport close"
    try:
        if not accepted:
            await request.accept()
        async with asyncio.timeout(None) as reading:
            connection.carrier = WebSocket(writer, reading)
            writing = asyncio.get_running_loop().create_task(writer.run())
            if connection.closed:
                connection.carrier.close(CloseCode.NORMAL, "", now=False)
            await _read(connection, request)
    except TimeoutError:
        reason = "transport error"
    finally:
        connection.end(reason)
        connection.connection_lost()
        if writing is not None:
            writing.cancel()


async def _read(connection: EngineConnection, request: Request) -> None:
    limit = connection.limits.max_http_buffer_size
    while (message := await request.read())["type"] != "websocket.disconnect":
        if connection.closed:
            continue
        text = message.get("text")
        frame: str | bytes = text if text is not None else message["bytes"]
        if len(frame) > limit:
            connection.too_large()
            continue
        connection.take_frame(frame)
        if not connection.closed:
            await connection.rested()
            await connection.caught_up()
