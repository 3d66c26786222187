"""uvicorn's WebSocket protocol, for applications that do not take the lane."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import websockets.server
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode

from crossband.errors import FAULTS
from crossband.lane.closing import BROKEN_TIME, half_close

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent


class ServerProtocol(websockets.server.ServerProtocol):
    """The protocol of `websockets`, but a client may close in the middle of a message."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            # No more fragments will come, and none need to (RFC 6455 §5.4, §5.5.1).
            self.current_size: int | None = None
        super().recv_frame(frame)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, for applications that do not take the lane."""

    # Most frames of one message. Their bytes are bounded anyway, but even empty ones cost
    # memory.
    fragments: ClassVar[int] = 1_024

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.conn: websockets.server.ServerProtocol = ServerProtocol(
            extensions=self.conn.available_extensions,
            max_size=config.ws_max_size,
            logger=self.logger,
        )

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Not HTTP, or over the header limits of `websockets` (128 lines of 8 KiB): uvicorn
        # checks only for errors in frames, and would keep such a connection forever.
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.transport.close()

    def _half_close(self) -> None:
        # uvicorn waits 10 s for a client at fault to answer.
        if not self.transport.is_closing():
            half_close(self.transport)
            asyncio.get_running_loop().call_later(BROKEN_TIME, self.transport.abort)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= self.fragments:
            self.frames: list[bytes] = []
            self.conn.fail(1009, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def shutdown(self) -> None:
        if self.conn.handshake_exc is not None:
            self.transport.close()
        else:
            super().shutdown()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.close" and message.get("code") in FAULTS:
            self._half_close()
        # An application that refused has answered; otherwise uvicorn logs an error.
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True
