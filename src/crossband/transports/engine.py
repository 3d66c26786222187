"""The Socket.IO door: Engine.IO sessions over polling and WebSocket, and the packets in them.

`transports/README.md` has the states of a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from enum import Enum
from time import monotonic
from typing import Any, Final

import msgspec

from crossband.codecs import SOCKETIO, SOCKETIO_PLAIN, Wire
from crossband.errors import (
    ERRORS,
    CloseCode,
    ConnectionRefused,
    EncodeError,
    EventError,
    InvalidMessage,
    ProtocolError,
    RateLimited,
)
from crossband.hub.admission import Resume
from crossband.hub.base import BaseHub
from crossband.hub.socket import Incoming, Socket
from crossband.names import SOCKETIO_RESERVED
from crossband.protocol import engineio, socketio
from crossband.protocol.engineio import PacketType as Engine
from crossband.protocol.socketio import PacketType
from crossband.seats import TooManyConnections
from crossband.session import Deadlines, Handshake, Roll
from crossband.transports.http import ClientGone, HeaderList, Request
from crossband.transports.lane import (
    FramedConnection,
    Lane,
    Peer,
    WebSocketOffer,
    close_lane,
    offer_of,
    write_frames,
)
from crossband.transports.upgrade import UPGRADE_TIME, Upgrade
from crossband.transports.websocket import CLOSE_TIME, Writer, close_code_of

logger = logging.getLogger("crossband")

# Seconds an ended polling session waits for the poll that tells its client.
LINGER_TIME: Final = 5.0
LINGER_TIME_AT_STOP: Final = 1.0
# POSTs of one session that may wait until those before them are worked off. None of their
# bodies is read meanwhile; the server has some 64 KiB of each. Official clients send one at a
# time.
WAITING_POSTS: Final = 64
# Packets of one body that are handled in one tick of the event loop.
TURN: Final = 64
# Packets that python-engineio reads from one polling response: past it, it gives up.
PYTHON_PACKETS: Final = 16
# CONNECTs to one namespace that may wait for the one before them.
WAITING_CONNECTS: Final = 16
_PING = Wire("2")
_CLOSE = "1"
_NOOP = "6"
_UPGRADED = "a WebSocket carries the session"

# Engine.IO's error bodies; the official client logs their message.
BAD_REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "transport": {"code": 0, "message": "Transport unknown"},
    "sid": {"code": 1, "message": "Session ID unknown"},
    "method": {"code": 2, "message": "Bad handshake method"},
    "request": {"code": 3, "message": "Bad request"},
    "forbidden": {"code": 4, "message": "Forbidden"},
    "version": {"code": 5, "message": "Unsupported protocol version"},
}


class State(Enum):
    """Where an Engine.IO session is."""

    OPEN = "open"
    # A WebSocket has probed; polls are answered at once until it takes over.
    UPGRADING = "upgrading"
    # What is queued is being written; nothing more is read.
    CLOSING = "closing"
    CLOSED = "closed"


class EngineConnection(FramedConnection):
    """One Engine.IO session, whatever carries it now, and its sockets by namespace."""

    __slots__ = (
        "_decoder",
        "_door",
        "_last",
        "_line",
        "_lingers",
        "_poll",
        "_posts",
        "_reading",
        "_size",
        "_websocket",
        "connecting",
        "handshake",
        "sid",
        "sockets",
        "state",
        "text_only",
        "upgrade",
        "upgrading",
    )

    def __init__(self, door: EngineDoor, handshake: Handshake) -> None:
        limits = door.hub.settings.limits
        super().__init__(door.hub, limit=limits.outbox)
        self._door = door
        self.sid = secrets.token_urlsafe(15)
        self.handshake = handshake
        self.state = State.OPEN
        # By namespace.
        self.sockets: dict[str, Socket] = {}
        # Namespaces whose CONNECT is being examined.
        self.connecting: dict[str, Connecting] = {}
        self._decoder = socketio.Decoder(
            max_attachments=limits.attachments,
            max_bytes=limits.max_http_buffer_size,
            max_total=limits.event_size,
        )
        # The client takes no binary frames (`b64`): they are base64 in text frames.
        self.text_only = False
        # What came of the packet that is put together, in bytes and characters.
        self._size = 0
        # None unless a GET waits; resolved when there is something to answer.
        self._poll: asyncio.Future[None] | None = None
        # Whose turn it is among the POSTs, and how many there are. None before the first.
        self._line: asyncio.Lock | None = None
        self._posts = 0
        # What ends the last polling payload: close, or nothing but a release.
        self._last = _CLOSE
        # Ended, and its client is to hear of it at its next poll.
        self._lingers = False
        # None while polling, and over a lane.
        self._websocket: Writer | None = None
        # Ends the WebSocket's reading when our close gets no answer, or its upgrade takes too
        # long. None while there is none.
        self._reading: asyncio.Timeout | None = None
        # A WebSocket wants to carry it on; one at a time. Over a lane it is `upgrade`.
        self.upgrading = False
        self.upgrade: Upgrade | None = None

    @property
    def transport(self) -> str:
        polling = self._websocket is None and self._lane is None
        return "polling" if polling else "websocket"

    @property
    def behind(self) -> bool:
        if self._lane is not None:
            return self._lane.paused
        if self._websocket is not None:
            return self._websocket.busy and bool(self.queue)
        return self._poll is None and self.queued > self.limit // 4

    @property
    def posting(self) -> bool:
        """Whether what the client posted is not all handled yet."""
        return self._posts > 0

    def flush(self) -> None:
        if self._lane is not None:
            self._spell_out()
            write_frames(self, self._lane)
        elif self._websocket is not None:
            self._websocket.wake()
        else:
            self._release_poll()

    def take_batch(self) -> list[Wire]:
        self._spell_out()
        return super().take_batch()

    def _spell_out(self) -> None:
        """Turn binary parts that wait into text, for a client that takes no binary frames."""
        if not self.text_only:
            return
        for index, wire in enumerate(self.queue):
            if len(wire.messages) > 1:
                text = Wire(*wire.polling.split(engineio.SEPARATOR))
                text.tag = wire.tag
                self.queue[index] = text
                self.queued += text.size - wire.size

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
        """End the session: its sockets leave for `reason`, its transport closes with `code`.

        With `linger`, a client between two polls is still told, at its next.
        """
        if self.closed:
            return
        if now:
            self.discard_queue()
        self.closed = True
        self.state = State.CLOSING
        door = self._door
        door.forget(self)
        # Not while fan-out walks the sockets, which may have led here.
        asyncio.get_running_loop().call_soon(self._leave_all, reason)
        if self._reading is not None:
            # An upgrade under way has nobody to wait for.
            patience = 0.1 if now or self._websocket is None else CLOSE_TIME
            # Raised when it is being cancelled already.
            with contextlib.suppress(RuntimeError):
                self._reading.reschedule(asyncio.get_running_loop().time() + patience)
        if self.upgrade is not None:
            self.upgrade.close(code, text)
        if self._lane is not None:
            self._spell_out()
            close_lane(self, self._lane, code, text, now=now)
            return
        if self._websocket is not None:
            self._websocket.close(code, text)
            return
        self._lingers = linger
        if linger:
            door.linger(self)
        self._release_poll()

    def _leave_all(self, reason: str) -> None:
        for connecting in list(self.connecting.values()):
            connecting.task.cancel()
        sockets, self.sockets = self.sockets, {}
        for socket in sockets.values():
            self._door.hub.leave(socket, reason)
        self._release()

    def end_socket(
        self, namespace: str, code: CloseCode, reason: str, *, close: bool = False
    ) -> None:
        self.sockets.pop(namespace, None)
        self.push(Wire("4" + socketio.encode_disconnect(namespace)))
        last = not self.sockets and not self.connecting
        if last and code in (CloseCode.TOKEN_EXPIRED, CloseCode.REVOKED):
            self.end("server namespace disconnect", code, reason, linger=True)
        elif close or (code is CloseCode.SESSION_TAKEN and not self.sockets):
            self.end("server namespace disconnect", CloseCode.NORMAL, reason, linger=True)

    # Polling.

    async def poll(self, request: Request, cors: HeaderList) -> None:
        """Answer a GET with what is queued, as soon as something is."""
        if self.transport == "websocket":
            await self._door.bad_request(request, "request", cors, reason=_UPGRADED)
            return
        if self._poll is not None:
            # Two polls at once: one of them is not the client's.
            self.end("transport error")
            await self._door.bad_request(request, "request", cors, reason="two polls at once")
            return
        if self.behind:
            self.drop()
        if not self.queue and self.state is State.OPEN:
            self._poll = asyncio.get_running_loop().create_future()
            gone = asyncio.get_running_loop().create_task(self._watch(request, self._poll))
            try:
                await self._poll
            finally:
                self._poll = None
                gone.cancel()
        # Upgraded meanwhile: what is queued belongs to the WebSocket.
        content = _NOOP if self.transport == "websocket" else self._take_payload()
        await request.respond(
            200,
            content.encode(),
            content_type="text/plain; charset=UTF-8",
            headers=[*cors, (b"cache-control", b"no-store")],
        )

    async def _watch(self, request: Request, poll: asyncio.Future[None]) -> None:
        with contextlib.suppress(Exception):
            while (await request.read())["type"] != "http.disconnect":
                pass
        if not poll.done():
            self.end("transport error")

    def _take_payload(self) -> str:
        taken = self._take_few() if self._reads_few else self.queue
        self.queue = self.queue[len(taken) :]
        packets = [wire.polling for wire in taken]
        self.wrote(sum([wire.size for wire in taken]) if self.queue else self.queued)
        if self.queue:
            return engineio.encode_payload(packets)
        # A close goes alone: the official client holds back what comes with it until it has
        # reconnected.
        if self.closed and not (packets and self._lingers):
            packets.append(self._last)
            self.state = State.CLOSED
            self._door.forget(self)
        return engineio.encode_payload(packets) if packets else _NOOP

    @property
    def _reads_few(self) -> bool:
        agent = self.handshake.headers.get("user-agent", "")
        return agent.startswith(("Python/", "python-requests/"))

    def _take_few(self) -> list[Wire]:
        """Return the first that waits, as much as python-engineio reads at once."""
        count = 0
        for number, wire in enumerate(self.queue):
            count += len(wire.messages)
            if number and count > PYTHON_PACKETS:
                return self.queue[:number]
        return self.queue

    async def post(self, request: Request, cors: HeaderList) -> None:
        """Take a POST's packets, after those of the POSTs before it.

        It is answered when there is room for more. Until then no further body is read, as
        nothing is read from a WebSocket.
        """
        if self.transport == "websocket":
            await self._door.bad_request(request, "request", cors, reason=_UPGRADED)
            return
        if self._posts > WAITING_POSTS:
            self.end("transport error")
            await self._door.bad_request(request, "request", cors, reason="too many POSTs at once")
            return
        if self._line is None:
            self._line = asyncio.Lock()
        self._posts += 1
        try:
            async with self._line:
                await self._take_post(request, cors)
        finally:
            self._posts -= 1

    async def _take_post(self, request: Request, cors: HeaderList) -> None:
        limits = self._door.hub.settings.limits
        try:
            body = await request.body(limits.max_http_buffer_size, time=limits.body_time)
            if self.closed:
                await self._door.bad_request(request, "sid", cors)
                return
            await self._take_body(body.decode(), limits.packets_per_payload)
        except ClientGone:
            # What it wanted to say is lost.
            self.end("transport error")
            return
        except EventError as error:
            self.end("parse error", CloseCode.MESSAGE_TOO_BIG)
            await request.refuse(error, cors)
            return
        except (ProtocolError, UnicodeDecodeError) as error:
            self.end("parse error", CloseCode.PROTOCOL_ERROR)
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            await self._door.bad_request(request, "request", cors, reason=reason)
            return
        await request.respond(200, b"ok", content_type="text/html", headers=cors)

    async def _take_body(self, body: str, max_packets: int) -> None:
        """Take a body's packets, no faster than their client may send and is handled."""
        packets = engineio.decode_payload(body, max_packets=max_packets)
        for number, packet in enumerate(packets, 1):
            if packet.type in (Engine.OPEN, Engine.UPGRADE, Engine.NOOP, Engine.PING):
                raise ProtocolError(f"unexpected {packet.type.name} packet (Engine.IO 4)")
            self.receive(packet)
            if self.closed:
                return
            if self.held:
                await self.rested()
                await self.caught_up()
            elif number % TURN == 0:
                await asyncio.sleep(0)

    # WebSocket.

    async def serve(self, request: Request, *, upgrade: bool) -> None:
        """Serve the session over a WebSocket: from its start, or after an upgrade."""
        writer = Writer(self, request.send)
        reader = request.read
        task: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        reason = "transport close"
        try:
            async with asyncio.timeout(UPGRADE_TIME if upgrade else None) as reading:
                if upgrade:
                    if not await self._upgrade(request, reading):
                        return
                    reading.reschedule(None)
                    self._door.carry(self)
                else:
                    self._door.carry(self)
                    if self._take_over(request):
                        return
                    await request.accept()
                self._websocket = writer
                self._reading = reading
                task = loop.create_task(writer.run())
                if self.closed:
                    writer.close(CloseCode.NORMAL, "")
                    reading.reschedule(loop.time() + CLOSE_TIME)
                while True:
                    message = await reader()
                    if message["type"] == "websocket.disconnect":
                        break
                    if self.closed:
                        continue
                    try:
                        await self._read(message)
                    except ProtocolError as error:
                        self.end("parse error", error.close_code, str(error)[:100])
        except TimeoutError:
            reason = "transport error"
        finally:
            mine = self._reading is reading
            if mine:
                self._reading = None
            if task is not None:
                self.end(reason)
                self.state = State.CLOSED
                self.discard_queue()
                self._door.drop(self)
                task.cancel()
            elif mine and self.state is State.UPGRADING:
                self.state = State.OPEN

    async def _read(self, message: Any) -> None:
        limit = self._door.hub.settings.limits.max_http_buffer_size
        text = message.get("text")
        frame: str | bytes = text if text is not None else message["bytes"]
        if len(frame) > limit:
            raise ProtocolError("Message too large", close_code=CloseCode.MESSAGE_TOO_BIG)
        self._receive_frame(frame)
        await self.rested()
        await self.caught_up()

    def _receive_frame(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            self.receive(engineio.Packet(Engine.MESSAGE, frame))
            return
        packet = engineio.decode_packet(frame)
        if packet.type is Engine.PING or packet.type in (Engine.OPEN, Engine.UPGRADE):
            raise ProtocolError(f"unexpected {packet.type.name} packet (Engine.IO 4)")
        self.receive(packet)

    @property
    def crowded(self) -> Socket | None:
        for socket in self.sockets.values():
            if socket.crowded:
                return socket
        return None

    # Over a lane.

    def _take_over(self, request: Request) -> bool:
        if self.closed:
            return False
        self._lane = self._offered(request, self)
        if self._lane is None:
            return False
        write_frames(self, self._lane)
        return True

    def take_upgrade(self, request: Request) -> bool:
        """Let a WebSocket on a lane try to carry the session on; False where there is none."""
        upgrade = Upgrade(self)
        lane = self._offered(request, upgrade)
        if lane is None:
            upgrade.close(CloseCode.NORMAL, "")
            return False
        upgrade.attach(lane)
        self.upgrade = upgrade
        return True

    def _offered(self, request: Request, peer: Peer) -> Lane | None:
        offer: WebSocketOffer | None = offer_of(request.scope)
        if offer is None:
            return None
        limit = self._door.hub.settings.limits.max_http_buffer_size
        return offer.take(
            request.receive, request.send, peer, limit=limit, subprotocol=request.subprotocol
        )

    def probe(self) -> bool:
        """Take note of a WebSocket's probe; False when it comes too late."""
        # Only one WebSocket may take the session over, and not one that ended meanwhile.
        if self.state is not State.OPEN or self.transport != "polling":
            return False
        self.state = State.UPGRADING
        # The client pauses polling: its pending poll must end, with nothing in it.
        self._release_poll()
        return True

    def carry_on(self, lane: Lane) -> None:
        """Be carried by the WebSocket that has probed."""
        self.upgrading = False
        self.state = State.OPEN
        self._lane = lane
        self._door.carry(self)
        self._release_poll()
        write_frames(self, lane)

    def stay(self) -> None:
        """Stay with polling: the WebSocket that wanted to carry the session on is gone."""
        self.upgrading = False
        if self.state is State.UPGRADING:
            self.state = State.OPEN

    def _release_poll(self) -> None:
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(None)

    def frame_received(self, frame: str | bytes) -> None:
        if self.closed:
            return
        # Hot: "4" and "2", a message with an event.
        if isinstance(frame, str) and frame.startswith("42") and not self._decoder.pending:
            event = socketio.read_event(frame, 2)
            socket = self.sockets.get(event[0]) if event is not None else None
            if event is not None and socket is not None and event[1] not in SOCKETIO_RESERVED:
                meter = self.meter
                if (
                    meter is not None
                    and (wait := meter.take(monotonic(), len(frame)))
                    and not self.borrow(wait, len(frame))
                ):
                    socket.tell(RateLimited(wait), event[1], event[2])
                    self._end_flood()
                    return
                socket.receive(Incoming(event[1], event[3], (), event[2]))
                if socket.crowded:
                    self.hold()
                return
        try:
            self._receive_frame(frame)
        except ProtocolError as error:
            self.end("parse error", error.close_code, str(error)[:100])
            return
        if self.crowded is not None:
            self.hold()

    def too_large(self) -> None:
        self.end("parse error", CloseCode.MESSAGE_TOO_BIG, "Message too large")

    def ping_received(self) -> bool:
        return self._count_control()

    def pong_received(self) -> None:
        # Of no more use than any other: Engine.IO has heartbeats of its own.
        self._count_control()

    def _count_control(self, size: int = 0) -> bool:
        """Count what is no message; return whether the rate allows it."""
        if self.closed:
            return False
        hub = self._door.hub
        allowed = hub.count_control(self, size)
        if not allowed and hub.floods(self):
            self.evict("rate_limited", CloseCode.POLICY_VIOLATION, ERRORS["rate_limited"][0])
        return allowed

    def resume_writing(self) -> None:
        self.drop()
        self.flush()

    def connection_lost(self) -> None:
        self.lost()
        self.end("transport close")
        self.state = State.CLOSED
        self.discard_queue()
        self._door.drop(self)

    async def _upgrade(self, request: Request, reading: asyncio.Timeout) -> bool:
        """Answer the probe and wait for the upgrade packet; False when it does not come."""
        receive, send = request.receive, request.send
        message = await receive()
        if message.get("text") != "2probe" or not self.probe():
            await self._abandon(request, message)
            return False
        self._reading = reading
        await send({"type": "websocket.send", "text": "3probe"})
        message = await receive()
        if message.get("text") != "5" or self.closed:
            await self._abandon(request, message)
            return False
        self.state = State.OPEN
        self._release_poll()
        return True

    async def _abandon(self, request: Request, message: Any) -> None:
        if message["type"] != "websocket.disconnect":
            await request.send(
                {"type": "websocket.close", "code": CloseCode.PROTOCOL_ERROR, "reason": "probe"}
            )

    # Packets.

    def receive(self, packet: engineio.Packet) -> None:
        """Take one Engine.IO packet. Raises ProtocolError."""
        if self.closed:
            return
        kind = packet.type
        if kind is Engine.MESSAGE:
            self._size += len(packet.data)
            message = self._decoder.feed(packet.data)
            if message is not None:
                size, self._size = self._size, 0
                self._receive_message(message, size)
            elif not self.sockets:
                raise ProtocolError("binary before CONNECT (Socket.IO 5)")
            return
        self._count_control(len(packet.data))
        if kind is Engine.PONG:
            self._door.pong(self)
        elif kind is Engine.CLOSE:
            self._last = _NOOP
            self.end("transport close")

    def _receive_message(self, packet: socketio.Packet, size: int) -> None:
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
        socket = self.sockets.get(name)
        if socket is None:
            if kind is PacketType.DISCONNECT:
                if (connecting := self.connecting.pop(name, None)) is not None:
                    connecting.task.cancel()
                return
            raise ProtocolError("packet for a namespace that is not connected (Socket.IO 5)")
        if kind is PacketType.EVENT or kind is PacketType.BINARY_EVENT:
            try:
                event, raws = socketio.split_event(packet)
            except InvalidMessage as error:
                socket.tell(error, error.details["event"], packet.id)
                return
            if event in SOCKETIO_RESERVED:
                raise ProtocolError(f"reserved event name {event!r} (Socket.IO 5)")
            message = Incoming(event, raws, packet.attachments, packet.id)
            if kind is PacketType.BINARY_EVENT:
                # Raises ProtocolError for a placeholder that names no attachment; numbers out
                # of range are for the handler to refuse.
                with contextlib.suppress(msgspec.DecodeError):
                    message.decode()
            socket.receive(message)
        elif kind is PacketType.ACK or kind is PacketType.BINARY_ACK:
            try:
                raws = socketio.split_ack(packet)
            except InvalidMessage as error:
                error.details["event"] = "ack"
                socket.tell(error, "ack")
                return
            assert packet.id is not None
            # Nobody waits for it: a flood of them is not to be worth decoding.
            if kind is PacketType.ACK and not socket.owes(packet.id):
                return
            message = Incoming("", raws, packet.attachments)
            try:
                args = message.decode()
            except msgspec.DecodeError:
                raise ProtocolError("acknowledgement cannot be decoded (Socket.IO 5)") from None
            socket.acknowledge(packet.id, args[0] if len(args) == 1 else args or None)
        elif kind is PacketType.DISCONNECT:
            del self.sockets[name]
            self._door.hub.leave(socket, "client namespace disconnect")
        else:
            raise ProtocolError("CONNECT_ERROR comes from servers only (Socket.IO 5)")

    def _refuse_rate(self, packet: socketio.Packet, wait: float) -> None:
        """Tell a client that it sends too fast, and end the session if it goes on so."""
        error = RateLimited(wait)
        kind = packet.type
        socket = self.sockets.get(packet.namespace)
        if kind is PacketType.CONNECT and socket is None:
            self._refuse(packet.namespace, error)
        elif socket is not None and kind in (PacketType.EVENT, PacketType.BINARY_EVENT):
            try:
                event, _ = socketio.split_event(packet)
            except InvalidMessage as invalid:
                event = invalid.details["event"]
            socket.tell(error, event, packet.id)
        self._end_flood()

    def _end_flood(self) -> None:
        if self._door.hub.floods(self):
            self.evict("rate_limited", CloseCode.POLICY_VIOLATION, ERRORS["rate_limited"][0])

    def _connect(self, packet: socketio.Packet) -> None:
        name = packet.namespace
        try:
            auth = socketio.connect_auth(packet)
        except EventError as error:
            self._refuse(name, error)
            return
        if name in self.sockets:
            self._connect_again(name)
            return
        connecting = self.connecting.get(name)
        if connecting is not None:
            if len(connecting.again) >= WAITING_CONNECTS:
                raise ProtocolError(f"{WAITING_CONNECTS} CONNECTs of one namespace at once")
            connecting.again.append(auth)
            return
        limit = self._door.hub.settings.limits.namespaces
        if len(self.sockets) + len(self.connecting) >= limit:
            self._refuse(name, EventError(code="too_many_namespaces"))
            return
        connecting = self.connecting[name] = Connecting([auth])
        connecting.task = self._door.hub.run_to_end(self._admit_each(name, connecting))

    def _connect_again(self, name: str) -> None:
        """Answer a client that has joined already as it was answered then."""
        socket = self.sockets[name]
        wire = socket.codec.welcome(
            name, sid=socket.id, session=socket.session, recovered=False, offset=None
        )
        if wire is not None:
            self.push(wire)

    async def _admit_each(self, name: str, connecting: Connecting) -> None:
        """Answer the CONNECTs of one namespace, one after another."""
        try:
            while connecting.again and not self.closed:
                auth = connecting.again.pop(0)
                if name in self.sockets:
                    self._connect_again(name)
                else:
                    await self._admit(name, auth)
        finally:
            if self.connecting.get(name) is connecting:
                del self.connecting[name]

    async def _admit(self, name: str, auth: dict[str, Any]) -> None:
        hub = self._door.hub
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
            if hub.stopping and not self.sockets:
                # Official clients come back by themselves after a close, not after a refusal.
                self.close(CloseCode.GOING_AWAY, "Server shutting down")
            else:
                self._refuse(name, error)
            return
        except Exception:
            logger.exception("a client of namespace %r could not be let in", name)
            self._refuse(name, EventError(code="internal_error"))
            return
        if self.closed:
            hub.withdraw(admission)
            return
        self.sockets[name] = admission.socket
        self._door.connected(self)
        hub.open(admission)

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
        self.push(Wire("4" + packet))


def _resume(auth: dict[str, Any]) -> Resume:
    # Official clients recover by `pid` and `offset`; those that do not recover by themselves
    # may show a key of their own choice as `session`.
    pid, session, offset = auth.get("pid"), auth.get("session"), auth.get("offset")
    cursor = offset if isinstance(offset, str) and offset else None
    if isinstance(pid, str):
        return Resume(pid, cursor, returning=True)
    return Resume(session if isinstance(session, str) else None, cursor, unreceived=True)


class Connecting:
    """A namespace that a connection is joining."""

    __slots__ = ("again", "task")

    # Set at once.
    task: asyncio.Task[None]

    def __init__(self, again: list[dict[str, Any]]) -> None:
        # What the CONNECTs show that are not answered yet.
        self.again = again


class EngineDoor:
    """Engine.IO sessions by id, their handshakes and their heartbeat."""

    def __init__(self, hub: BaseHub) -> None:
        self.hub = hub
        self.connections: dict[str, EngineConnection] = {}
        # Those with a WebSocket that is not closed yet, or whose client is yet to hear of
        # its end.
        self._roll = Roll[EngineConnection]()
        self.emptied = self._roll.emptied
        # Everything was told to end; what still comes is ended at once.
        self.emptying = False
        loop = asyncio.get_running_loop()
        settings = hub.settings
        # One timer each, whatever the number of connections.
        self._pings = Deadlines[EngineConnection](loop, settings.ping_interval, self._ping)
        self._pongs = Deadlines[EngineConnection](loop, settings.ping_timeout, self._give_up)
        self._connects = Deadlines[EngineConnection](
            loop, settings.limits.handshake_time, self._end_idle
        )
        # Ended sessions whose client has yet to poll once more to hear of it.
        self._lingering: dict[str, EngineConnection] = {}
        self._lingers = Deadlines[EngineConnection](loop, LINGER_TIME, self.forget)

    # Requests.

    async def serve_http(self, request: Request) -> None:
        """Serve one request of a polling session, or start one."""
        try:
            cors = request.cors(self.hub.settings.cors_origins)
        except EventError:
            await self.bad_request(request, "forbidden", [], status=403)
            return
        if request.method == "OPTIONS":
            await request.preflight(cors, "GET, POST, OPTIONS")
            return
        problem = self._problem(request, "polling")
        if problem is not None:
            await self.bad_request(request, problem, cors)
            return
        sid = request.first("sid")
        if sid is None:
            if request.method != "GET":
                await self.bad_request(request, "method", cors)
            elif self.hub.stopping:
                await request.refuse(EventError(code="shutting_down"), cors)
            else:
                try:
                    connection = self._open(request, "polling")
                except TooManyConnections as error:
                    await request.refuse(error, cors)
                    return
                await request.respond(
                    200,
                    self._open_packet(connection, ["websocket"]).encode(),
                    content_type="text/plain; charset=UTF-8",
                    headers=[*cors, (b"cache-control", b"no-store")],
                )
            return
        connection = self.connections.get(sid) or self._lingering[sid]
        if request.method == "GET":
            await connection.poll(request, cors)
        else:
            await connection.post(request, cors)

    async def serve_websocket(self, request: Request) -> None:
        """Serve a WebSocket: a session of its own, or the upgrade of a polling one."""
        try:
            request.cors(self.hub.settings.cors_origins)
        except EventError as error:
            await request.deny(error)
            return
        if self.hub.stopping:
            await request.deny(EventError(code="shutting_down"))
            return
        problem = self._problem(request, "websocket")
        if problem is not None:
            body = BAD_REQUESTS[problem]
            await request.deny(
                EventError(body["message"], code="invalid_request", engine=body["code"])
            )
            return
        sid = request.first("sid")
        if sid is None:
            try:
                connection = self._open(request, "websocket")
            except TooManyConnections as error:
                await request.turn_away(error, close_code_of(error), tell=False)
                return
            # Before anything else may be queued.
            connection.push(Wire(self._open_packet(connection, [])))
            if self.emptying:
                connection.close(CloseCode.GOING_AWAY, "Server shutting down")
            await connection.serve(request, upgrade=False)
            return
        connection = self.connections[sid]
        free = connection.transport == "polling" and connection.state is State.OPEN
        if not free or connection.upgrading:
            # As Node (Engine.IO 4, "upgrade"): the session goes on without this one.
            await request.accept()
            await request.send(
                {
                    "type": "websocket.close",
                    "code": CloseCode.PROTOCOL_ERROR,
                    "reason": "upgraded already",
                }
            )
            return
        connection.text_only |= bool(request.first("b64"))
        connection.upgrading = True
        if connection.take_upgrade(request):
            return
        try:
            await request.accept()
            await connection.serve(request, upgrade=True)
        finally:
            connection.upgrading = False

    def _problem(self, request: Request, transport: str) -> str | None:
        try:
            named = request.first("transport")
            version = request.first("EIO")
            sid = request.first("sid")
        except EventError:
            return "request"
        if named not in ("polling", "websocket"):
            return "transport"
        if named != transport:
            return "request"
        if version != "4":
            return "version"
        if transport == "polling" and request.method not in ("GET", "POST"):
            return "method"
        if sid is not None and sid not in self.connections:
            if request.method == "GET" and sid in self._lingering and transport == "polling":
                return None
            return "sid"
        return None

    async def bad_request(
        self,
        request: Request,
        problem: str,
        cors: HeaderList,
        *,
        status: int = 400,
        reason: str = "",
    ) -> None:
        body = BAD_REQUESTS[problem]
        await request.respond_json(status, body | {"reason": reason} if reason else body, cors)

    # Sessions.

    def _open(self, request: Request, transport: str) -> EngineConnection:
        connection = EngineConnection(self, request.handshake(transport))
        self.hub.seat(connection, request.address)
        connection.text_only = bool(request.first("b64"))
        self.connections[connection.sid] = connection
        self._connects.add(connection)
        self._pings.add(connection)
        return connection

    def _open_packet(self, connection: EngineConnection, upgrades: list[str]) -> str:
        settings = self.hub.settings
        return engineio.encode_open(
            connection.sid,
            upgrades,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            max_payload=settings.limits.max_http_buffer_size,
        )

    def carry(self, connection: EngineConnection) -> None:
        """Note that a WebSocket carries the session."""
        self._roll.add(connection)

    def drop(self, connection: EngineConnection) -> None:
        """Note that the session's WebSocket ended."""
        self._roll.discard(connection)

    def connected(self, connection: EngineConnection) -> None:
        """Note that a client joined a namespace."""
        self._connects.discard(connection)

    def _end_idle(self, connection: EngineConnection) -> None:
        # Whoever is being examined has a time limit there.
        if connection.connecting:
            self._connects.add(connection)
        else:
            connection.end("forced close")

    def pong(self, connection: EngineConnection) -> None:
        """Note that a client answered its ping; one that it did not get counts for nothing."""
        if self._pongs.discard(connection):
            self._pings.add(connection)

    def _give_up(self, connection: EngineConnection) -> None:
        # Its pong may wait behind events that we are slow to handle, or slow to take.
        if connection.posting or connection.held_within(self.hub.settings.ping_timeout):
            self._pings.add(connection)
        else:
            connection.end("ping timeout", now=True)

    def _ping(self, connection: EngineConnection) -> None:
        connection.push(_PING)
        self._pongs.add(connection)

    def forget(self, connection: EngineConnection) -> None:
        """Drop a session: its id is unknown from here on."""
        self.connections.pop(connection.sid, None)
        connection.leave_seat()
        if self._lingering.pop(connection.sid, None) is not None:
            self._lingers.discard(connection)
            self._roll.discard(connection)
        self._pings.discard(connection)
        self._pongs.discard(connection)
        self._connects.discard(connection)

    def linger(self, connection: EngineConnection) -> None:
        """Keep an ended session for one more poll."""
        self._roll.add(connection)
        self._lingering[connection.sid] = connection
        self._lingers.add(connection)

    def close(self, code: CloseCode, reason: str) -> None:
        """End all sessions."""
        self.emptying = True
        for deadlines in (self._pings, self._pongs, self._connects, self._lingers):
            deadlines.close()
        # A living client polls again within a round trip: do not stop for 5 s for a dead one.
        self._lingers = Deadlines[EngineConnection](
            asyncio.get_running_loop(), LINGER_TIME_AT_STOP, self.forget
        )
        for connection in self._lingering.values():
            self._lingers.add(connection)
        for connection in list(self.connections.values()):
            connection.end("server shutting down", code, reason, linger=True)
