"""The ASGI extension `crossband.lane`: what a server offers that lends its connections.

After the handshake the hub takes a connection over: ready bytes go straight to the transport,
what arrives comes straight to a callback, and no task waits on either side. A server without
it is served over plain ASGI messages, with the same result. `crossband.lane` implements it.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from crossband.hub.core import Core
from crossband.hub.socket import Socket
from crossband.session import Connection

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

EXTENSION = "crossband.lane"


class Lane(Protocol):
    """One connection that was taken over, as the hub drives it."""

    # Who is told of it. May be another one from some message on.
    peer: Peer
    # The transport's buffer is full: what is written now would only pile up.
    paused: bool
    # Compressed frames may be written (permessage-deflate, no context takeover).
    deflate: bool
    # Writes ready bytes. An attribute: it is the transport's own `write`, with nothing between.
    write: Callable[[bytes], None]

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


class Peer(Protocol):
    """What is told of a connection that was taken over."""

    def frame_received(self, frame: str | bytes) -> None:
        """Take a message: text or binary."""

    def too_large(self) -> None:
        """Take note that a message over the limit was announced; none comes any more."""

    def ping_received(self) -> bool:
        """Take note of a ping; return whether to answer it. Of a flood the last one is."""

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


class FramedConnection(Connection):
    """A connection of WebSocket frames, over a lane where there is one."""

    __slots__ = ("_hub", "_lane", "_waking")

    def __init__(self, hub: Core, *, limit: int) -> None:
        super().__init__(hub.ticker, limit=limit)
        self._hub = hub
        # None over ASGI, and before it is attached.
        self._lane: Lane | None = None
        # None unless the client is held back to its rates, over the lane.
        self._waking: asyncio.TimerHandle | None = None

    @property
    @abstractmethod
    def crowded(self) -> Socket | None:
        """A socket whose inbox is full."""

    @property
    def held(self) -> bool:
        """Whether it is not to be read just now."""
        return self.resting_until > monotonic() or self.crowded is not None

    def held_within(self, seconds: float) -> bool:
        """Whether it was not read for some time of the last `seconds`."""
        return self.crowded is not None or self.resting_until > monotonic() - seconds

    def rest(self, seconds: float) -> None:
        super().rest(seconds)
        if self._lane is not None:
            self._lane.pause_reading()
            if self._waking is None:
                self._wake_later()

    def _wake_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._waking = loop.call_later(self.resting_until - monotonic(), self._wake)

    def _wake(self) -> None:
        if self.resting_until > monotonic():
            self._wake_later()
            return
        self._waking = None
        if self._lane is None:
            return
        if self.crowded is None:
            self._lane.resume_reading()
        else:
            self.hold()

    def hold(self) -> None:
        """Read nothing more, over a lane, until its inboxes have room."""
        if self._lane is not None:
            self._lane.pause_reading()
            self._hub.run_to_end(self._read_on(self._lane))

    async def _read_on(self, lane: Lane) -> None:
        await self.caught_up()
        # Else it goes on when it has rested.
        if self._waking is None:
            lane.resume_reading()

    async def caught_up(self) -> None:
        """Wait until its inboxes have room."""
        while (crowded := self.crowded) is not None:
            await crowded.inbox.caught_up()
            if crowded is self.crowded:
                # It has left, with its inbox full.
                return

    def lost(self) -> None:
        """Clean up after the lane."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None


def write_frames(connection: Connection, lane: Lane) -> None:
    """Write all that waits as one piece of WebSocket frames. Hot: once per tick and client."""
    queue = connection.queue
    if lane.paused or not queue:
        return
    if lane.deflate:
        data = b"".join([wire.deflated for wire in queue])
    elif len(queue) == 1:
        data = queue[0].frames
    else:
        data = b"".join([wire.frames for wire in queue])
    connection.taken_all()
    lane.write(data)


def close_lane(
    connection: Connection, lane: Lane, code: int, reason: str, *, now: bool = False
) -> None:
    """Close a lane after what is queued, which is bounded by the outbox."""
    if now and lane.paused:
        # It does not read: there is no telling it anything.
        lane.abort()
        return
    queue = connection.queue
    if queue:
        deflate = lane.deflate
        lane.write(b"".join([wire.deflated if deflate else wire.frames for wire in queue]))
        connection.taken_all()
    lane.close(code, reason)
