"""uvicorn's HTTP protocol, which hands WebSockets and event streams over to the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote

import httptools
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from crossband.lane.handshake import PendingWebSocket
from crossband.lane.head import Head
from crossband.lane.manners import HTTPManners
from crossband.lane.stream import StreamLane
from crossband.lane.upgrade import websocket_key
from crossband.lane.wrappers import is_own
from crossband.transports.lane import EXTENSION, Peer

if TYPE_CHECKING:
    from starlette.types import Receive, Send
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class HTTPProtocol(HTTPManners):
    """uvicorn's HTTP protocol, which can hand a started response over to the hub."""

    # Whether the hub may take over connections.
    offers: ClassVar[bool] = True
    # Frames of one WebSocket message; see `WebSocketProtocol`.
    fragments: ClassVar[int] = 1_024

    # Called when the client hangs up during the running request. None if nobody asked.
    _gone: Callable[[], None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._let_go()
        if self._gone is not None:
            self._gone()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: Any = {EXTENSION: self} if self.offers else {}
        self.scope["extensions"] = extensions

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
        key = websocket_key(fields, len(self.headers))
        if key is None:
            # Not a handshake, or not a common one: the library knows what to answer.
            super().handle_websocket_upgrade()
            return
        try:
            url = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            self._refuse(400, "Invalid URL")
            return
        # "http://host" has no path (RFC 9112 §3.2.2).
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
        handshake = PendingWebSocket(self, scope, key, fragments=self.fragments)
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
        # Break reference cycles through the callbacks of the parser, the answer and the offer:
        # they would keep 5 KB per connect until a full collection.
        self.parser: httptools.HttpRequestParser = None  # type: ignore[assignment]
        self._running = None
        self.cycle: RequestResponseCycle = None  # type: ignore[assignment]
        # None before the first request, which uvicorn's annotation does not say.
        scope: Any = self.scope
        if scope is not None:
            scope["extensions"].pop(EXTENSION, None)

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
            # Only HTTP/1.1 has chunks.
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
        # Reading may have been paused because of a body.
        self.flow.resume_reading()
        # Pipelined requests would wait for the stream's end, which ends the connection too.
        self.pipeline.clear()
        # Tell uvicorn that the client has gone, so that it does not miss the response.
        cycle.disconnected = True
        self._let_go()
        return lane
