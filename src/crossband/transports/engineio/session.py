"""An Engine.IO session: one connection with its `sid`, whichever transport carries it.

Knows its transports only as a `Poller`, a `Candidate` or a `FrameLane`, and not what its messages
mean. `README.md` has its states.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from crossband.codecs import Wire
from crossband.errors import CloseCode, ProtocolError
from crossband.handshake import Handshake
from crossband.hub.core import Core
from crossband.limits import Limits
from crossband.protocol import engineio
from crossband.protocol.engineio import PacketType
from crossband.transports.asgi import take_frames
from crossband.transports.framed import FramedConnection
from crossband.transports.http import Request
from crossband.transports.lane import FrameLane, FramePeer


class State(Enum):
    """The state of an Engine.IO session."""

    OPEN = "open"
    # A WebSocket has probed; polls are answered at once until it takes over.
    UPGRADING = "upgrading"
    # What is queued is being written; nothing more is read.
    CLOSING = "closing"
    CLOSED = "closed"


class Poller(Protocol):
    """The transport over HTTP requests, which takes messages from a session's outbox."""

    @property
    def busy(self) -> bool:
        """Whether no GET waits for what is queued."""
        ...

    @property
    def posting(self) -> bool:
        """Whether something the client posted is still to be handled."""
        ...

    def wake(self) -> None:
        """Answer the GET that waits."""


class Candidate(Protocol):
    """A WebSocket that asks to take a session over from polling."""

    def close(self, code: CloseCode, reason: str) -> None:
        """Close it: its session has ended."""


class Keeper(Protocol):
    """The owner of a door's sessions; it is told what happens to each."""

    def websocket_opened(self, connection: EngineConnection) -> None:
        """Note that a WebSocket carries the session."""

    def websocket_closed(self, connection: EngineConnection) -> None:
        """Note that the session's WebSocket has ended."""

    @property
    def spread(self) -> bool:
        """Whether requests of one client reach several nodes."""
        ...

    def joined(self, connection: EngineConnection) -> None:
        """Note that the client joined a namespace."""

    def pong(self, connection: EngineConnection) -> None:
        """Note that the client sent a pong."""

    def linger(self, connection: EngineConnection) -> None:
        """Keep an ended session for one more poll."""

    def forget(self, connection: EngineConnection) -> None:
        """Drop the session: from now on its id is unknown."""


class Early:
    """What a client has sent while its session may still move to another node."""

    __slots__ = ("_since", "_timer", "messages", "size")

    def __init__(self) -> None:
        # When the session was opened, in the loop's time.
        self._since = asyncio.get_running_loop().time()
        self.messages: list[str | bytes] = []
        # In bytes and characters.
        self.size: int = 0
        # None until the first message.
        self._timer: asyncio.TimerHandle | None = None

    @property
    def age(self) -> float:
        """Seconds since the session was opened."""
        return asyncio.get_running_loop().time() - self._since

    @property
    def waits(self) -> bool:
        """Whether its end is set."""
        return self._timer is not None

    def wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Call back after so many seconds from now, instead of earlier ones."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def stop(self) -> None:
        """Wait no longer."""
        if self._timer is not None:
            self._timer.cancel()


