"""A lane, which carries a connection, and the ASGI extension for a server to offer its own.

After the handshake the hub takes a connection over. On the server's own lane, ready bytes go
straight to the transport, incoming data goes straight to a callback, and no task waits on
either side; `crossband.lane` implements it. On other servers `transports/asgi.py` provides a
lane over ASGI messages, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from crossband.connection import Connection

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

EXTENSION = "crossband.lane"


class Peer(Protocol):
    """Gets the events of a connection that was taken over."""

    def resume_writing(self) -> None:
        """Flush: the lane has room again."""

    def connection_lost(self) -> None:
        """Clean up: the connection has ended."""


class FramePeer(Peer, Protocol):
    """Gets the events of a WebSocket."""

    def frame_received(self, frame: str | bytes) -> None:
        """Handle a message: text or binary."""

    def too_large(self) -> None:
        """Note that a message over the limit was announced; no more will come."""

    def ping_received(self) -> bool:
        """Note a ping; return whether to answer it. Of a flood, the last is answered."""
        ...

    def pong_received(self) -> None:
        """Note that the peer is alive."""


class Lane(Protocol):
    """One connection that was taken over, as the hub drives it."""

    @property
    def paused(self) -> bool:
        """Whether the peer is behind: what is written now would only pile up."""
        ...

    def flush(self, outbox: Connection) -> None:
        """Take from an outbox what can be written now. Hot: once per tick and client."""

    def close(
        self, code: int, reason: str, outbox: Connection | None = None, *, now: bool = False
    ) -> None:
        """End it after writing the outbox; cut it if the peer does not answer in time.

        `now` is for a peer that is behind, which cannot be told anything.
        """

    async def start(self) -> None:
        """Answer the client, if not done yet. A failure ends the connection."""

    async def run(self) -> None:
        """Carry the connection to its end, if that needs the request's task."""


class FrameLane(Lane, Protocol):
    """A WebSocket."""

    # May be another one from some message on.
    peer: FramePeer
    # True if the server itself pings the peer.
    pings: bool

    def send(self, message: str) -> None:
        """Write a message that is in no outbox."""

    def ping(self) -> None:
        """Ask the peer for a sign of life."""

    def pause_reading(self) -> None:
        """Take nothing more from the peer until `resume_reading`."""

    def resume_reading(self) -> None:
        """Take what the peer sent meanwhile, and go on."""


class BodyLane(Lane, Protocol):
    """The body of one response."""

    def refused_for(self, now: float) -> float:
        """Return for how many seconds the peer has read nothing of what waits for it.

        After the connection was lost: for how many it had read nothing by then.
        """
        ...


class Offer(Protocol):
    """The value of `crossband.lane` in a scope's extensions."""

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call back when the client hangs up before its answer; None stops that."""


class WebSocketOffer(Offer, Protocol):
    """The offer for a WebSocket."""

    def take(
        self,
        receive: Receive,
        send: Send,
        peer: FramePeer,
        *,
        limit: int,
        subprotocol: str | None = None,
    ) -> FrameLane | None:
        """Accept the WebSocket and take it over; None once ASGI messages were exchanged.

        Messages are bounded by `limit` bytes. What the client has already sent comes in the next
        tick. Returns None if it cannot be taken: go on over ASGI. That is so if `receive` or
        `send` are not the server's own, because then a middleware wants to see the messages.
        """


class StreamOffer(Offer, Protocol):
    """The offer for an HTTP request."""

    def take(
        self,
        receive: Receive,
        send: Send,
        peer: Peer,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> BodyLane | None:
        """Start a 200 response with these headers, and take the connection over.

        What is written after that is the body, in HTTP/1.1 chunks. Returns None if it cannot be
        taken, as `WebSocketOffer.take`: go on over ASGI.
        """


def offer_of(scope: Scope) -> Any:
    """Return the server's offer for this request, or None."""
    extensions = scope.get("extensions")
    return extensions.get(EXTENSION) if extensions else None
