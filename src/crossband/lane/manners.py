"""uvicorn's HTTP protocol with HTTP's manners: bounds on what a client may cost."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from crossband.lane.answer import Answer
from crossband.lane.closing import BROKEN_TIME, half_close
from crossband.lane.upgrade import Fields, Replay, asks_for_websocket, head_without_offer

# Bytes of a request's head. Node: 16 KiB, nginx: 32 KiB, uvicorn on httptools: no limit.
MAX_HEAD: Final = 65_536
# Pipelined requests of one connection that may wait for earlier answers.
MAX_REQUESTS: Final = 16
# Bytes of a body that are read after its request was answered, so that the connection can be
# kept, or the client can read the answer. nginx keeps reading for 30 s, Apache for 2.
MAX_UNWANTED: Final = 65_536
# Seconds to read them once the connection is ending.
LINGER_TIME: Final = 2.0


class HTTPManners(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the bounds and rules that it lacks.

    It bounds a request's head in bytes and time, the time a client leaves a response unread,
    and how much of an unwanted body is read. It ignores upgrades to anything but WebSocket
    (RFC 9110 §7.8), and sends no chunks to HTTP/1.0 clients.
    """

    # Seconds for a head to arrive, from its first byte or the start of the connection.
    head_time: ClassVar[float] = 10.0
    # Seconds for a client to read some of a response that is waiting for it.
    send_time: ClassVar[float] = 30.0

    # Bytes of the head so far. None between the end of a head and the next one.
    _head: int | None = 0
    # None while no head is expected.
    _head_timer: asyncio.TimerHandle | None = None
    # Unsent bytes of a response when they were last counted.
    _unsent: int = 0
    # Counts them again. None while there are none.
    _send_timer: asyncio.TimerHandle | None = None
    # The request being answered; uvicorn's `cycle` is the newest one. None before the first.
    _running: RequestResponseCycle | None = None
    # Bytes still to come of the newest request's body; None if unknown, because it is chunked.
    _body_left: int | None = 0
    # The newest request's header fields.
    _fields: Fields = MappingProxyType({})
    # The newest request asks for a WebSocket.
    _upgrades = False
    # The connection ends after the answer, although more of the request is to come.
    _lingers = False
    # Bytes to read and discard before cutting it. None until the answer is complete.
    _unwanted: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_time, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._unwatch()
        # uvicorn tells only the newest request, which may be waiting for this one.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

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
        # This first sends all that was written, so a client that does not read could block it.
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

        Closing while more of the body arrives makes the kernel send RST, which can discard what
        the client has not read yet (RFC 9112 §9.6).
        """
        self._unset_keepalive_if_required()
        self._unwanted = MAX_UNWANTED
        self.flow.resume_reading()
        half_close(self.transport)
        self._watch()
        self.loop.call_later(LINGER_TIME, self._end_lingering)

    def _end_lingering(self) -> None:
        if self.transport.get_write_buffer_size():
            # The client is still reading the answer; see `_watch`.
            self.loop.call_later(LINGER_TIME, self._end_lingering)
        else:
            self.transport.abort()

    def _refuse(self, status: int, text: str, *headers: bytes) -> None:
        """Answer a request that the application must not see, and end the connection."""
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
                # The parser is done: bytes after the handshake go to the new protocol.
                protocol: Any = self.transport.get_protocol()
                if rest and protocol is not self:
                    protocol.data_received(rest)
            else:
                self._ignore_upgrade(rest)
        except httptools.HttpParserError:
            # One of our callbacks may already have refused it, with a better reason.
            if not self.transport.is_closing():
                self.logger.warning("Invalid HTTP request received.")
                self._refuse(400, "Invalid HTTP request received.")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on with a request that offers another protocol (RFC 9110 §7.8)."""
        self.parser: httptools.HttpRequestParser = httptools.HttpRequestParser(Replay(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(head_without_offer(self.headers, keep_alive=self.cycle.keep_alive))
        if rest and not self.transport.is_closing():
            self._parse(rest)

    def _should_upgrade(self) -> bool:
        return self._upgrades

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
            # No request is running and these bytes do not begin one: uvicorn would wait forever
            # for the body of an answered request, or after an empty line.
            self._head_timer = self.loop.call_later(self.head_time, self._close)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if self._body_left != 0 or cycle.scope["http_version"] == "1.0":
            app = Answer(self, cycle, app)
        super()._start_asgi_task(cycle, app)

    def linger_after_answer(self) -> None:
        """End the connection after this answer, with time for the client to read it."""
        self._lingers = True

    def wants(self, cycle: RequestResponseCycle) -> bool:
        """Return whether to read the rest of a body, so that the connection can go on.

        False if it is long or of unknown length, or if the client is waiting for a 100
        (Continue): then it may or may not send it (RFC 9110 §10.1.1).
        """
        if cycle is not self.cycle or not cycle.more_body:
            return True
        left = self._body_left
        return left is not None and left <= MAX_UNWANTED and not cycle.waiting_for_100_continue

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head is None:
            self._head = 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_time, self._close)

    def on_headers_complete(self) -> None:
        self._end_head()
        if len(self.pipeline) >= MAX_REQUESTS:
            self._close()
        # One read of 256 KiB may contain thousands of heads.
        if self.transport.is_closing():
            return
        version = self.parser.get_http_version()
        fields: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            fields.setdefault(name, []).append(value)
        self._fields = fields
        self._upgrades = (
            self.parser.should_upgrade()
            and self.ws_protocol_class is not None
            and asks_for_websocket(self.parser, fields)
        )
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

    def _end_head(self) -> None:
        self._head = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