class EngineConnection(FramedConnection):
    """One Engine.IO session, whichever transport carries it now.

    A subclass handles its messages. Abstract methods, rather than a second object, cost nothing
    per message and make no reference cycle per client.
    """

    __slots__ = (
        "_keeper",
        "_transport",
        "client_closed",
        "early",
        "handshake",
        "lingers",
        "polling",
        "sid",
        "state",
        "text_only",
        "upgrade",
    )

    def __init__(self, hub: Core, keeper: Keeper, handshake: Handshake, sid: str) -> None:
        super().__init__(hub, limit=hub.settings.limits.outbox)
        self._keeper = keeper
        self.sid: Final = sid
        self.handshake: Final = handshake
        # "polling" or "websocket". Once a WebSocket carries the session, it does so to the end.
        self._transport = handshake.transport
        self.state: State = State.OPEN
        # None once a WebSocket carries the session.
        self.polling: Poller | None = None
        # None unless a WebSocket asks to take over from polling; one at a time.
        self.upgrade: Candidate | None = None
        # What it has sent while it may still move to another node. None once it stays, which is
        # at once where there is no other.
        self.early: Early | None = None
        # The client takes no binary frames (`b64`): they are sent as base64 in text frames.
        self.text_only: bool = False
        # The client sent a close packet, and gets none.
        self.client_closed: bool = False
        # The session has ended, and its client is told at its next poll.
        self.lingers: bool = False

    @property
    def limits(self) -> Limits:
        return self._hub.settings.limits

    @property
    def transport(self) -> str:
        return self._transport

    @property
    def behind(self) -> bool:
        if self._lane is not None:
            return self._lane.paused
        # Between two polls something always waits; up to a quarter of the outbox is normal.
        polling = self.polling
        return polling is not None and polling.busy and self.queued > self.limit // 4

    def flush(self) -> None:
        if self._lane is not None:
            self._spell_out()
            self._lane.flush(self)
        elif self.polling is not None:
            self.polling.wake()

    def _spell_out(self) -> None:
        """Turn queued binary parts into text, for a client that takes no binary frames."""
        if not self.text_only:
            return
        for index, wire in enumerate(self.queue):
            if len(wire.messages) > 1:
                text = Wire(*wire.polling.split(engineio.SEPARATOR))
                text.tag = wire.tag
                self.queue[index] = text
                self.queued: int = self.queued + text.size - wire.size

    # What the packets mean.

    @property
    @abstractmethod
    def joining(self) -> bool:
        """Whether the client is joining a namespace."""

    @abstractmethod
    def message_received(self, data: str | bytes) -> None:
        """Handle the data of a MESSAGE packet. Raises ProtocolError."""

    @abstractmethod
    def leave_all(self, reason: str) -> None:
        """Make the client leave every namespace: the session has ended."""

    # Ending.

    def close(self, code: CloseCode, reason: str, *, now: bool = False) -> None:
        """Close from the server's side; the client sees a transport close."""
        self.end("forced close", code, reason, now=now, linger=True)

    def end(
        self,
        reason: str,
        code: CloseCode = CloseCode.NORMAL,
        text: str = "",
        *,
        now: bool = False,
        linger: bool = False,
    ) -> None:
        """End the session: its sockets leave for `reason`, its transport is closed.

        `code` is the close code. With `linger`, a client between two polls is told at the next.
        """
        if self.closed:
            return
        if now:
            self.discard_queue()
        self.closed = True
        self.state = State.CLOSING
        self.begin()
        self._keeper.forget(self)
        # Later, because fan-out may be iterating over the sockets now.
        asyncio.get_running_loop().call_soon(self._ended, reason)
        if self.upgrade is not None:
            self.upgrade.close(code, text)
        if self._lane is not None:
            self._spell_out()
            self._lane.close(code, text, self, now=now)
        elif self.polling is not None:
            if linger:
                self.lingers = True
                self._keeper.linger(self)
            # There is no close code over HTTP.
            self.polling.wake()

    def _ended(self, reason: str) -> None:
        self.leave_all(reason)
        self._release()

    def told(self) -> None:
        """Note that a polling client was told of the end."""
        self.state = State.CLOSED
        self._keeper.forget(self)

    # What the client sends.

    def take_frame(self, frame: str | bytes) -> None:
        """Handle a WebSocket message; one that breaks the protocol ends the session."""
        try:
            if isinstance(frame, bytes):
                self.message_received(frame)
                return
            packet = engineio.decode_packet(frame)
            if packet.type is PacketType.MESSAGE:
                self.message_received(packet.data)
            else:
                self.control_received(packet)
        except ProtocolError as error:
            self.end("parse error", error.close_code, str(error)[:100])

    def control_received(self, packet: engineio.Packet) -> None:
        """Handle a packet that is not a message.

        Raises ProtocolError for a type that only servers send.
        """
        kind = packet.type
        if kind in (PacketType.OPEN, PacketType.PING, PacketType.UPGRADE):
            raise ProtocolError(f"unexpected {kind.name} packet (Engine.IO 4)")
        self.count_control(len(packet.data))
        if kind is PacketType.PONG:
            self._keeper.pong(self)
        elif kind is PacketType.CLOSE:
            self.client_closed = True
            self.end("transport close")

    # Over a WebSocket, as its lane's peer.

    def lane_of(self, request: Request, peer: FramePeer) -> FrameLane:
        """Accept a WebSocket and take it over."""
        return take_frames(request, peer, limit=self.limits.max_http_buffer_size)

    @abstractmethod
    def frame_received(self, frame: str | bytes) -> None:
        """Take a WebSocket message."""

    def too_large(self) -> None:
        self.end("parse error", CloseCode.MESSAGE_TOO_BIG, "Message too large")

    def pong_received(self) -> None:
        # It proves nothing: Engine.IO has its own heartbeats.
        self.count_control()

    def connection_lost(self) -> None:
        self.lost()
        self.end("transport close")
        self.state = State.CLOSED
        self.discard_queue()
        self._keeper.websocket_closed(self)

    # Between nodes.

    @abstractmethod
    def begin(self) -> None:
        """Handle what the client has sent so far, if that waits: the session stays here."""

    def hand_over(self) -> list[str | bytes]:
        """End the session here, as it goes on elsewhere; return what its client has sent."""
        early, self.early = self.early, None
        assert early is not None
        early.stop()
        self.closed: bool = True
        self.state = State.CLOSED
        self._keeper.forget(self)
        polling, self.polling = self.polling, None
        if polling is not None:
            polling.wake()
        self.discard_queue()
        return early.messages

    # Upgrades.

    @property
    def upgradable(self) -> bool:
        """Whether a WebSocket may ask to take over."""
        free = self._transport == "polling" and self.state is State.OPEN
        return free and self.upgrade is None

    def probe(self) -> bool:
        """Note a WebSocket's probe; return False if it comes too late."""
        # The session may have ended, or have been taken over, in the meantime.
        if self.state is not State.OPEN or self._transport != "polling":
            return False
        self.state = State.UPGRADING
        # The client pauses polling: its pending poll must end, empty.
        if self.polling is not None:
            self.polling.wake()
        return True

    def carry_on(self, lane: FrameLane) -> None:
        """Let the WebSocket that probed carry the session."""
        self.upgrade = None
        self.state = State.OPEN
        self._transport = "websocket"
        polling, self.polling, self._lane = self.polling, None, lane
        self._keeper.websocket_opened(self)
        if polling is not None:
            polling.wake()
        self.flush()

    def stay(self) -> None:
        """Stay with polling: the WebSocket that asked to take over has gone."""
        self.upgrade = None
        if self.state is State.UPGRADING:
            self.state = State.OPEN
        self.begin()
