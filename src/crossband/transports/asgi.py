"""Lanes over ASGI messages, for servers that lend none of their own.

A door differs by server in this file alone. The request's own task reads and a second one
writes, whatever the number of messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import Any, ClassVar, Final, Generic, TypeVar

from crossband.codecs import Wire
from crossband.connection import BATCH, Connection
from crossband.errors import CloseCode
from crossband.transports.http import HeaderList, Request
from crossband.transports.lane import (
    BodyLane,
    FrameLane,
    FramePeer,
    Peer,
    StreamOffer,
    WebSocketOffer,
    offer_of,
)

# Seconds for the other side to answer our close frame, and to take what is written before it.
CLOSE_TIME: Final = 2.0
# The same for a client that is behind.
CUT_TIME: Final = 0.1

P = TypeVar("P", bound=Peer)


def take_frames(request: Request, peer: FramePeer, *, limit: int) -> FrameLane:
    """Take a WebSocket over; its messages are bounded by `limit` bytes."""
    offer: WebSocketOffer | None = offer_of(request.scope)
    if offer is not None:
        lane = offer.take(
            request.receive, request.send, peer, limit=limit, subprotocol=request.subprotocol
        )
        if lane is not None:
            return lane
    return ASGIFrameLane(request, peer, limit=limit)


def take_body(request: Request, peer: Peer, headers: HeaderList) -> BodyLane:
    """Take over the body of a 200 response with these headers."""
    offer: StreamOffer | None = offer_of(request.scope)
    if offer is not None:
        lane = offer.take(request.receive, request.send, peer, headers)
        if lane is not None:
            return lane
    return ASGIBodyLane(request, peer, headers)


class ASGILane(ABC, Generic[P]):
    """What both kinds have in common: the writing, and the end."""

    __slots__ = (
        "_closing",
        "_idle",
        "_more",
        "_reading",
        "_request",
        "_since",
        "_taken",
        "peer",
    )

    # The connection ends once all is written: no answer of the peer is awaited.
    ends_written: ClassVar[bool]

    def __init__(self, request: Request, peer: P) -> None:
        self._request = request
        self.peer: P = peer
        # Taken from the outbox, for the writer. A batch at most until the end, since what is left
        # in the outbox may still be dropped.
        self._taken: Sequence[Wire] = ()
        # The outbox had more than that when it was flushed last.
        self._more = False
        # On the monotonic clock: when the server was given what it has not taken yet. None
        # while it has nothing.
        self._since: float | None = None
        # What wakes the writer. None unless it waits for something to write.
        self._idle: asyncio.Future[None] | None = None
        # Set once, to end the connection after what was taken.
        self._closing: tuple[int, str] | None = None
        # Ends the reading, and with it the connection. None before it begins.
        self._reading: asyncio.Timeout | None = None

    @property
    def paused(self) -> bool:
        # A server that is slow to take one message proves nothing: some always are.
        return self._more and self._since is not None

    def flush(self, outbox: Connection) -> None:
        if not outbox.queue:
            return
        if self._taken or self._since is not None:
            self._more = True
            return
        self._taken = outbox.take_batch()
        self._more = bool(outbox.queue)
        self._wake()

    def close(
        self, code: int, reason: str, outbox: Connection | None = None, *, now: bool = False
    ) -> None:
        if self._closing is not None:
            return
        self._closing = (code, reason)
        if outbox is not None and outbox.queue:
            # Bounded by the outbox.
            self._taken = [*self._taken, *outbox.queue]
            outbox.taken_all()
        self._wake()
        self._end_in(CUT_TIME if now else CLOSE_TIME)

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _end_in(self, seconds: float) -> None:
        if self._reading is not None:
            # Raised when it has ended, or is about to.
            with contextlib.suppress(RuntimeError):
                self._reading.reschedule(asyncio.get_running_loop().time() + seconds)

    async def start(self) -> None:
        try:
            await self._begin()
        except BaseException:
            self.peer.connection_lost()
            raise

    async def run(self) -> None:
        try:
            writing = asyncio.get_running_loop().create_task(self._write())
            try:
                # Raised for a connection that was closed and whose peer does not answer.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None) as self._reading:
                        if self._closing is not None:
                            self._end_in(CLOSE_TIME)
                        await self._read()
            finally:
                writing.cancel()
        finally:
            self.peer.connection_lost()

    async def _write(self) -> None:
        try:
            while True:
                if self._taken:
                    wires, self._taken = self._taken, ()
                    self._since = monotonic()
                    await self._send(wires)
                    self._since = None
                    if self._more:
                        self._more = False
                        self.peer.resume_writing()
                elif self._closing is not None:
                    await self._send_end(*self._closing)
                    break
                else:
                    self._idle = asyncio.get_running_loop().create_future()
                    await self._idle
                    self._idle = None
        except Exception:
            # The server raises when the peer is gone, and should tell the reader so, too.
            self._end_in(CLOSE_TIME)
        if self.ends_written:
            self._end_in(0)

    @abstractmethod
    async def _begin(self) -> None:
        """Send the server what answers the client."""

    @abstractmethod
    async def _read(self) -> None:
        """Take what the peer sends, until it has gone."""

    @abstractmethod
    async def _send(self, wires: Sequence[Wire]) -> None:
        """Give the server a batch."""

    @abstractmethod
    async def _send_end(self, code: int, reason: str) -> None:
        """Tell the server that nothing follows."""


class ASGIFrameLane(ASGILane[FramePeer]):
    """A WebSocket."""

    __slots__ = ("_held", "_limit")

    ends_written = False
    pings = True

    def __init__(self, request: Request, peer: FramePeer, *, limit: int) -> None:
        super().__init__(request, peer)
        # Bytes of a message. A server has a limit of its own, which may be another one.
        self._limit = limit
        # Resolved when reading goes on. None unless it is paused.
        self._held: asyncio.Future[None] | None = None

    def send(self, message: str) -> None:
        self._taken = [*self._taken, Wire(message)]
        self._wake()

    def ping(self) -> None:
        """Do nothing: the server pings."""

    def pause_reading(self) -> None:
        if self._held is None and self._closing is None:
            self._held = asyncio.get_running_loop().create_future()

    def resume_reading(self) -> None:
        held, self._held = self._held, None
        if held is not None and not held.done():
            held.set_result(None)

    def close(
        self, code: int, reason: str, outbox: Connection | None = None, *, now: bool = False
    ) -> None:
        super().close(code, reason, outbox, now=now)
        # Or the answer would not be heard.
        self.resume_reading()

    async def _begin(self) -> None:
        await self._request.accept()

    async def _read(self) -> None:
        read = self._request.read
        while (message := await read())["type"] != "websocket.disconnect":
            if self._closing is not None:
                continue
            frame = message.get("text")
            self._take(message["bytes"] if frame is None else frame)
            while self._held is not None:
                await self._held

    def _take(self, frame: str | bytes) -> None:
        if self._is_large(frame):
            self.peer.too_large()
            # The hub has said so in its own words.
            self.close(CloseCode.MESSAGE_TOO_BIG, "Message too large")
        else:
            self.peer.frame_received(frame)

    def _is_large(self, frame: str | bytes) -> bool:
        size = len(frame)
        # A character is one to four bytes: only in between they need counting.
        if size <= self._limit // 4:
            return False
        if isinstance(frame, str) and size <= self._limit and not frame.isascii():
            size = len(frame.encode())
        return size > self._limit

    async def _send(self, wires: Sequence[Wire]) -> None:
        send = self._request.send
        for wire in wires:
            for part in wire.messages:
                kind = "text" if isinstance(part, str) else "bytes"
                await send({"type": "websocket.send", kind: part})

    async def _send_end(self, code: int, reason: str) -> None:
        await self._request.send({"type": "websocket.close", "code": code, "reason": reason})


class ASGIBodyLane(ASGILane[Peer]):
    """The body of a response."""

    __slots__ = ("_headers",)

    ends_written = True

    def __init__(self, request: Request, peer: Peer, headers: HeaderList) -> None:
        super().__init__(request, peer)
        self._headers = headers

    def refused_for(self, now: float) -> float:
        return 0.0 if self._since is None else now - self._since

    async def _begin(self) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self._headers}
        await self._request.send(start)

    async def _read(self) -> None:
        while (await self._request.read())["type"] != "http.disconnect":
            pass

    async def _send(self, wires: Sequence[Wire]) -> None:
        parts: list[Any] = [part for wire in wires for part in wire.messages]
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        # In pieces: a server tells no more than that it took one.
        for start in range(0, len(body), BATCH):
            piece = body[start : start + BATCH]
            await self._request.send(
                {"type": "http.response.body", "body": piece, "more_body": True}
            )
            self._since = monotonic()

    async def _send_end(self, code: int, reason: str) -> None:
        await self._request.send({"type": "http.response.body", "body": b"", "more_body": False})
