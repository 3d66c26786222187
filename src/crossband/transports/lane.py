"""The ASGI extension `crossband.lane`: what a server offers that lends its connections.

After the handshake the hub takes a connection over: ready bytes go straight to the transport,
what arrives comes straight to a callback, and no task waits on either side. A server without
it is served over plain ASGI messages, with the same result. `crossband.lane` implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

EXTENSION = "crossband.lane"


class Write(Protocol):
    """The transport's own `write`, or what is called in its place."""

    def __call__(self, data: bytes, /) -> None: ...


class Lane(Protocol):
    """One connection that was taken over, as the hub drives it."""

    # Who is told of it. May be another one from some message on.
    peer: Peer
    # The transport's buffer is full: what is written now would only pile up.
    paused: bool
    # Compressed frames may be written (permessage-deflate, no context takeover).
    deflate: bool
    # Writes ready bytes. An attribute: it is the transport's own `write`, with nothing between.
    write: Write

    def close(self, code: int, reason: str) -> None:
        """End it in order; cut it if the peer does not answer in time."""

    def abort(self) -> None:
        """Cut it now."""

    def pause_reading(self) -> None:
        """Take nothing more from the peer until `resume_reading`."""

    def resume_reading(self) -> None:
        """Take what the peer sent meanwhile, and go on."""


class BodyLane(Lane, Protocol):
    """The body of one response."""

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the peer has not made room for."""
        ...


class Peer(Protocol):
    """What is told of a connection that was taken over."""

    def frame_received(self, frame: str | bytes) -> None:
        """Take a message: text or binary."""

    def too_large(self) -> None:
        """Take note that a message over the limit was announced; none comes any more."""

    def ping_received(self) -> bool:
        """Take note of a ping; return whether to answer it. Of a flood the last one is."""
        ...

    def pong_received(self) -> None:
        """Take note that the peer is alive."""

    def resume_writing(self) -> None:
        """Write on: the transport has room again."""

    def connection_lost(self) -> None:
        """Clean up: the connection has ended."""


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
        peer: Peer,
        *,
        limit: int,
        subprotocol: str | None = None,
    ) -> Lane | None:
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
