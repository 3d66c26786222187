"""uvicorn's two protocols with the manners of HTTP, lending their connections to the hub.

The only file that knows the inside of uvicorn: each private name it leans on is listed in
`USED`, and `tests/test_lane.py` fails when an upgrade moves one.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha1
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import unquote

import httptools
import websockets.server
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_client_addr,
    get_path_with_query_string,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.protocol import Protocol

from crossband.errors import FAULTS
from crossband.lane.deflate import KeptWindow
from crossband.lane.head import Head
from crossband.lane.stream import StreamLane
from crossband.lane.websocket import BROKEN_TIME, WebSocketLane, half_close
from crossband.lane.wrappers import is_own
from crossband.protocol import websocket
from crossband.transports.http import Message, Receive, Scope, Send
from crossband.transports.lane import EXTENSION, Lane, Peer

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

logger = logging.getLogger("crossband")

# What is used beyond their public API of uvicorn (0.54), and of websockets (17), by class.
USED: Final = {
    Protocol: ("current_size", "recv_frame"),
    WebSocketsSansIOProtocol: (
        "conn",
        "transport",
        "frames",
        "handshake_complete",
        "close_sent",
        "app",
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
        "on_url",
        "on_header",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "ws_protocol_class",
        "handle_websocket_upgrade",
        "_unset_keepalive_if_required",
        "url",
        "headers",
        "server",
        "client",
        "scheme",
        "root_path",
        "asgi_version",
        "app",
        "app_state",
        "tasks",
        "config",
        "server_state",
        "parser",
        "timeout_keep_alive_task",
        "_start_asgi_task",
        "on_response_complete",
        "timeout_keep_alive_handler",
        "pause_writing",
        "resume_writing",
    ),
    RequestResponseCycle: (
        "scope",
        "response_started",
        "response_complete",
        "message_event",
        "disconnected",
        "more_body",
        "access_log",
        "access_logger",
        "keep_alive",
        "chunked_encoding",
        "expected_content_length",
        "waiting_for_100_continue",
        "receive",
        "send",
    ),
    FlowControl: ("write_paused", "resume_reading"),
}

# Bytes of a request's head. Node: 16 KiB, nginx: 32 KiB, uvicorn on httptools: no limit.
MAX_HEAD: Final = 65_536
# Requests of one connection that wait for the answers before them.
MAX_REQUESTS: Final = 16
# Header lines of a handshake; as `websockets`.
MAX_HEADERS: Final = 128
# Bytes of a body that are read after its request was answered, so that the connection can be
# kept, or the client gets to read the answer. nginx reads on for 30 s, Apache for 2.
MAX_UNWANTED: Final = 65_536
# Seconds they may take once the connection is to end.
LINGER_TIME: Final = 2.0
# RFC 6455 §1.3.
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# The server keeps no context: a compressed frame is built once for all. Clients are told to
# keep none either, which not all heed, see `KeptWindow`.
DEFLATE: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    client_no_context_takeover=True,
    server_max_window_bits=websocket.WINDOW_BITS,
    client_max_window_bits=websocket.WINDOW_BITS,
)


class Handshake(asyncio.Protocol):
    """A WebSocket that is not accepted yet: the application decides who carries it.

    The hub takes the lane: the handshake is answered here, from the request that was parsed
    once. Any other application exchanges ASGI messages, and at its first one uvicorn's own
    protocol is put in place, with its behaviour unchanged.
    """

    def __init__(self, http: HTTPProtocol, scope: dict[str, Any], key: bytes) -> None:
        self._http = http
        self._scope = scope
        self._key = key
        self.transport: asyncio.Transport = http.transport
        # What the client sent before it was accepted.
        self._early = b""
        # Told when the client hangs up before that. None while nobody asks.
        self._gone: Callable[[], None] | None = None
        # ASGI's "websocket.connect" was taken, of a client that has gone.
        self._announced = False
        # It sent so much that reading is paused.
        self._full = False
        self._lost = False
        self._writable = True
        # One of the two once the application has decided.
        self._delegate: WebSocketProtocol | None = None
        self._lane: WebSocketLane | None = None
        # How the application ended, for the delegate to draw its conclusions.
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
            # Nobody asks where the delegate has refused the handshake by itself.
            self._outcome.exception()
        else:
            if self._lane is None and not self._left:
                self._become()
                assert self._outcome is not None
                self._outcome.set_result(result)

    @property
    def _left(self) -> bool:
        """Whether the client hung up before anything was decided: nobody is to be answered."""
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
            # As uvicorn: an OSError (ASGI, "send" after a disconnect).
            raise ClientDisconnected
        await self._become().send(message)

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call back when the client hangs up; see `Offer`."""
        self._gone = callback

    def take(
        self,
        receive: Receive,
        send: Send,
        peer: Peer,
        *,
        limit: int,
        subprotocol: str | None = None,
    ) -> Lane | None:
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
        extension, negotiated = self._negotiate()
        if subprotocol is not None:
            negotiated += b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("ascii")
        connections = self._http.connections
        lane = WebSocketLane(
            transport,
            peer,
            connections,
            limit=limit,
            fragments=self._http.fragments,
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
        # Itself, in a cycle.
        self._scope["extensions"].pop(EXTENSION, None)
        if self._early:
            # This stays the protocol until then: what is read meanwhile must not overtake it.
            asyncio.get_running_loop().call_soon(self._hand_over, lane)
        else:
            transport.set_protocol(lane)
        access = logging.getLogger("uvicorn.error")
        if access.isEnabledFor(logging.INFO):
            scope: Any = self._scope
            access.info(
                '%s - "WebSocket %s" [accepted]',
                get_client_addr(scope),
                get_path_with_query_string(scope),
            )
        return lane

    def _negotiate(self) -> tuple[PerMessageDeflate | None, bytes]:
        # RFC 7692 §5: the first offer that suits; none is no error.
        if not self._http.config.ws_per_message_deflate:
            return None, b""
        for name, value in self._scope["headers"]:
            if name == b"sec-websocket-extensions":
                try:
                    offers = parse_extension(value.decode("latin-1"))
                except InvalidHeader:
                    continue
                for offered, parameters in offers:
                    if offered == DEFLATE.name:
                        try:
                            accepted, extension = DEFLATE.process_request_params(parameters, [])
                        except NegotiationError:
                            continue
                        if not _fits(extension):
                            continue
                        extension = KeptWindow(extension)
                        header = build_extension([(DEFLATE.name, accepted)])
                        return extension, b"Sec-WebSocket-Extensions: %b\r\n" % header.encode()
        return None, b""

    def _become(self) -> WebSocketProtocol:
        """Put uvicorn's protocol in place, as its HTTP protocol does at an upgrade."""
        if self._delegate is not None:
            return self._delegate
        http = self._http
        kind: Any = http.config.ws_protocol_class
        protocol: WebSocketProtocol = kind(http.config, http.server_state, http.app_state)
        self._delegate = protocol
        outcome = self._outcome = asyncio.get_running_loop().create_future()

        async def app(*_: Any) -> Any:
            return await outcome

        # The application runs already: uvicorn waits for its end.
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
        if len(self._early) > MAX_HEAD:
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
        """End it when the server stops, before the application decided."""
        self.transport.close()


def _fits(extension: PerMessageDeflate) -> bool:
    """Tell whether a client's window takes the frames that are compressed once for all."""
    return extension.local_max_window_bits >= websocket.WINDOW_BITS


class ServerProtocol(websockets.server.ServerProtocol):
    """`websockets`' protocol, which lets a client close in the midst of a message."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            # Its fragments will not go on, and need not (RFC 6455 §5.4, §5.5.1).
            self.current_size = None
        super().recv_frame(frame)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, for applications that do not take the lane."""

    # Frames of one message, at most. Their bytes are bounded anyway, but empty ones cost
    # memory too.
    fragments: ClassVar[int] = 1_024

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.conn = ServerProtocol(
            extensions=self.conn.available_extensions,
            max_size=config.ws_max_size,
            logger=self.logger,
        )

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Not HTTP, or past the header limits of `websockets` (128 lines of 8 KiB): uvicorn
        # looks at the frames' errors only, and would keep such a connection for ever.
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            self.transport.close()

    def _half_close(self) -> None:
        # uvicorn waits 10 s for the answer of a client at fault.
        if not self.transport.is_closing():
            half_close(self.transport)
            asyncio.get_running_loop().call_later(BROKEN_TIME, self.transport.abort)

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= self.fragments:
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
        if message["type"] == "websocket.close" and message.get("code") in FAULTS:
            self._half_close()
        # An application that refused has answered: uvicorn logs an error otherwise.
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True


class Answer:
    """Answers a request that has a body, or is of HTTP/1.0.

    The connection ends with the answer where too much of the body is still to come; the
    client is told, and gets to read it. To HTTP/1.0 a body of unknown length ends with the
    connection (RFC 9112 §6.1, §6.3).
    """

    __slots__ = ("_app", "_cycle", "_http", "_until_close")

    def __init__(self, http: HTTPProtocol, cycle: RequestResponseCycle, app: Any) -> None:
        self._http = http
        self._cycle = cycle
        self._app = app
        # The end of the body is the connection's.
        self._until_close = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        return await self._app(scope, receive, self._send)

    async def _send(self, message: Any) -> None:
        cycle = self._cycle
        if message["type"] == "http.response.start":
            if not self._http.wants(cycle):
                cycle.keep_alive = False
            if cycle.scope["http_version"] == "1.0":
                message = self._unchunked(message)
        elif message["type"] == "http.response.body":
            if self._until_close:
                cycle.expected_content_length = len(message.get("body", b""))
            last = not message.get("more_body", False)
            if last and cycle.more_body and not cycle.keep_alive:
                # uvicorn would close at once.
                cycle.keep_alive = True
                self._http.linger_after_answer()
        await cycle.send(message)

    def _unchunked(self, message: Message) -> Message:
        headers = [
            (name, value)
            for name, value in message.get("headers", ())
            if name.lower() != b"transfer-encoding"
        ]
        if not any(name.lower() == b"content-length" for name, _ in headers):
            self._until_close = True
            self._cycle.chunked_encoding = False
        return {**message, "headers": headers}


class Replay:
    """Callbacks of a parser that parses a head a second time: the protocol is told of the rest."""

    def __init__(self, http: HTTPProtocol) -> None:
        self._http = http
        self._over = False

    def on_message_begin(self) -> None:
        if self._over:
            self._http.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._over:
            self._http.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._over:
            self._http.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._over:
            self._http.on_headers_complete()
        self._over = True

    def on_body(self, body: bytes) -> None:
        self._http.on_body(body)

    def on_message_complete(self) -> None:
        self._http.on_message_complete()


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which can hand a started response to the hub.

    It also bounds a request's head, in bytes and in time, the time a client leaves a response
    unread, and what is read of a body that nobody wants; ignores upgrades to anything but a
    WebSocket (RFC 9110 §7.8); and sends no chunks to a client of HTTP/1.0.
    """

    # Whether the hub may take connections over.
    offers: ClassVar[bool] = True

    # Seconds for a head to arrive, from its first byte or the connection's beginning.
    head_time: ClassVar[float] = 10.0
    # Seconds for a client to take some of a response that waits for it.
    send_time: ClassVar[float] = 30.0
    # Of one WebSocket message; see `WebSocketProtocol`.
    fragments: ClassVar[int] = 1_024

    # Bytes of the head so far. None between the end of a head and the next one.
    _head: int | None = 0
    # None while no head is awaited.
    _head_timer: asyncio.TimerHandle | None = None
    # Bytes of a response that waited when they were last counted.
    _unsent: int = 0
    # Counts them again. None while none wait.
    _send_timer: asyncio.TimerHandle | None = None
    # The request that is being answered; uvicorn's `cycle` is the newest. None before the first.
    _running: RequestResponseCycle | None = None
    # The newest request has a body, of which so many bytes are to come; None where it comes in
    # chunks, and nobody knows.
    _body_left: int | None = 0
    # The newest request's header fields: each name's values, as they came.
    _fields: Mapping[bytes, list[bytes]] = MappingProxyType({})
    # It asks for a WebSocket.
    _upgrades = False
    # The connection ends after the answer, though more of the request is to come.
    _lingers = False
    # Bytes that are read and thrown away until it is cut. None until the answer is complete.
    _unwanted: int | None = None
    # Told when the client hangs up on the running request. None while nobody asks.
    _gone: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_time, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._unwatch()
        # uvicorn tells the newest, which may wait for this one.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        self._let_go()
        if self._gone is not None:
            self._gone()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self._unwatch()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch()
        elif self._lingers:
            self._linger()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _close(self) -> None:
        # All that was written is sent first, which a client that does not read prevents.
        self.transport.close()
        self._watch()

    def _watch(self) -> None:
        if self._send_timer is None:
            self._unsent = self.transport.get_write_buffer_size()
            if self._unsent:
                self._send_timer = self.loop.call_later(self.send_time, self._look)

    def _look(self) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size() >= self._unsent:
            self.transport.abort()
        else:
            self._watch()

    def _unwatch(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _linger(self) -> None:
        """End the connection, but let the client read the answer first.

        Closed while more of the body comes, the kernel would send a reset, and that takes
        from the client what it has not read (RFC 9112 §9.6).
        """
        self._unset_keepalive_if_required()
        self._unwanted = MAX_UNWANTED
        self.flow.resume_reading()
        half_close(self.transport)
        self._watch()
        self.loop.call_later(LINGER_TIME, self._end_lingering)

    def _end_lingering(self) -> None:
        if self.transport.get_write_buffer_size():
            # It takes its time to read the answer, see `_watch`.
            self.loop.call_later(LINGER_TIME, self._end_lingering)
        else:
            self.transport.abort()

    def _refuse(self, status: int, text: str, *headers: bytes) -> None:
        """Answer what is no request for the application, and end the connection."""
        options = b", ".join([*(b"upgrade" for line in headers if b"upgrade:" in line), b"close"])
        self.transport.write(
            b"HTTP/1.1 %d %b\r\n%bcontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: %b\r\n\r\n%b"
            % (
                status,
                HTTPStatus(status).phrase.encode(),
                b"".join(headers),
                len(text),
                options,
                text.encode("ascii"),
            )
        )
        self._close()

    def _throw_away(self, data: bytes) -> None:
        assert self._unwanted is not None
        self._unwanted -= len(data)
        if self._unwanted < 0 and not self.flow.read_paused:
            self.flow.pause_reading()
            self.loop.call_later(BROKEN_TIME, self._end_lingering)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self.transport.is_closing():
                return
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                # The parser's work is done: what came with the handshake is the protocol's.
                protocol: Any = self.transport.get_protocol()
                if rest and protocol is not self:
                    protocol.data_received(rest)
            else:
                self._ignore_upgrade(rest)
        except httptools.HttpParserError:
            # Refused by a callback of ours already, perhaps, with a better reason.
            if not self.transport.is_closing():
                self.logger.warning("Invalid HTTP request received.")
                self._refuse(400, "Invalid HTTP request received.")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on with a request that offers another protocol (RFC 9110 §7.8).

        The parser stops after its head and takes the body for that protocol: a new one is
        told how long the body is, and nothing of the offer.
        """
        self.parser = httptools.HttpRequestParser(Replay(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        head = [b"POST / HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name in _FRAMING:
                head += [name, b": ", value, b"\r\n"]
        if not self.cycle.keep_alive:
            head.append(b"connection: close\r\n")
        self._parse(b"".join([*head, b"\r\n"]))
        if rest and not self.transport.is_closing():
            self._parse(rest)

    def _should_upgrade(self) -> bool:
        return self._upgrades

    def _asks_for_websocket(self) -> bool:
        # RFC 9110 §7.8: not of HTTP/1.0. RFC 6455 §4.1: a GET.
        if (
            self.ws_protocol_class is None
            or self.parser.get_method() != b"GET"
            or self.parser.get_http_version() != "1.1"
        ):
            return False
        fields = self._fields
        upgrade = b",".join(fields.get(b"upgrade", ())).lower().strip(b", \t")
        options = b",".join(fields.get(b"connection", ())).lower().split(b",")
        return upgrade == b"websocket" and b"upgrade" in [option.strip() for option in options]

    def data_received(self, data: bytes) -> None:
        if self._unwanted is not None:
            self._throw_away(data)
            return
        if self._head is not None:
            self._head += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._head is not None and self._head > MAX_HEAD and not self.transport.is_closing():
            self._refuse(431, f"A request's head has at most {MAX_HEAD} bytes")
        running = self._running
        if (
            self._head_timer is None
            and self.timeout_keep_alive_task is None
            and (running is None or running.response_complete)
            and self.transport.get_protocol() is self
        ):
            # No request runs, and what came is none yet: uvicorn would wait for ever, for the
            # body of one that is answered, or after an empty line.
            self._head_timer = self.loop.call_later(self.head_time, self._close)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if self._body_left != 0 or cycle.scope["http_version"] == "1.0":
            app = Answer(self, cycle, app)
        super()._start_asgi_task(cycle, app)

    def linger_after_answer(self) -> None:
        """End the connection after this answer, once the client can have read it."""
        self._lingers = True

    def wants(self, cycle: RequestResponseCycle) -> bool:
        """Tell whether the rest of a body is read, so that the connection can go on.

        Not if it is long, or nobody knows how long, or if the client waits to be told to
        send it: whether it does then is anybody's guess (RFC 9110 §10.1.1).
        """
        if cycle is not self.cycle or not cycle.more_body:
            return True
        left = self._body_left
        return left is not None and left <= MAX_UNWANTED and not cycle.waiting_for_100_continue

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: Any = {EXTENSION: self} if self.offers else {}
        self.scope["extensions"] = extensions
        if self._head is None:
            self._head = 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_time, self._close)

    def on_headers_complete(self) -> None:
        self._end_head()
        if len(self.pipeline) >= MAX_REQUESTS:
            self._close()
        # A read of 256 KiB may hold thousands of them.
        if self.transport.is_closing():
            return
        version = self.parser.get_http_version()
        fields: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            fields.setdefault(name, []).append(value)
        self._fields = fields
        self._upgrades = self.parser.should_upgrade() and self._asks_for_websocket()
        hosts = len(fields.get(b"host", ()))
        if b"transfer-encoding" in fields:
            self._body_left = None
        else:
            self._body_left = int(fields.get(b"content-length", (b"0",))[-1])
        if version not in ("1.1", "1.0"):
            self._refuse(505, "HTTP/1.1 or HTTP/1.0 only")
        elif hosts != 1 and (version == "1.1" or hosts):
            # RFC 9112 §3.2.
            self._refuse(400, "Exactly one Host header field is expected")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._body_left is not None:
            self._body_left -= len(body)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        # The parser stops at an upgrade, before the body: see `_ignore_upgrade`.
        if not self.parser.should_upgrade() and not self.transport.is_closing():
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._unwatch()
        fields = self._fields
        if fields.get(b"sec-websocket-version") != [b"13"]:
            # RFC 6455 §4.2.2, RFC 9110 §15.5.22.
            self._refuse(
                426,
                "WebSocket version 13 only (RFC 6455)",
                b"upgrade: websocket\r\n",
                b"sec-websocket-version: 13\r\n",
            )
            return
        key = self._websocket_key()
        if key is None:
            # Not a handshake, or not one of the common case: the library knows what to answer.
            super().handle_websocket_upgrade()
            return
        try:
            url = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            self._refuse(400, "Invalid URL")
            return
        # "http://host" has none (RFC 9112 §3.2.2).
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": self.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if self.scheme == "https" else "ws",
            "server": self.server,
            "client": self.client,
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": url.query or b"",
            "headers": self.headers,
            "subprotocols": [
                token.strip()
                for value in fields.get(b"sec-websocket-protocol", ())
                for token in value.decode("latin-1").split(",")
            ],
            "state": self.app_state.copy(),
            "extensions": {"websocket.http.response": {}},
        }
        handshake = Handshake(self, scope, key)
        if self.offers:
            scope["extensions"][EXTENSION] = handshake
        self.connections.discard(self)
        self.connections.add(handshake)  # type: ignore[arg-type]
        self.transport.set_protocol(handshake)
        self._let_go()
        task = self.loop.create_task(handshake.run())
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _let_go(self) -> None:
        # Cycles of references, through the callbacks of the parser, the answer and the offer:
        # they would keep 5 KB for each connect until a full collection.
        self.parser = None  # type: ignore[assignment]
        self._running = None
        self.cycle = None  # type: ignore[assignment]
        # None before the first request; uvicorn's annotation knows nothing of that.
        scope: Any = self.scope
        if scope is not None:
            scope["extensions"].pop(EXTENSION, None)

    def _websocket_key(self) -> bytes | None:
        """Return the key of a handshake as RFC 6455 §4.2.1 wants it; None of any other."""
        fields = self._fields
        # A body is not of the common case.
        if (
            len(fields.get(b"host", ())) != 1
            or not _FRAMING.isdisjoint(fields)
            or len(self.headers) > MAX_HEADERS
        ):
            return None
        match fields.get(b"sec-websocket-key"):
            case [key] if len(key) == 24:
                try:
                    return key if len(b64decode(key, validate=True)) == 16 else None
                except binascii.Error:
                    return None
        return None

    def _end_head(self) -> None:
        self._head = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call back when the client hangs up; see `Offer`."""
        self._gone = callback

    def take(
        self,
        receive: Receive,
        send: Send,
        peer: Peer,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> StreamLane | None:
        """Start the response and hand the connection over; see `StreamOffer`."""
        cycle = self._running
        if (
            cycle is None
            or not is_own(send, cycle.send)
            or not is_own(receive, cycle.receive)
            or cycle.response_started
            or cycle.disconnected
            or cycle.more_body
            or self.transport.is_closing()
            # Chunks are HTTP/1.1's.
            or cycle.scope["http_version"] != "1.1"
            or cycle.scope["method"] != "GET"
        ):
            return None
        scope = cycle.scope
        transport = self.transport
        lane = StreamLane(transport, peer, self.connections, paused=self.flow.write_paused)
        lines = [b"%b: %b\r\n" % line for line in (*self.server_state.default_headers, *headers)]
        lane.write = Head(
            lane,
            b"HTTP/1.1 200 OK\r\n%btransfer-encoding: chunked\r\n\r\n" % b"".join(lines),
            self.loop,
        )
        if cycle.access_log:
            cycle.access_logger.info(
                '%s - "%s %s HTTP/%s" %d',
                get_client_addr(scope),
                scope["method"],
                get_path_with_query_string(scope),
                scope["http_version"],
                200,
            )
        self.connections.discard(self)
        self.connections.add(lane)  # type: ignore[arg-type]
        transport.set_protocol(lane)
        self._unwatch()
        # It may have been paused over a body.
        self.flow.resume_reading()
        # Requests that came with it would wait for the stream's end, which is the connection's.
        self.pipeline.clear()
        # To uvicorn the client is gone: it does not miss the response.
        cycle.disconnected = True
        self._let_go()
        return lane


# What says how long a body is.
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
