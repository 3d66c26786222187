"""A WebSocket that reached one node for a session that another has: both ends of it.

The session's node decides. If nothing in the session has begun, it moves to the WebSocket's node
for good; otherwise the WebSocket's node relays frames for as long as the WebSocket lives.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from crossband.codecs import Wire
from crossband.connection import Connection
from crossband.errors import CloseCode
from crossband.hub.core import Core
from crossband.hub.messages import Down, Moved, Up
from crossband.protocol import engineio
from crossband.transports.asgi import CLOSE_TIME
from crossband.transports.carried import CarriedConnection
from crossband.transports.exchanges import PIECE, Exchanges
from crossband.transports.lane import FrameLane, FramePeer

# Characters and bytes that may be on their way to a client: past it, the client is behind.
WINDOW: Final = 262_144
# Seconds for the other node to say that a closed WebSocket has ended.
END_TIME: Final = 2 * CLOSE_TIME

Frames = Sequence[str | bytes]


def pieces(frames: Iterable[str | bytes]) -> Iterator[tuple[list[str | bytes], bool]]:
    """Divide frames into messages; True if the last frame goes on in the next one."""
    batch: list[str | bytes] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) > PIECE:
            yield batch, False
            batch, size = [], 0
        while len(frame) > PIECE:
            yield [frame[:PIECE]], True
            frame = frame[PIECE:]
        batch.append(frame)
        size += len(frame)
    if batch:
        yield batch, False


class Seam:
    """Puts frames together that were divided."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        # Of a frame that is not complete.
        self._parts: list[Any] = []

    def join(self, frames: Frames, *, torn: bool) -> Frames:
        """Return the frames that are complete."""
        if not frames or not (torn or self._parts):
            return frames
        whole: list[Any] = list(frames)
        if self._parts and (len(whole) > 1 or not torn):
            parts = [*self._parts, whole[0]]
            whole[0] = b"".join(parts) if isinstance(parts[0], bytes) else "".join(parts)
            self._parts = []
        if torn:
            self._parts.append(whole.pop())
        return whole


