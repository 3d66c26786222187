"""An event stream that the hub took over: the body of a started response."""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import Any, Final

from crossband.connection import Connection
from crossband.lane.closing import discard
from crossband.lane.head import Head, Write
from crossband.transports.lane import Peer

# Bytes an event stream's client may send after its request before it is cut.
MAX_PIPELINED: Final = 65_536
# Seconds for the client to read what was written before the end.
CLOSE_TIME: Final = 2.0


class StreamLane(asyncio.Protocol):
    """A response's body that the hub took over; notices when the client leaves."""

    __slots__ = ("_connections", "_received", "_seen", "paused", "peer", "transport", "write")

    def __init__(
        self, transport: asyncio.Transport, peer: Peer, connections: set[Any], *, paused: bool
    ) -> None:
        self.transport: asyncio.Transport = transport
        # The transport's own method: none of our code is in between.
        self.write: Write = transport.write
        self.peer: Peer = peer
        self._connections = connections
        self.paused: bool = paused
        # When the client was last seen to read something, and the bytes unsent then. None while it
        # is not behind.
        self._seen: tuple[float, int] | None = None
        # Bytes the client sent after its request, without a reason to.
        self._received = 0
        if paused:
            self.pause_writing()

    # The hub's side.

    def flush(self, outbox: Connection) -> None:
        # Hot: once per tick and client.
        queue = outbox.queue
        if self.paused or not queue:
            return
        data = queue[0].chunk if len(queue) == 1 else b"".join([wire.chunk for wire in queue])
        outbox.taken_all()
        self.write(data)

    def refused_for(self, now: float) -> float:
        if self._seen is None:
            return 0.0
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._seen[1]:
            self._seen = now, unsent
        return now - self._seen[0]

    def close(
        self, code: int, reason: str, outbox: Connection | None = None, *, now: bool = False
    ) -> None:
        if now and self.paused:
            # It is not reading, so it cannot be told anything.
            self.abort()
            return
        if outbox is not None and outbox.queue:
            # Bounded by the outbox.
            self.write(b"".join([wire.chunk for wire in outbox.queue]))
            outbox.taken_all()
        if isinstance(self.write, Head):
            self.write.flush()
        self.write = discard
        if not self.transport.is_closing():
            self.transport.write(b"0\r\n\r\n")
            self.transport.close()
            # It closes once all is written, which may be never if the client does not read.
            asyncio.get_running_loop().call_later(CLOSE_TIME, self.transport.abort)

    def abort(self) -> None:
        """Cut it now."""
        self.write = discard
        self.transport.abort()

    async def start(self) -> None:
        """Return at once: the response's head is sent with the first bytes."""

    async def run(self) -> None:
        """Return at once: the transport calls back."""

    # The server's side.

    def shutdown(self) -> None:
        """End it when the server stops, if the hub has not."""
        self.close(1001, "")

    # The transport's side.

    def data_received(self, data: bytes) -> None:
        # Pipelined requests are never answered; a flood is cut.
        self._received += len(data)
        if self._received > MAX_PIPELINED:
            self.abort()

    def pause_writing(self) -> None:
        self.paused = True
        self._seen = monotonic(), self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self.paused = False
        self._seen = None
        self.peer.resume_writing()

    def eof_received(self) -> None:
        # A half-close counts as the end: EventSource never half-closes and reads on.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.write = discard
        self.paused = False
        if self._seen is not None:
            # The transport's buffer is gone. A timeout comes from the kernel, which only cuts a
            # client that has read nothing for as long as it may.
            since = -math.inf if isinstance(exc, TimeoutError) else self._seen[0]
            self._seen = since, 0
        self._connections.discard(self)
        self.peer.connection_lost()
