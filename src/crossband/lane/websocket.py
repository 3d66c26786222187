"""A WebSocket that the hub took over: frames in, ready bytes out."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any, Final

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import SERVER, Protocol

from crossband.connection import Connection
from crossband.errors import FAULTS
from crossband.lane.closing import BROKEN_TIME, discard, half_close
from crossband.lane.head import Head, Write
from crossband.protocol import websocket
from crossband.protocol.websocket import FrameSplitter
from crossband.transports.lane import FramePeer

logger: Final = logging.getLogger("crossband")

# Seconds for the peer to answer our close frame.
CLOSE_TIME: Final = 2.0
# Frames of one client that are handled before it is the others' turn: one read of 256 KiB may
# contain 30,000 of them, and each may be an event with a handler.
TURN: Final = 32
# Seconds after which a turn starts no more frames: a small one may inflate to a large one, and
# be expensive.
TURN_TIME: Final = 0.002


class WebSocketLane(asyncio.Protocol):
    """A WebSocket that the hub took over."""

    __slots__ = (
        "_ahead",
        "_closing",
        "_connections",
        "_extension",
        "_fragments",
        "_held",
        "_library",
        "_message",
        "_reading",
        "_splitter",
        "_timer",
        "_turning",
        "paused",
        "peer",
        "transport",
        "write",
    )

    # The hub pings instead, so that it notices clients that do not answer.
    pings = False

    def __init__(
        self,
        transport: asyncio.Transport,
        peer: FramePeer,
        connections: set[Any],
        *,
        limit: int,
        fragments: int,
        extension: PerMessageDeflate | None,
        paused: bool,
    ) -> None:
        self.transport: asyncio.Transport = transport
        # The transport's own method: none of our code is in between.
        self.write: Write = transport.write
        self.peer: FramePeer = peer
        # The server's set: at its end it waits for all of them.
        self._connections = connections
        self._splitter = FrameSplitter(limit)
        # Most fragments of one message.
        self._fragments = fragments
        # None without permessage-deflate. With it, what is written is compressed too: without
        # context takeover, a frame is compressed once for all recipients.
        self._extension = extension
        self.paused: bool = paused
        # `websockets` for all uncommon frames. None until the first of them.
        self._library: Protocol | None = None
        # The fragments so far of an unfinished message.
        self._message: list[Frame] = []
        # Frames that are split but not handled yet.
        self._ahead: list[tuple[int, bytes]] = []
        # The hub is behind: nothing is handled until it resumes reading.
        self._held = False
        # The next turn is scheduled; nothing is read meanwhile.
        self._turning = False
        # Nothing more is accepted from the peer.
        self._closing = False
        # None until closing: cuts a peer that does not answer.
        self._timer: asyncio.TimerHandle | None = None

    # The hub's side.

    def flush(self, outbox: Connection) -> None:
        # Hot: once per tick and client.
        queue = outbox.queue
        if self.paused or not queue:
            return
        if self._extension is not None:
            data = b"".join([wire.deflated for wire in queue])
        elif len(queue) == 1:
            data = queue[0].frames
        else:
            data = b"".join([wire.frames for wire in queue])
        outbox.taken_all()
        self.write(data)

    def send(self, message: str) -> None:
        self.write(websocket.encode_text(message.encode()))

    def ping(self) -> None:
        self.write(websocket.PING_FRAME)

    def close(
        self, code: int, reason: str, outbox: Connection | None = None, *, now: bool = False
    ) -> None:
        if now and self.paused:
            # It is not reading, so it cannot be told anything.
            self.abort()
            return
        if outbox is not None and outbox.queue:
            # Bounded by the outbox.
            queue, deflates = outbox.queue, self._extension is not None
            self.write(b"".join([wire.deflated if deflates else wire.frames for wire in queue]))
            outbox.taken_all()
        if self._closing or self.transport.is_closing():
            return
        if code in FAULTS:
            # Not worth waiting for an answer.
            self._break(code, reason)
            return
        self._stop_writing()
        self.transport.write(websocket.encode_close(code, reason))
        self._cut_in(CLOSE_TIME)
        # If a slow hub held it: the answer must be read now, or already was.
        self._held = False
        self._go_on()

    def abort(self) -> None:
        """Cut it now."""
        self._stop_writing()
        self.transport.abort()

    def _stop_writing(self) -> None:
        if isinstance(self.write, Head):
            self.write.flush()
        # Nothing may follow a close frame, but the hub keeps writing until it learns of the end.
        self._closing = True
        self.write = discard

    def pause_reading(self) -> None:
        if not self._held:
            self._held = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._held:
            self._held = False
            self._go_on()

    async def start(self) -> None:
        """Return at once: the response's head is sent with the first bytes."""

    async def run(self) -> None:
        """Return at once: the transport calls back."""

    # The server's side.

    def shutdown(self) -> None:
        """End it when the server stops, if the hub has not."""
        self.close(1001, "Server shutting down")

    # The transport's side.

    def data_received(self, data: bytes) -> None:
        try:
            if not self._held and not self._turning and not self._closing:
                payload = self._splitter.whole_text(data)
                if payload is not None:
                    self._handle_text(payload)
                    return
            self._splitter.feed(data)
            # Bytes come although reading is paused: TLS delivers what it had decrypted.
            if not self._held and not self._turning:
                self._take_turn()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        logger.error("a frame could not be handled", exc_info=error)
        self._break(1011, "Internal server error")

    def _take_turn(self) -> None:
        """Handle frames, but not so many that other clients wait long."""
        frames = self._ahead or self._splitter.split(TURN)
        self._ahead = []
        self._handle(frames)
        if (self._ahead or self._splitter.more) and not self._turning:
            self._turn_later()

    def _turn_later(self) -> None:
        self._turning = True
        self.transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turning = False
        # Meanwhile the hub may have fallen behind.
        if self._held or self.transport.is_closing():
            return
        try:
            self._take_turn()
        except Exception as error:
            self._fail(error)
        self._go_on()

    def _go_on(self) -> None:
        """Go on reading, or handling what was read, unless something prevents it."""
        if self._turning or self._held or self.transport.is_closing():
            return
        if self._ahead or self._splitter.more:
            self._turn_later()
        else:
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.peer.resume_writing()

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_writing()
        self.paused = False
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._library is not None:
            # Otherwise its generator keeps it alive until a full collection.
            self._library.parser.close()
            self._library = None
        self.peer.connection_lost()

    # Frames. Hot: the first lines of the loop, once per message.

    def _handle(self, frames: list[tuple[int, bytes]]) -> None:
        pongs: list[bytes] = []
        # The latest ping of a flood, which is the only one to be answered.
        flood: bytes | None = None
        until = monotonic() + TURN_TIME if len(frames) > 1 else 0.0
        for index, (kind, payload) in enumerate(frames):
            if self._held or (index and monotonic() > until):
                self._ahead = frames[index:]
                break
            if pongs and kind != websocket.PING:
                # What comes next may end it, and after a close frame nothing may follow.
                self._write_pongs(pongs)
                pongs = []
            if kind == websocket.TEXT and not self._closing:
                self._handle_text(payload)
            elif kind == websocket.BINARY and not self._closing:
                self.peer.frame_received(payload)
            elif kind == websocket.PONG:
                self.peer.pong_received()
            elif kind == websocket.RAW:
                self._handle_rare(payload)
            elif kind == websocket.BROKEN:
                self._handle_rare(payload)
                # The library would wait for the rest of some impossible frames.
                self._break(1002, "not a client's frame (RFC 6455 §5)")
            elif kind == websocket.CLOSE:
                self._handle_close(payload)
            elif self._closing:
                continue
            elif kind == websocket.PING:
                if self.peer.ping_received():
                    pongs.append(websocket.encode_pong(payload))
                else:
                    flood = payload
            elif kind == websocket.TOO_LARGE:
                self._too_large()
        if flood is not None:
            # Only the latest needs an answer (§5.5.3).
            pongs.append(websocket.encode_pong(flood))
        if pongs:
            self._write_pongs(pongs)

    def _write_pongs(self, pongs: list[bytes]) -> None:
        # A peer that does not read gets no pongs.
        if not self.paused:
            self.write(b"".join(pongs))

    def _handle_close(self, payload: bytes) -> None:
        # It may come between fragments, which leaves their message unfinished (§5.4, §5.5.1).
        try:
            Close.parse(payload)
        except ProtocolError as error:
            self._break(1002, str(error))
        except UnicodeDecodeError:
            self._break(1007, "invalid UTF-8 (RFC 6455 §8.1)")
        else:
            self._end(websocket.encode_close_payload(payload))

    def _handle_text(self, payload: bytes) -> None:
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            self._break(1007, "invalid UTF-8 (RFC 6455 §8.1)")
        else:
            self.peer.frame_received(text)

    def _handle_rare(self, data: bytes) -> None:
        library = self._protocol()
        library.receive_data(data)
        for event in library.events_received():
            if isinstance(event, Frame):
                self._handle_library_frame(event)
        if isinstance(library.parser_exc, PayloadTooBig):
            self._too_large()
        elif library.parser_exc is not None:
            # All it has to send is its close frame.
            self._end(b"".join(library.data_to_send()))

    def _handle_library_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._message.append(frame)
            if len(self._message) > self._fragments:
                self._message = []
                self._break(1009, "too many fragments")
                return
            if frame.fin:
                first = self._message[0].opcode
                payload = b"".join([bytes(part.data) for part in self._message])
                # The library's parser keeps its last frame until the next one arrives.
                frame.data = b""
                self._message = []
                if self._closing:
                    return
                if first is Opcode.TEXT:
                    self._handle_text(payload)
                else:
                    self.peer.frame_received(payload)

    def _too_large(self) -> None:
        if not self._closing:
            # The hub says so in its own words, and closes with 1009.
            self.peer.too_large()
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
        # Keep reading and discarding: closing with unread input makes the kernel send RST.
        self._splitter.end()
        self._ahead = []
        self._held = False
        self._go_on()
        half_close(self.transport)
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