class Relay(CarriedConnection[FrameLane]):
    """The WebSocket's end, at the node that its client reached."""

    __slots__ = (
        "_adopt",
        "_answered",
        "_ended",
        "_exchanges",
        "_kept",
        "_over",
        "_passed",
        "_reported",
        "_seam",
        "_up",
        "_upgrading",
        "node",
        "number",
        "received",
        "sent",
    )

    def __init__(
        self,
        hub: Core,
        exchanges: Exchanges,
        node: str,
        adopt: Callable[[Moved, FrameLane], FramePeer],
        ended: Callable[[Relay], None],
    ) -> None:
        # The session's node bounds what waits here.
        super().__init__(hub, limit=sys.maxsize)
        self._exchanges = exchanges
        self.node: str = node
        self.number: int = 0
        self.sent: int = 0
        self.received: int = 0
        # Called with a session that moves here; returns its connection.
        self._adopt = adopt
        # Called when there is nothing to relay any more.
        self._ended = ended
        # Frames that go to the other node in the next tick.
        self._up: list[str | bytes] = []
        # The client has asked for its upgrade; and the other node has decided.
        self._upgrading = False
        self._answered = False
        # Frames that came meanwhile.
        self._kept: list[str | bytes] = []
        self._seam = Seam()
        # Characters and bytes for the client: passed on, and reported as written.
        self._passed = 0
        self._reported = 0
        self._over = False

    @property
    def transport(self) -> str:
        return "websocket"

    def lost(self) -> None:
        self.close(CloseCode.GOING_AWAY, "Try again")

    def close(self, code: CloseCode, reason: str, *, now: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        if self._lane is not None:
            self._lane.close(code, reason, self, now=now)

    # From the other node.

    def heard(self, down: Down) -> None:
        """Do what the session's node wants."""
        if down.index != self.received + 1:
            self.lost()
            return
        self.received = down.index
        for frame in self._seam.join(down.frames, torn=down.torn):
            self._passed += len(frame)
            self.push(Wire(frame))
        lane = self._lane
        if lane is None:
            return
        if down.hold is not None:
            if down.hold:
                lane.pause_reading()
            else:
                lane.resume_reading()
        if down.moved is not None:
            self._move(lane, down.moved)
        elif down.stays:
            self._answered = True
            kept, self._kept = self._kept, []
            for frame in kept:
                self.frame_received(frame)
            lane.resume_reading()
        elif down.code:
            self.close(CloseCode(down.code), down.reason, now=down.now)

    def _move(self, lane: FrameLane, moved: Moved) -> None:
        """Hand the WebSocket to its session, which goes on here."""
        self._end()
        peer = self._adopt(moved, lane)
        for frame in self._kept:
            peer.frame_received(frame)
        lane.resume_reading()

    # To the client.

    def flush(self) -> None:
        super().flush()
        if not self.queue and not self.behind and self._passed - self._reported >= WINDOW // 4:
            self._reported = self._passed
            self._tell()

    # From the client.

    def frame_received(self, frame: str | bytes) -> None:
        if self._upgrading and not self._answered:
            self._kept.append(frame)
            return
        if not self._up:
            asyncio.get_running_loop().call_soon(self._pass_on)
        self._up.append(frame)
        if frame == engineio.UPGRADE and not self._upgrading:
            self._upgrading = True
            if self._lane is not None:
                self._lane.pause_reading()

    def _pass_on(self) -> None:
        frames, self._up = self._up, []
        for batch, torn in pieces(frames):
            self._tell(batch, torn=torn)

    def _tell(self, frames: Frames = (), *, torn: bool = False, **news: bool) -> None:
        if self._over:
            return
        self.sent += 1
        up = Up(self.number, self.sent, list(frames), torn, written=self._reported, **news)
        self._exchanges.tell(up, self.node)

    def too_large(self) -> None:
        self._pass_on()
        self._tell(too_large=True)

    def ping_received(self) -> bool:
        """Return True: the lane answers only the last of a flood."""
        return True

    def pong_received(self) -> None:
        """Do nothing: Engine.IO has its own heartbeats."""

    def connection_lost(self) -> None:
        self.closed: bool = True
        self.discard_queue()
        self._pass_on()
        self._tell(lost=True)
        self._end()

    def _end(self) -> None:
        self._over = True
        self._exchanges.end(self)
        self._ended(self)


class RelayLane:
    """The session's end: a lane whose WebSocket is at another node."""

    __slots__ = (
        "_closing",
        "_exchanges",
        "_held",
        "_kept",
        "_over",
        "_passed",
        "_seam",
        "_written",
        "node",
        "number",
        "peer",
        "received",
        "sent",
    )

    pings = False
    # Set at once.
    peer: FramePeer

    def __init__(self, exchanges: Exchanges, node: str, number: int) -> None:
        self._exchanges = exchanges
        self.node: str = node
        self.number: int = number
        self.sent: int = 0
        self.received: int = 0
        # Reading is paused; and what came nevertheless.
        self._held = False
        self._kept: deque[str | bytes] = deque()
        self._seam = Seam()
        # Characters and bytes for the client: passed to the other node, and written there.
        self._passed = 0
        self._written = 0
        # Ends it if the other node does not. None until it is closed.
        self._closing: asyncio.TimerHandle | None = None
        self._over = False
        exchanges.take(self)

    def lost(self) -> None:
        if not self._over:
            self._tell(code=CloseCode.GOING_AWAY, reason="Try again")
            self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._closing is not None:
            self._closing.cancel()
        self._exchanges.end(self)
        self.peer.connection_lost()

    def _tell(self, frames: Frames = (), **news: Any) -> None:
        if self._over:
            return
        self.sent += 1
        self._exchanges.tell(Down(self.number, self.sent, list(frames), **news), self.node)

    # The hub's side.

    @property
    def paused(self) -> bool:
        return self._passed - self._written > WINDOW

    def flush(self, outbox: Connection) -> None:
        if outbox.queue and not self.paused:
            self._take(outbox)

    def _take(self, outbox: Connection) -> None:
        frames = [message for wire in outbox.queue for message in wire.messages]
        outbox.taken_all()
        self._passed += sum(map(len, frames))
        for batch, torn in pieces(frames):
            self._tell(batch, torn=torn)

    def send(self, message: str) -> None:
        self._passed += len(message)
        self._tell([message])

    def ping(self) -> None:
        """Do nothing: Engine.IO has its own heartbeats."""

    def pause_reading(self) -> None:
        if not self._held:
            self._held = True
            self._tell(hold=True)

    def resume_reading(self) -> None:
        if self._held:
            self._held = False
            self._tell(hold=False)
            asyncio.get_running_loop().call_soon(self._handle_kept)

    def close(
        self, code: int, reason: str, outbox: Connection | None = None, *, now: bool = False
    ) -> None:
        if self._closing is not None or self._over:
            return
        if outbox is not None and outbox.queue:
            self._take(outbox)
        self._tell(code=code, reason=reason, now=now)
        self._closing = asyncio.get_running_loop().call_later(END_TIME, self._end)
        # The client's end must be heard.
        self._held = False

    def move(self, moved: Moved) -> None:
        """Give the session to the other node: it is no longer this one's."""
        self._tell(moved=moved)
        self._over = True
        self._exchanges.end(self)

    def stay(self) -> None:
        """Keep the session here, to the WebSocket's end."""
        self._tell(stays=True)

    async def start(self) -> None:
        """Return at once: the other node answers the client."""

    async def run(self) -> None:
        """Return at once: the other node calls back."""

    # The other node's side.

    def heard(self, up: Up) -> None:
        """Handle what the client did."""
        if self._over:
            return
        if up.index != self.received + 1:
            self.lost()
            return
        self.received = up.index
        if up.written > self._written:
            paused, self._written = self.paused, up.written
            if paused and not self.paused:
                self.peer.resume_writing()
        frames = self._seam.join(up.frames, torn=up.torn)
        if frames:
            self._kept.extend(frames)
            self._handle_kept()
        if up.too_large:
            self.peer.too_large()
        if up.lost:
            self._end()

    def _handle_kept(self) -> None:
        kept = self._kept
        while kept and not self._held and not self._over:
            self.peer.frame_received(kept.popleft())
