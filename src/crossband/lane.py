"""The fast lane: uvicorn's two protocols, lending their connections to the hub.

The only file that knows the inside of uvicorn: each private name it leans on is listed in
`USED`, and `tests/test_lane.py` fails when an upgrade moves one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import PayloadTooBig
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
)
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol

from crossband.protocol import websocket
from crossband.protocol.websocket import FrameSplitter
from crossband.transports.lane import EXTENSION, Lane, Peer

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from websockets.http11 import Request

logger = logging.getLogger("crossband")

# What is used of uvicorn beyond its public API (0.54), by class.
USED: Final = {
    WebSocketsSansIOProtocol: (
        "conn",
        "transport",
        "connections",
        "queue",
        "frames",
        "read_paused",
        "writable",
        "handshake_complete",
        "close_sent",
        "stop_keepalive",
        "handle_connect",
        "handle_cont",
        "handle_parser_exception",
    ),
    HttpToolsProtocol: (
        "transport",
        "connections",
        "cycle",
        "flow",
        "pipeline",
        "loop",
        "scope",
        "on_message_begin",
        "on_headers_complete",
    ),
}

# Seconds for the peer to answer our close frame, and after a broken protocol for the
# transport to deliver it: closed with unread input, the kernel would reset it away.
CLOSE_TIME: Final = 2.0
# Frames of one message. Their bytes are bounded anyway, but empty ones cost memory too.
MAX_FRAGMENTS: Final = 1_024
# Bytes of a request's head. Node: 16 KiB, nginx: 32 KiB, uvicorn on httptools: no limit.
MAX_HEAD: Final = 65_536
# Bytes a client of an event stream may send on before it is cut.
MAX_PIPELINED: Final = 65_536
BROKEN_TIME: Final = 0.1


def _discard(data: bytes) -> None:
    """Write nothing: the connection has ended."""


class WebSocketLane(asyncio.Protocol):
    """A WebSocket in the hub's hands."""

    __slots__ = (
        "_closing",
        "_connections",
        "_extension",
        "_library",
        "_message",
        "_peer",
        "_reading",
        "_splitter",
        "_timer",
        "_waiting",
        "deflate",
        "paused",
        "transport",
        "write",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        peer: Peer,
        connections: set[Any],
        *,
        limit: int,
        extension: PerMessageDeflate | None,
        paused: bool,
    ) -> None:
        self.transport = transport
        # The transport's own: nothing of ours is between the hub and it.
        self.write: Callable[[bytes], None] = transport.write
        self._peer = peer
        # The server's, which waits for all of them at its end.
        self._connections = connections
        self._splitter = FrameSplitter(limit)
        # None without permessage-deflate.
        self._extension = extension
        self.deflate = extension is not None
        self.paused = paused
        # `websockets` for all that is not of the common case. None until something is.
        self._library: Protocol | None = None
        # The fragments so far of a message that comes in several.
        self._message: list[Frame] = []
        # Frames that were split while reading was paused. None while it is not.
        self._waiting: list[tuple[int, bytes]] | None = None
        # Nothing is taken from the peer any more.
        self._closing = False
        # None until closing: cuts a peer that does not answer.
        self._timer: asyncio.TimerHandle | None = None

    # The hub's side.

    def close(self, code: int, reason: str) -> None:
        if self._closing or self.transport.is_closing():
            return
        self._stop_writing()
        self.transport.write(websocket.encode_close(code, reason))
        # It was paused if the hub was slow: the answer must be read.
        self._waiting = None
        self.transport.resume_reading()
        self._cut_in(CLOSE_TIME)

    def abort(self) -> None:
        self._stop_writing()
        self.transport.abort()

    def _stop_writing(self) -> None:
        # After a close frame nothing may follow; the hub writes on until it is told of the end.
        self._closing = True
        self.write = _discard

    def pause_reading(self) -> None:
        if self._waiting is None:
            self._waiting = []
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not self.transport.is_closing():
            self.transport.resume_reading()
            self._handle(waiting)

    # The server's side.

    def shutdown(self) -> None:
        """End it when the server stops, if the hub has not."""
        self.close(1001, "Server shutting down")

    # The transport's side.

    def data_received(self, data: bytes) -> None:
        try:
            self._handle(self._splitter.feed(data))
        except Exception:
            logger.exception("a frame could not be handled")
            self._break(1011, "Internal server error")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._peer.resume_writing()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_writing()
        self.paused = False
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._peer.connection_lost()

    # Frames. Hot: the first lines of the loop, once per message.

    def _handle(self, frames: list[tuple[int, bytes]]) -> None:
        for index, (kind, payload) in enumerate(frames):
            if self._waiting is not None:
                self._waiting.extend(frames[index:])
                return
            if kind == websocket.TEXT and not self._closing:
                try:
                    text = payload.decode()
                except UnicodeDecodeError:
                    self._break(1007, "invalid UTF-8 (RFC 6455 §8.1)")
                    return
                self._peer.frame_received(text)
            elif kind == websocket.BINARY and not self._closing:
                self._peer.frame_received(payload)
            elif kind == websocket.PONG:
                self._peer.pong_received()
            elif kind == websocket.RAW:
                self._handle_rare(payload)
            elif kind == websocket.BROKEN:
                self._handle_rare(payload)
                # The library waits for the rest of some frames that cannot be.
                self._break(1002, "no frame of a client (RFC 6455 §5)")
            elif self._closing:
                continue
            elif kind == websocket.PING:
                # A peer that does not read gets none: the latest alone needs an answer (§5.5.3).
                if not self.paused:
                    self.transport.write(websocket.encode_pong(payload))
            elif kind == websocket.TOO_LARGE:
                self._too_large()

    def _handle_rare(self, data: bytes) -> None:
        library = self._protocol()
        library.receive_data(data)
        for event in library.events_received():
            if isinstance(event, Frame):
                self._handle_library_frame(event)
        if isinstance(library.parser_exc, PayloadTooBig):
            self._too_large()
        elif library.parser_exc is not None or library.close_rcvd is not None:
            # What it has to send is its close frame, or the answer to the peer's.
            self._end(b"".join(library.data_to_send()))

    def _handle_library_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._message.append(frame)
            if len(self._message) > MAX_FRAGMENTS:
                self._message = []
                self._break(1009, "too many fragments")
                return
            if frame.fin:
                first = self._message[0].opcode
                payload = b"".join([bytes(part.data) for part in self._message])
                self._message = []
                kind = websocket.TEXT if first is Opcode.TEXT else websocket.BINARY
                self._handle([(kind, payload)])

    def _too_large(self) -> None:
        if not self._closing:
            # The hub says so in its own words, and closes with 1009.
            self._peer.too_large()
        self._end(websocket.encode_close(1009, "Message too large"))

    def _break(self, code: int, reason: str) -> None:
        self._end(websocket.encode_close(code, reason))

    def _end(self, close_frame: bytes) -> None:
        if not self._closing:
            self._stop_writing()
            self.transport.write(close_frame)
        self._half_close()

    def _half_close(self) -> None:
        if self.transport.is_closing():
            return
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # The peer has reset the connection, and the transport is yet to hear of it.
            self.transport.abort()
        else:
            self._cut_in(BROKEN_TIME)

    def _protocol(self) -> Protocol:
        if self._library is None:
            self._library = Protocol(SERVER, max_size=self._splitter.limit)
            if self._extension is not None:
                self._library.extensions = [self._extension]
        return self._library

    def _cut_in(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay, self._cut)

    def _cut(self) -> None:
        self.transport.abort()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, which can hand its connection to the hub."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        # Not there when the handshake was refused. The application starts at the next tick.
        scope = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][EXTENSION] = self.take

    def take(self, peer: Peer, *, limit: int) -> Lane | None:
        """Hand the accepted connection over; see `WebSocketOffer`."""
        # A client that sent before it was accepted has frames in here already.
        if (
            not self.handshake_complete
            or self.close_sent
            or self.disconnected
            or not self.queue.empty()
            or self.frames
            or self.conn.reader.buffer
            or self.transport.is_closing()
        ):
            return None
        extension = None
        for candidate in self.conn.extensions:
            if not isinstance(candidate, PerMessageDeflate):
                return None
            extension = candidate
        transport = self.transport
        lane = WebSocketLane(
            transport,
            peer,
            self.connections,
            limit=limit,
            extension=extension,
            paused=not self.writable.is_set(),
        )
        self.stop_keepalive()
        self.connections.discard(self)
        self.connections.add(lane)  # type: ignore[arg-type]
        transport.set_protocol(lane)
        if self.read_paused:
            transport.resume_reading()
        # What the application's end does to it is no longer the connection's.
        self.transport = _GONE
        return lane

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Not HTTP, or past the header limits of `websockets` (128 lines of 8 KiB): uvicorn
        # looks at the frames' errors only, and would keep such a connection for ever.
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self.frames = []
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
        # An application that refused has answered: uvicorn logs an error otherwise.
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True


