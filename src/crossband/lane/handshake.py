"""A WebSocket from its handshake until the lane or uvicorn's protocol accepts it."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_client_addr,
    get_path_with_query_string,
)

from crossband.lane.deflate import negotiate
from crossband.lane.fallback import WebSocketProtocol
from crossband.lane.head import Head
from crossband.lane.websocket import WebSocketLane
from crossband.lane.wrappers import is_own
from crossband.transports.lane import EXTENSION, FrameLane, FramePeer

if TYPE_CHECKING:
    from starlette.types import Receive, Send

logger: Final = logging.getLogger("crossband")

# Bytes a client may send before it is accepted; at this many, reading pauses.
MAX_EARLY: Final = 65_536
# RFC 6455 §1.3.
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class PendingWebSocket(asyncio.Protocol):
    """A WebSocket that is not accepted yet: the application decides what carries it.

    If the hub takes the lane, the handshake is answered here, from the already parsed request.
    Any other application exchanges ASGI messages: on its first one uvicorn's own protocol takes
    over, with unchanged behaviour.
    """

    def __init__(
        self, http: HttpToolsProtocol, scope: dict[str, Any], key: bytes, *, fragments: int
    ) -> None:
        self._http = http
        # We add to this dictionary, which uvicorn types as one of three TypedDicts.
        self._scope: Any = scope
        self._key = key
        # Most fragments of one message.
        self._fragments = fragments
        self.transport: asyncio.Transport = http.transport
        # Bytes that the client sent before it was accepted.
        self._early = b""
        # Called when the client hangs up before that. None if nobody asked.
        self._gone: Callable[[], None] | None = None
        # The application received "websocket.connect" of a client that had already gone.
        self._announced = False
        # The client sent so much that reading is paused.
        self._full = False
        self._lost = False
        self._writable = True
        # One of the two is set once the application has decided.
        self._delegate: WebSocketProtocol | None = None
        self._lane: WebSocketLane | None = None
        # How the application ended, for the delegate.
        self._outcome: asyncio.Future[Any] | None = None

    # The application's side.

    async def run(self) -> None:
        """Run the application."""
        try:
            result = await self._http.app(self._scope, self._receive, self._send)
        except BaseException as error:
            if self._lane is not None:
                logger.exception("a connection could not be taken over")
                self._lane.abort()
                return
            if self._left:
                if isinstance(error, Exception) and not isinstance(error, OSError):
                    logger.exception("the application failed for a client that had gone")
                return
            self._become()
            assert self._outcome is not None
            self._outcome.set_exception(error)
            # Mark it retrieved: the delegate does not await it if it refused the handshake.
            self._outcome.exception()
        else:
            if self._lane is None and not self._left:
                self._become()
                assert self._outcome is not None
                self._outcome.set_result(result)

    @property
    def _left(self) -> bool:
        """Whether the client hung up before the application decided: there is no answer."""
        return self._delegate is None and (self._lost or self.transport.is_closing())

    async def _receive(self) -> Any:
        if self._left:
            if self._announced:
                return {"type": "websocket.disconnect", "code": 1006}
            self._announced = True
            return {"type": "websocket.connect"}
        return await self._become().receive()

    async def _send(self, message: Any) -> None:
        if self._left:
            # An OSError, as in uvicorn (ASGI, "send" after a disconnect).
            raise ClientDisconnected
        await self._become().send(message)

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call back when the client hangs up; see `Offer`."""
        self._gone = callback

    def take(
        self,
        receive: Receive,
        send: Send,
        peer: FramePeer,
        *,
        limit: int,
        subprotocol: str | None = None,
    ) -> FrameLane | None:
        """Hand the connection over; see `WebSocketOffer`."""
        transport = self.transport
        if (
            self._delegate is not None
            or not is_own(receive, self._receive)
            or not is_own(send, self._send)
            or self._lost
            or self._lane is not None
            or transport.is_closing()
        ):
            return None
        extension, negotiated = None, b""
        if self._http.config.ws_per_message_deflate:
            extension, negotiated = negotiate(self._scope["headers"])
        if subprotocol is not None:
            negotiated += b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("ascii")
        connections = self._http.connections
        lane = WebSocketLane(
            transport,
            peer,
            connections,
            limit=limit,
            fragments=self._fragments,
            extension=extension,
            paused=not self._writable,
        )
        self._lane = lane
        lane.write = Head(
            lane,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
            % (b64encode(sha1(self._key + GUID, usedforsecurity=False).digest()), negotiated),
            self._http.loop,
        )
        connections.discard(self)
        connections.add(lane)  # type: ignore[arg-type]
        # The extension refers to this object: break the cycle.
        self._scope["extensions"].pop(EXTENSION, None)
        if self._early:
            # This object stays the protocol until then, so that later bytes cannot overtake.
            asyncio.get_running_loop().call_soon(self._hand_over, lane)
        else:
            transport.set_protocol(lane)
        access = logging.getLogger("uvicorn.error")
        if access.isEnabledFor(logging.INFO):
            access.info(
                '%s - "WebSocket %s" [accepted]',
                get_client_addr(self._scope),
                get_path_with_query_string(self._scope),
            )
        return lane

    def _become(self) -> WebSocketProtocol:
        """Switch to uvicorn's protocol, as its HTTP protocol does at an upgrade."""
        if self._delegate is not None:
            return self._delegate
        http = self._http
        kind: Any = http.config.ws_protocol_class
        protocol: WebSocketProtocol = kind(http.config, http.server_state, http.app_state)
        self._delegate = protocol
        outcome = self._outcome = asyncio.get_running_loop().create_future()

        async def app(*_: Any) -> Any:
            return await outcome

        # The application is already running: give uvicorn its end to wait for.
        protocol.app = app
        http.connections.discard(self)
        protocol.connection_made(self.transport)
        head = [b"GET ", http.url, b" HTTP/1.1\r\n"]
        for name, value in http.headers:
            head += [name, b": ", value, b"\r\n"]
        protocol.data_received(b"".join([*head, b"\r\n"]))
        if not self._writable:
            protocol.pause_writing()
        self.transport.set_protocol(protocol)
        self._read_on()
        if self._early:
            protocol.data_received(self._early)
        return protocol

    # The transport's side.

    def data_received(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > MAX_EARLY:
            self._full = True
            self.transport.pause_reading()

    def _hand_over(self, lane: WebSocketLane) -> None:
        if not self._lost:
            self.transport.set_protocol(lane)
            self._read_on()
            lane.data_received(self._early)

    def _read_on(self) -> None:
        if self._full and not self.transport.is_closing():
            self._full = False
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self._writable = False
        if self._lane is not None:
            self._lane.pause_writing()

    def resume_writing(self) -> None:
        self._writable = True
        if self._lane is not None:
            self._lane.resume_writing()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._http.connections.discard(self)
        if self._lane is not None:
            self._lane.connection_lost(exc)
        elif self._gone is not None:
            self._gone()

    def shutdown(self) -> None:
        """End it if the server stops before the application has decided."""
        self.transport.close()
