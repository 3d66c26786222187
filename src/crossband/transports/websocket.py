"""The raw WebSocket door: JSON envelopes, or bare frames in plain namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from crossband.codecs import ENVELOPE, PLAIN, Codec
from crossband.connection import OpenConnections
from crossband.errors import (
    CloseCode,
    EventError,
    InvalidMessage,
    MessageTooLarge,
    RateLimited,
)
from crossband.hub.attempt import Resume
from crossband.hub.core import Core
from crossband.hub.incoming import Incoming
from crossband.hub.namespace import Socket
from crossband.protocol import envelope
from crossband.slots import TooManyConnections
from crossband.timers import Deadlines
from crossband.transports.asgi import take_frames
from crossband.transports.framed import FramedConnection
from crossband.transports.http import ClientGone, Request
from crossband.transports.lane import FrameLane
from crossband.transports.messages import answer_envelope, plain_message

if TYPE_CHECKING:
    from crossband.handshake import Handshake

Reader = Callable[["WebSocketConnection", Socket, "str | bytes"], None]


class WebSocketConnection(FramedConnection):
    """One raw WebSocket and its one socket."""

    __slots__ = ("_door", "_early", "read", "reason", "socket")

    def __init__(self, door: WebSocketDoor, *, limit: int) -> None:
        super().__init__(door.hub, limit=limit)
        self._door = door
        # How to close it once there is a lane. None unless it was closed before.
        self._early: tuple[CloseCode, str] | None = None
        # None until opened.
        self.socket: Socket | None = None
        self.read: Reader | None = None
        # Why the server ended it. None if it has not.
        self.reason: str | None = None

    @property
    def transport(self) -> str:
        return "websocket"

    def close(self, code: CloseCode, reason: str, *, now: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        if self.reason is None:
            self.reason = "forced close"
        if now:
            self.discard_queue()
        if self._lane is not None:
            self._lane.close(code, reason, self, now=now)
        else:
            self._early = (code, reason)

    def attach(self, lane: FrameLane) -> None:
        self._lane = lane
        self._door.opened(self, pings=not lane.pings)
        if self._early is not None:
            lane.close(*self._early, self)

    # As the lane's peer.

    def frame_received(self, frame: str | bytes) -> None:
        socket, read = self.socket, self.read
        if self.closed or socket is None or read is None:
            return
        meter = self.meter
        if (
            meter is not None
            and (wait := meter.take(monotonic(), len(frame)))
            and not self.borrow(wait, len(frame))
        ):
            self._door.refuse_rate(self, socket, frame, wait)
            return
        read(self, socket, frame)
        if socket.inbox.crowded(socket):
            self.pause_reading()

    @property
    def crowded(self) -> Socket | None:
        socket = self.socket
        return socket if socket is not None and socket.inbox.crowded(socket) else None

    def too_large(self) -> None:
        if self.socket is not None:
            self._door.refuse_size(self, self.socket)

    def pong_received(self) -> None:
        self._door.pong(self)
        self.count_control()

    def connection_lost(self) -> None:
        self.lost()
        self._door.lost(self)

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        if self._lane is not None:
            self._lane.ping()


class WebSocketDoor:
    """Admits raw WebSocket clients and reads their frames."""

    def __init__(self, hub: Core) -> None:
        self.hub = hub
        self._connections = OpenConnections[WebSocketConnection]()
        self.emptied: Final = self._connections.emptied
        # Of those that no server pings.
        loop = asyncio.get_running_loop()
        settings = hub.settings
        self._pings = Deadlines[WebSocketConnection](loop, settings.ping_interval, self._ping)
        self._pongs = Deadlines[WebSocketConnection](loop, settings.ping_timeout, self._give_up)

    async def serve(self, request: Request, namespace_name: str) -> None:
        """Serve one WebSocket from handshake to end."""
        connection = WebSocketConnection(self, limit=self.hub.settings.limits.outbox)
        try:
            await self._serve(request, namespace_name, connection)
        finally:
            if not connection.on_lane:
                connection.free_slot()

    async def _serve(
        self, request: Request, namespace_name: str, connection: WebSocketConnection
    ) -> None:
        hub = self.hub
        limits = hub.settings.limits
        try:
            request.cors(hub.settings.cors_origins)
            hub.take_slot(connection, request.address)
            namespace = hub.find(namespace_name)
            codec: Codec = PLAIN if namespace is not None and namespace.plain else ENVELOPE
            resume = Resume()
            if codec is ENVELOPE:
                cursor = request.first("lastEventId") or None
                resume = Resume(request.first("session"), cursor)
            handshake: Handshake = request.handshake("websocket")
            rooms = request.query.get("room", ())
            with request.while_connected():
                admission = await hub.admit(
                    connection, namespace_name, handshake, codec, resume=resume, rooms=rooms
                )
        except ClientGone:
            return
        except TooManyConnections as error:
            await request.turn_away(error, error.close_code)
            return
        except EventError as error:
            await request.deny(error)
            return
        connection.socket = admission.socket
        connection.read = self._read_plain if codec is PLAIN else self._read_envelope
        lane = take_frames(request, connection, limit=limits.message_size)
        await connection.open(lane, admission)

    def _read_envelope(
        self, connection: WebSocketConnection, socket: Socket, frame: str | bytes
    ) -> None:
        name = socket.namespace.name
        try:
            if isinstance(frame, bytes):
                raise InvalidMessage("Expected a text frame with JSON, got a binary frame")
            message = envelope.decode(frame)
            if message.is_ack:
                answer_envelope(socket, message)
                return
            data = message.data
            raws = () if data is msgspec.UNSET else (data,)
            socket.inbox.receive(socket, Incoming(message.type, raws, (), message.id, None, True))
        except EventError as error:
            ack_id = error.details.pop("id", None)
            connection.push(socket.codec.problem(name, error.to_dict(), ack_id))

    def _read_plain(
        self, connection: WebSocketConnection, socket: Socket, frame: str | bytes
    ) -> None:
        socket.inbox.receive(socket, plain_message(frame))

    def refuse_size(self, connection: WebSocketConnection, socket: Socket) -> None:
        """Tell a client that its message was too large, and end its connection."""
        error = MessageTooLarge(self.hub.settings.limits.message_size)
        connection.push(socket.codec.problem(socket.namespace.name, error.to_dict(), None))
        connection.close(CloseCode.MESSAGE_TOO_BIG, error.message)

    def refuse_rate(
        self, connection: WebSocketConnection, socket: Socket, frame: str | bytes, wait: float
    ) -> None:
        """Tell a client that it sends too fast; close the connection if it keeps on."""
        error: EventError = RateLimited(wait)
        ack_id: int | None = None
        if socket.codec is ENVELOPE:
            try:
                message = envelope.decode(frame)
            except EventError as invalid:
                ack_id = invalid.details.get("id")
            else:
                error.details["event"] = message.type
                # An acknowledgement's id is one of the server's.
                ack_id = None if message.is_ack else message.id
        connection.push(socket.codec.problem(socket.namespace.name, error.to_dict(), ack_id))
        connection.end_flood()

    def pong(self, connection: WebSocketConnection) -> None:
        """Note that a client answered its ping."""
        if not connection.closed:
            self._pongs.discard(connection)
            self._pings.add(connection)

    def _ping(self, connection: WebSocketConnection) -> None:
        connection.ping()
        self._pongs.add(connection)

    def _give_up(self, connection: WebSocketConnection) -> None:
        # Its pong may be waiting behind events that we are slow to handle or to read.
        if connection.held_within(self.hub.settings.ping_timeout):
            self.pong(connection)
            return
        connection.reason = "ping timeout"
        connection.close(CloseCode.INTERNAL_ERROR, "ping timeout", now=True)

    def opened(self, connection: WebSocketConnection, *, pings: bool) -> None:
        """Keep a connection, whose lane reports frames and the end; ping it if `pings`."""
        self._connections.add(connection)
        if pings:
            self._pings.add(connection)

    def lost(self, connection: WebSocketConnection) -> None:
        """Clean up after a connection whose lane ended."""
        connection.closed = True
        connection.discard_queue()
        connection.free_slot()
        self._pings.discard(connection)
        self._pongs.discard(connection)
        self._connections.discard(connection)
        if connection.socket is not None:
            self.hub.leave(connection.socket, connection.reason or "transport close")

    def close(self, code: CloseCode, reason: str) -> None:
        """End all connections."""
        self._pings.close()
        self._pongs.close()
        for connection in self._connections:
            connection.close(code, reason)