class StreamLane(asyncio.Protocol):
    """A response's body in the hub's hands: it writes chunks, and hears when the client left."""

    __slots__ = ("_connections", "_peer", "_received", "deflate", "paused", "transport", "write")

    def __init__(
        self, transport: asyncio.Transport, peer: Peer, connections: set[Any], *, paused: bool
    ) -> None:
        self.transport = transport
        self.write: Callable[[bytes], None] = transport.write
        self._peer = peer
        self._connections = connections
        self.paused = paused
        self.deflate = False
        # Bytes a client sent on, which it has no reason to.
        self._received = 0

    def close(self, code: int, reason: str) -> None:
        self.write = _discard
        if not self.transport.is_closing():
            self.transport.write(b"0\r\n\r\n")
            self.transport.close()
            # It closes once all is written, which a client that does not read prevents.
            asyncio.get_running_loop().call_later(CLOSE_TIME, self.transport.abort)

    def abort(self) -> None:
        self.write = _discard
        self.transport.abort()

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.transport.resume_reading()

    def shutdown(self) -> None:
        """End it when the server stops, if the hub has not."""
        self.close(1001, "")

    def data_received(self, data: bytes) -> None:
        # A pipelined request will never be answered; a flood is cut.
        self._received += len(data)
        if self._received > MAX_PIPELINED:
            self.abort()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._peer.resume_writing()

    def eof_received(self) -> None:
        # A client that half-closed does not read on: EventSource never does that.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.write = _discard
        self.paused = False
        self._connections.discard(self)
        self._peer.connection_lost()


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which can hand a started response to the hub.

    It also bounds a request's head, in bytes and in time.
    """

    # Seconds for a head to arrive, from its first byte or the connection's beginning.
    head_time: ClassVar[float] = 45.0

    # Bytes of the head so far. None between the end of a head and the next one.
    _head: int | None = 0
    # None while no head is awaited.
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_time, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > MAX_HEAD and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                b"connection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: self.take}  # type: ignore[dict-item]
        if self._head is None:
            self._head = 0
            self._head_timer = self.loop.call_later(self.head_time, self.transport.close)

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def _end_head(self) -> None:
        self._head = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def take(self, scope: Any, peer: Peer) -> Lane | None:
        """Hand the connection over, its response being started; see `StreamOffer`."""
        cycle = self.cycle
        if (
            cycle.scope is not scope
            or not cycle.response_started
            or cycle.response_complete
            or cycle.disconnected
            or not cycle.chunked_encoding
            or cycle.more_body
            or self.pipeline
            or self.transport.is_closing()
        ):
            return None
        transport = self.transport
        lane = StreamLane(transport, peer, self.connections, paused=self.flow.write_paused)
        self.connections.discard(self)
        self.connections.add(lane)  # type: ignore[arg-type]
        transport.set_protocol(lane)
        # It may have been paused over a body.
        self.flow.resume_reading()
        # To uvicorn the client is gone: it does not miss the rest of the response.
        cycle.disconnected = True
        # A cycle of references, through the parser's callbacks.
        self.parser = None  # type: ignore[assignment]
        return lane


class _Gone(asyncio.Transport):
    """What is left of a transport to a protocol that handed it over."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None:
        return None


_GONE: Final = _Gone()
