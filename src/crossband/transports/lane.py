"""A lane: what carries a connection. And the ASGI extension by which a server lends its own.

After the handshake the hub takes a connection over. On a lane of the server's, ready bytes go
straight to the transport, what arrives comes straight to a callback, and no task waits on
either side; `crossband.lane` implements it. Elsewhere `transports/asgi.py` has a lane over
ASGI messages, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from crossband.connection import Connection

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

EXTENSION = "crossband.lane"


class Peer(Protocol):
    """What is told of a connection that was taken over."""

    def resume_writing(self) -> None:
        """Flush: the lane has room again."""

    def connection_lost(self) -> None:
        """Clean up: the connection has ended."""


class FramePeer(Peer, Protocol):
    """What is told of a WebSocket."""

    def frame_received(self, frame: str | bytes) -> None:
        """Take a message: text or binary."""

    def too_large(self) -> None:
        """Take note that a message over the limit was announced; none comes any more."""

    def ping_received(self) -> bool:
        """Take note of a ping; return whether to answer it. Of a flood the last one is."""
        ...

    def pong_received(self) -> None:
        """Take note that the peer is alive."""


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
        """End it after what waits in the outbox; cut it if the peer does not answer in time.

        `now` is for a peer that is behind: there is no telling it anything.
        """

    async def start(self) -> None:
        """Answer the client, if that is not done. To fail is the connection's end."""

    async def run(self) -> None:
        """Carry the connection to its end, where that needs the request's task."""


class FrameLane(Lane, Protocol):
    """A WebSocket."""

    # May be another one from some message on.
    peer: FramePeer
    # The server pings the peer, at its own pace.
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
        """Return for how many seconds the peer has taken nothing of what waits for it.

        After the connection was lost: for how many it had taken nothing by then.
        """
        ...


class Offer(Protocol):
    """What stands under `crossband.lane` in a scope."""

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call back when the client hangs up before it was answered; None: no more."""


class WebSocketOffer(Offer, Protocol):
    """What stands there of a WebSocket."""

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

        Messages are bounded by `limit` bytes. What the client sent already comes at the next
        tick. None where it cannot be taken: go on over ASGI. So it is where `receive` or `send`
        are not the server's own: a middleware wants to see what passes.
        """


class StreamOffer(Offer, Protocol):
    """What stands there of an HTTP request."""

    def take(
        self,
        receive: Receive,
        send: Send,
        peer: Peer,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> BodyLane | None:
        """Start a 200 response with these headers, and take the connection over.

        What is written then is the body, in chunks as HTTP/1.1 has them. None where it cannot
        be, as `WebSocketOffer.take`: go on over ASGI.
        """


def offer_of(scope: Scope) -> Any:
    """Return what the server offers for this request; None when nothing."""
    extensions = scope.get("extensions")
    return extensions.get(EXTENSION) if extensions else None
