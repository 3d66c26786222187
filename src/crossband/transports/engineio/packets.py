"""The Socket.IO packets in a session's messages: sockets join, send events and leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from time import monotonic
from typing import Any, Final

import msgspec

from crossband.codecs import SOCKETIO, SOCKETIO_PLAIN, Wire
from crossband.errors import (
    CloseCode,
    ConnectionRefused,
    EncodeError,
    EventError,
    InvalidMessage,
    ProtocolError,
    RateLimited,
)
from crossband.handshake import Handshake
from crossband.hub.answers import tell
from crossband.hub.attempt import Resume
from crossband.hub.core import Core
from crossband.hub.incoming import Incoming
from crossband.hub.namespace import Socket
from crossband.names import SOCKETIO_RESERVED
from crossband.protocol import engineio, socketio
from crossband.protocol.socketio import PacketType
from crossband.transports.engineio.session import Early, EngineConnection, Keeper

logger: Final = logging.getLogger("crossband")

# Seconds that a polling client's first packets wait for its WebSocket, which official clients
# open at the same time: as in Node's cluster-engine. If the first took long, the network is slow,
# and the WebSocket needs more round trips: it gets three times as long, up to a limit.
HOLD_TIME: Final = 0.3
SLOW: Final = 3.0
LONGEST_HOLD_TIME: Final = 1.0
# And for the upgrade, once there is a WebSocket.
UPGRADE_HOLD_TIME: Final = 3.0
# Messages, and their characters, that may wait so: several times what any client sends at first.
MOST_EARLY: Final = 64
MAX_EARLY: Final = 65_536
# CONNECTs to one namespace that may wait for an earlier one.
WAITING_CONNECTS: Final = 16
# The start of a message with an event, and the index of the rest.
_EVENT: Final = f"{engineio.MESSAGE}{PacketType.EVENT:d}"
_BEHIND_EVENT: Final = len(_EVENT)


class SocketIOConnection(EngineConnection):
    """A session whose messages are Socket.IO packets, and its sockets by namespace."""

    __slots__ = ("_decoder", "_joining", "_size", "_sockets")

    def __init__(self, hub: Core, keeper: Keeper, handshake: Handshake, sid: str) -> None:
        super().__init__(hub, keeper, handshake, sid)
        limits = self.limits
        # By namespace.
        self._sockets: dict[str, Socket] = {}
        # CONNECTs that are not answered yet, by namespace.
        self._joining: dict[str, Joining] = {}
        self._decoder = socketio.Decoder(
            max_attachments=limits.attachments,
            max_bytes=limits.max_http_buffer_size,
            max_total=limits.event_size,
        )
        # Size so far of an unfinished packet, in bytes and characters.
        self._size = 0

    @property
    def crowded(self) -> Socket | None:
        for socket in self._sockets.values():
            if socket.inbox.crowded(socket):
                return socket
        return None

    @property
    def joining(self) -> bool:
        return bool(self._joining)

    # Ending.

    def leave_all(self, reason: str) -> None:
        for joining in list(self._joining.values()):
            joining.task.cancel()
        sockets, self._sockets = self._sockets, {}
        for socket in sockets.values():
            self._hub.leave(socket, reason)

    def end_socket(
        self, namespace: str, code: CloseCode, reason: str, *, close: bool = False
    ) -> None:
        self._sockets.pop(namespace, None)
        if code is CloseCode.SESSION_TAKEN:
            # A client that came back elsewhere has left this connection. If this is the one that it
            # uses after all, it must come back, and it never does after a DISCONNECT.
            self.end("transport close", CloseCode.TRY_AGAIN_LATER, reason, linger=True)
            return
        self.push(Wire(engineio.MESSAGE + socketio.encode_disconnect(namespace)))
        last = not self._sockets and not self._joining
        if last and code in (CloseCode.TOKEN_EXPIRED, CloseCode.REVOKED):
            self.end("server namespace disconnect", code, reason, linger=True)
        elif close:
            self.end("server namespace disconnect", CloseCode.NORMAL, reason, linger=True)

    # What the client sends.

    def frame_received(self, frame: str | bytes) -> None:
        if self.closed:
            return
        # Hot: the common event, without a Decoder.
        if isinstance(frame, str) and frame.startswith(_EVENT) and not self._decoder.pending:
            event = socketio.read_event(frame, _BEHIND_EVENT)
            socket = self._sockets.get(event[0]) if event is not None else None
            if event is not None and socket is not None and event[1] not in SOCKETIO_RESERVED:
                meter = self.meter
                if (
                    meter is not None
                    and (wait := meter.take(monotonic(), len(frame)))
                    and not self.borrow(wait, len(frame))
                ):
                    tell(socket, RateLimited(wait), event[1], event[2])
                    self.end_flood()
                    return
                socket.inbox.receive(socket, Incoming(event[1], event[3], (), event[2]))
                if socket.inbox.crowded(socket):
                    self.pause_reading()
                return
        self.take_frame(frame)
        if self.crowded is not None:
            self.pause_reading()

    def message_received(self, data: str | bytes) -> None:
        if self.early is not None and self._keep(self.early, data):
            return
        self._size += len(data)
        packet = self._decoder.feed(data)
        if packet is not None:
            size, self._size = self._size, 0
            self._receive(packet, size)
        elif not self._sockets:
            raise ProtocolError("binary before CONNECT (Socket.IO 5)")

    def _keep(self, early: Early, data: str | bytes) -> bool:
        """Keep a message until it is known which node serves the client; return if so."""
        early.messages.append(data)
        early.size += len(data)
        if not early.waits:
            patience = min(SLOW * early.age, LONGEST_HOLD_TIME)
            early.wait(max(HOLD_TIME, patience), self.begin)
        if not self._keeper.spread or early.size > MAX_EARLY or len(early.messages) > MOST_EARLY:
            self.begin()
        return True

    def begin(self) -> None:
        early = self.early
        if early is None:
            return
        self.early: Early | None = None
        early.stop()
        self.take_early(early.messages)

    def take_early(self, messages: list[str | bytes]) -> None:
        """Handle what the client sent before it was known which node serves it."""
        try:
            for data in messages:
                if not self.closed:
                    self.message_received(data)
        except ProtocolError as error:
            self.end("parse error", error.close_code, str(error)[:100], linger=True)

    def _receive(self, packet: socketio.Packet, size: int) -> None:
        name = packet.namespace
        kind = packet.type
        meter = self.meter
        if (
            meter is not None
            and (wait := meter.take(monotonic(), size))
            and not self.borrow(wait, size)
        ):
            self._refuse_rate(packet, wait)
            return
        if kind is PacketType.CONNECT:
            self._connect(packet)
            return
        socket = self._sockets.get(name)
        if socket is None:
            if kind is PacketType.DISCONNECT:
                if (joining := self._joining.pop(name, None)) is not None:
                    joining.task.cancel()
                return
            raise ProtocolError("packet for a namespace that is not connected (Socket.IO 5)")
        if kind is PacketType.EVENT or kind is PacketType.BINARY_EVENT:
            try:
                event, raws = socketio.split_event(packet)
            except InvalidMessage as error:
                tell(socket, error, error.details["event"], packet.id)
                return
            if event in SOCKETIO_RESERVED:
                raise ProtocolError(f"reserved event name {event!r} (Socket.IO 5)")
            message = Incoming(event, raws, packet.attachments, packet.id)
            if kind is PacketType.BINARY_EVENT:
                # Raises ProtocolError for a placeholder that names no attachment; numbers out
                # of range are for the handler to refuse.
                with contextlib.suppress(msgspec.DecodeError):
                    message.decode()
            socket.inbox.receive(socket, message)
        elif kind is PacketType.ACK or kind is PacketType.BINARY_ACK:
            try:
                raws = socketio.split_ack(packet)
            except InvalidMessage as error:
                error.details["event"] = "ack"
                tell(socket, error, "ack")
                return
            assert packet.id is not None
            # Nobody waits for it: a flood of these must not cost any decoding.
            if kind is PacketType.ACK and not socket.owes(packet.id):
                return
            message = Incoming("", raws, packet.attachments)
            try:
                args = message.decode()
            except msgspec.DecodeError:
                raise ProtocolError("acknowledgement cannot be decoded (Socket.IO 5)") from None
            socket.acknowledge(packet.id, args[0] if len(args) == 1 else args or None)
        elif kind is PacketType.DISCONNECT:
            del self._sockets[name]
            self._hub.leave(socket, "client namespace disconnect")
        else:
            raise ProtocolError("CONNECT_ERROR comes from servers only (Socket.IO 5)")

    def _refuse_rate(self, packet: socketio.Packet, wait: float) -> None:
        """Tell a client that it sends too fast, and end the session if it keeps doing so."""
        error = RateLimited(wait)
        kind = packet.type
        socket = self._sockets.get(packet.namespace)
        if kind is PacketType.CONNECT and socket is None:
            self._refuse(packet.namespace, error)
        elif socket is not None and kind in (PacketType.EVENT, PacketType.BINARY_EVENT):
            try:
                event, _ = socketio.split_event(packet)
            except InvalidMessage as invalid:
                event = invalid.details["event"]
            tell(socket, error, event, packet.id)
        self.end_flood()

    def _connect(self, packet: socketio.Packet) -> None:
        name = packet.namespace
        try:
            auth = socketio.connect_auth(packet)
        except EventError as error:
            self._refuse(name, error)
            return
        if name in self._sockets:
            self._connect_again(name)
            return
        joining = self._joining.get(name)
        if joining is not None:
            if len(joining.again) >= WAITING_CONNECTS:
                raise ProtocolError(f"{WAITING_CONNECTS} CONNECTs of one namespace at once")
            joining.again.append(auth)
            return
        limit = self.limits.namespaces
        if len(self._sockets) + len(self._joining) >= limit:
            self._refuse(name, EventError(code="too_many_namespaces"))
            return
        joining = self._joining[name] = Joining([auth])
        joining.task = self._hub.run_to_end(self._admit_each(name, joining))

    def _connect_again(self, name: str) -> None:
        """Repeat the answer to a client that has already joined."""
        socket = self._sockets[name]
        wire = socket.codec.welcome(
            name, sid=socket.id, session=socket.session, recovered=False, offset=None
        )
        if wire is not None:
            self.push(wire)

    async def _admit_each(self, name: str, joining: Joining) -> None:
        """Answer the CONNECTs of one namespace, one after another."""
        try:
            while joining.again and not self.closed:
                auth = joining.again.pop(0)
                if name in self._sockets:
                    self._connect_again(name)
                else:
                    await self._admit(name, auth)
        finally:
            if self._joining.get(name) is joining:
                del self._joining[name]

    async def _admit(self, name: str, auth: dict[str, Any]) -> None:
        hub = self._hub
        recovery = hub.settings.recovery and auth.get("recovery") is not False
        handshake = Handshake(
            transport=self.transport,
            headers=self.handshake.headers,
            query=self.handshake.query,
            address=self.handshake.address,
            time=self.handshake.time,
            path=self.handshake.path,
            secure=self.handshake.secure,
            auth=auth,
        )
        try:
            admission = await hub.admit(
                self,
                name,
                handshake,
                SOCKETIO if recovery else SOCKETIO_PLAIN,
                resume=_resume(auth) if hub.settings.recovery else Resume(),
            )
        except ConnectionRefused as error:
            # Official clients come back by themselves after a close, not after a refusal.
            if hub.stopping and not self._sockets:
                self.close(CloseCode.GOING_AWAY, "Server shutting down")
            elif error.code == "unavailable" and not self._sockets:
                self.close(CloseCode.TRY_AGAIN_LATER, error.message)
            else:
                self._refuse(name, error)
            return
        except Exception:
            logger.exception("a client of namespace %r could not be admitted", name)
            self._refuse(name, EventError(code="internal_error"))
            return
        if self.closed:
            admission.withdraw()
            return
        self._sockets[name] = admission.socket
        self._keeper.joined(self)
        admission.open()

    def _refuse(self, name: str, error: EventError) -> None:
        data = error.data if isinstance(error, ConnectionRefused) else None
        # With the code, as on the other doors; but the protocol has one answer for this one.
        if data is None and error.code != "invalid_namespace":
            data = error.to_dict()
        try:
            packet = socketio.encode_connect_error(name, error.message, data)
        except EncodeError:
            logger.exception("the data of a refusal in namespace %r has no JSON form", name)
            packet = socketio.encode_connect_error(name, error.message)
        self.push(Wire(engineio.MESSAGE + packet))


def _resume(auth: dict[str, Any]) -> Resume:
    # Official clients recover by `pid` and `offset`; clients without recovery may send a key of
    # their own choice as `session`.
    pid, session, offset = auth.get("pid"), auth.get("session"), auth.get("offset")
    cursor = offset if isinstance(offset, str) and offset else None
    if isinstance(pid, str):
        return Resume(pid, cursor, returning=True)
    return Resume(session if isinstance(session, str) else None, cursor, unreceived=True)


class Joining:
    """A namespace that a client is joining."""

    __slots__ = ("again", "task")

    # Set at once.
    task: asyncio.Task[None]

    def __init__(self, again: list[dict[str, Any]]) -> None:
        # The `auth` of each CONNECT that is not answered yet.
        self.again: Final = again
