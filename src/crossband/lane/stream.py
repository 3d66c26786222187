"""An event stream in the hub's hands: the body of a response that was started."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from crossband.lane.closing import discard
from crossband.lane.head import Head
from crossband.transports.lane import Peer, Write

# Bytes a client of an event stream may send on before it is cut.
MAX_PIPELINED: Final = 65_536
# Seconds for the client to take what was written before the end.
CLOSE_TIME: Final = 2.0


class StreamLane(asyncio.Protocol):
    """A response's body in the hub's hands: it writes chunks, and hears when the client left."""

    __slots__ = ("_connections", "_received", "deflate", "paused", "peer", "transport", "write")

    def __init__(
        self, transport: asyncio.Transport, peer: Peer, connections: set[Any], *, paused: bool
    ) -> None:
        self.transport = transport
        self.write: Write = transport.write
        self.peer = peer
        self._connections = connections
        self.paused = paused
        self.deflate = False
        # Bytes a client sent on, which it has no reason to.
        self._received = 0

    @property
    def unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        if isinstance(self.write, Head):
            self.write.flush()
        self.write = discard
        if not self.transport.is_closing():
            self.transport.write(b"0\r\n\r\n")
            self.transport.close()
            # It closes once all is written, which a client that does not read prevents.
            asyncio.get_running_loop().call_later(CLOSE_TIME, self.transport.abort)

    def abort(self) -> None:
        self.write = discard
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
        self.peer.resume_writing()

    def eof_received(self) -> None:
        # A client that half-closed does not read on: EventSource never does that.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.write = discard
        self.paused = False
        self._connections.discard(self)
        self.peer.connection_lost()
