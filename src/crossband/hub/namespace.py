"""What applications hold: a namespace, a choice of recipients in it, one client in it.

They share a file because each returns the others: `namespace.sockets`, `socket.namespace`,
`socket.to(…)`, `emitter.fetch_sockets()`. The modules below do the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from crossband.auth import Action, Identity
from crossband.broker import Bus, Members, Presence, Publication, Session
from crossband.codecs import PLAIN, Codec, Wire
from crossband.connection import Connection
from crossband.errors import AckTimeout, CrossbandError, Disconnected, EventError
from crossband.handlers.events import Handler
from crossband.handlers.registry import Handlers, Registry
from crossband.handshake import Handshake
from crossband.hub.access import Access
from crossband.hub.acks import Acks
from crossband.hub.answers import cancelling
from crossband.hub.catchup import CatchUp
from crossband.hub.data import Saving
from crossband.hub.emission import ACK_TIMEOUT, Deadline, Emission, check_seconds
from crossband.hub.fanout import Fanout
from crossband.hub.inbox import Inbox
from crossband.hub.messages import Choice, Disconnect, Join, Leave, encode_fitting
from crossband.hub.node import Node
from crossband.hub.others import ANSWER_TIME, carry_out
from crossband.hub.presence import Presences
from crossband.hub.remote import RemoteSocket, fetch
from crossband.hub.replays import Replays
from crossband.hub.rooms import Rooms
from crossband.hub.serverside import server_ask, server_emit
from crossband.hub.states import State
from crossband.names import check_event, check_name
from crossband.protocol import payload


class Emitter:
    """A choice of recipients within one namespace; each step returns a new one."""

    __slots__ = ("_except", "_namespace", "_rooms", "_timeout", "_volatile")

    def __init__(
        self,
        namespace: Namespace,
        rooms: tuple[str, ...] = (),
        except_: tuple[str, ...] = (),
        volatile: bool = False,
        timeout: float = ACK_TIMEOUT,
    ) -> None:
        self._namespace = namespace
        self._rooms = rooms
        self._except = except_
        self._volatile = volatile
        self._timeout = timeout

    def to(self, *rooms: str) -> Emitter:
        """Choose the sockets in any of these rooms (a socket's id is a room).

        Raises ValueError without rooms: an empty list must not mean everybody.
        """
        if not rooms:
            raise ValueError("to() needs at least one room; emit() alone reaches everybody")
        names = [check_name(room, "a room name") for room in rooms]
        chosen = tuple(dict.fromkeys((*self._rooms, *names)))
        return Emitter(self._namespace, chosen, self._except, self._volatile, self._timeout)

    in_ = to

    def except_(self, *rooms: str) -> Emitter:
        """Leave out the sockets in any of these rooms (a socket's id is a room)."""
        names = [check_name(room, "a room name") for room in rooms]
        left_out = tuple(dict.fromkeys((*self._except, *names)))
        return Emitter(self._namespace, self._rooms, left_out, self._volatile, self._timeout)

    @property
    def volatile(self) -> Emitter:
        """Do not record the event, and drop it for clients that are behind."""
        return Emitter(self._namespace, self._rooms, self._except, True, self._timeout)

    def timeout(self, seconds: float) -> Emitter:
        """Wait this long for acknowledgements. Raises TypeError or ValueError."""
        check_seconds(seconds)
        return Emitter(self._namespace, self._rooms, self._except, self._volatile, seconds)

    def emit(self, event: str, *args: Any) -> Emission:
        """Publish an event to the chosen sockets, on every transport.

        It is encoded, ordered and recorded at once. Awaiting the result returns its cursor
        (None if volatile), and, if the event has only one recipient, waits for room in its
        outbox. Safe from any thread. Raises EncodeError, and RuntimeError on a hub that never
        started.
        """
        return self._namespace.fanout.publish(
            event, args, self._rooms, self._except, self._volatile
        )

    async def emit_with_ack(self, event: str, *args: Any) -> list[Any]:
        """Send an event to the chosen sockets and gather their acknowledgements.

        The event is not recorded. Raises AckTimeout, with the answers so far in `responses`,
        unless all answer within the timeout.
        """
        return await self._namespace.fanout.gather(
            event, args, self._rooms, self._except, timeout=self._timeout
        )

    @property
    def _bus(self) -> Bus:
        return self._namespace.node.bus

    @property
    def _here(self) -> list[Socket]:
        return self._namespace.clients.match(self._rooms, self._except)

    @property
    def _choice(self) -> Choice:
        return Choice(self._namespace.name, self._rooms, self._except)

    async def fetch_sockets(self) -> list[Socket | RemoteSocket]:
        """Return the chosen sockets: this node's, and other nodes' as RemoteSocket.

        A node that does not answer in time is left out and logged. So are clients that are on
        their way from one node to another, here and in what follows.
        """
        here: list[Socket | RemoteSocket] = [*self._here]
        if self._bus.members:
            here += await fetch(self._namespace.fanout, self._choice)
        return here

    async def sockets_join(self, *rooms: str) -> None:
        """Make the chosen sockets join rooms, on all nodes.

        Raises as `Socket.join`, once all that can have joined. A node that does not answer
        within 5 s is logged.
        """
        names = tuple(check_name(room, "a room name") for room in rooms)
        message = Join(self._choice, names)
        await self._everywhere(message, lambda socket: socket.join(*names))

    async def sockets_leave(self, *rooms: str) -> None:
        """Make the chosen sockets leave rooms, on all nodes."""
        message = Leave(self._choice, rooms)
        await self._everywhere(message, lambda socket: socket.leave(*rooms))

    async def disconnect_sockets(self, close: bool = False) -> None:
        """Disconnect the chosen sockets, on all nodes; with `close`, their connections."""
        message = Disconnect(self._choice, close)
        await self._everywhere(message, lambda socket: socket.disconnect(close))

    async def _everywhere(
        self,
        message: Join | Leave | Disconnect,
        act: Callable[[Socket], Coroutine[Any, Any, None]],
    ) -> None:
        """Act on the chosen sockets of this node, and let the other nodes do the same.

        If it fails for some, the others are acted on all the same; raises the first failure.
        """
        bus, failure = self._bus, None
        if bus.members:
            # Before anything is done here.
            encode_fitting(message)
        for socket in self._here:
            try:
                await act(socket)
            except EventError as error:
                failure = failure or error
        if bus.members:
            await carry_out(bus, message)
        if failure is not None:
            raise failure


class Departing(Protocol):
    """Ends clients: `Departures`, which is above this module."""

    def part(self, socket: Socket, *, close: bool) -> None:
        """Disconnect a socket from the server's side, for good."""

    def replace(self, socket: Socket) -> None:
        """Close a client whose session has resumed elsewhere."""


class Namespace(Handlers):
    """A separate channel on the same connections: own handlers, sockets, rooms, order."""

    def __init__(
        self,
        node: Node,
        access: Access,
        departures: Departing,
        reserved: Mapping[str, Handler],
        name: str,
        *,
        plain: bool = False,
        registry: Registry | None = None,
    ) -> None:
        self.registry: Final = registry if registry is not None else Registry()
        super().__init__(self.registry)
        self.node = node
        self.access = access
        self.departures = departures
        # The hub's own handlers, by reserved event.
        self.reserved = reserved
        # Shared by all namespaces of a hub, because those of patterns come and go.
        self.traffic: Final = node.traffic
        self.name = name
        # What a handler emits is published when it ends: its answer need not wait.
        self.publishes_at_once: Final = node.publishes_at_once
        # The raw WebSocket door uses bare frames here, without envelopes.
        self.plain = plain
        # Number of clients that are being admitted.
        self.entering = 0
        # The clients connected to this node.
        self.clients: Rooms[Socket] = Rooms()
        self.fanout: Final = Fanout(node, name, self.registry.policies, self.clients)
        self.replays: Final = Replays(node, self.fanout)
        self.presences: Final = Presences(node, name, self.registry.presence, self.clients.by_id)

    @property
    def hub(self) -> Any:
        """The hub it belongs to."""
        return self.node.hub

    def __repr__(self) -> str:
        return f"<Namespace {self.name!r}: {len(self.clients.by_id)} sockets>"

    @property
    def sockets(self) -> Mapping[str, Socket]:
        """The connected sockets of this node, by id."""
        return MappingProxyType(self.clients.by_id)

    @property
    def rooms(self) -> Mapping[str, Collection[str]]:
        """The rooms of this node and the ids in each; a snapshot."""
        return self.clients.snapshot()

    def to(self, *rooms: str) -> Emitter:
        """Choose the sockets in any of these rooms (a socket's id is a room)."""
        return Emitter(self).to(*rooms)

    in_ = to

    def except_(self, *rooms: str) -> Emitter:
        """Choose everybody but the sockets in these rooms."""
        return Emitter(self).except_(*rooms)

    @property
    def volatile(self) -> Emitter:
        """Do not record the event, and drop it for clients that are behind."""
        return Emitter(self, volatile=True)

    def timeout(self, seconds: float) -> Emitter:
        """Wait this long for acknowledgements. As `Emitter.timeout`."""
        return Emitter(self).timeout(seconds)

    def emit(self, event: str, *args: Any) -> Emission:
        """Publish an event to everybody here. As `Emitter.emit`."""
        return self.fanout.publish(event, args, (), (), False)

    async def emit_with_ack(self, event: str, *args: Any) -> list[Any]:
        """Send everybody here an event, gather the answers. As `Emitter.emit_with_ack`."""
        return await self.fanout.gather(event, args, (), (), timeout=ACK_TIMEOUT)

    def server_emit(self, event: str, *args: Any) -> None:
        """Send an event to the handlers that other servers have here (`on_server`).

        It goes to every other node that is alive, once or not at all, and is not recorded; this
        node does not get it. Those of one node arrive in order. Safe from any thread. Raises
        EncodeError, also for more than 8 MB, and RuntimeError on a hub that never started.
        """
        server_emit(self.node, self.name, event, args)

    async def server_emit_with_ack(
        self, event: str, *args: Any, timeout: float = ANSWER_TIME
    ) -> list[Any]:
        """Send an event to the other servers and return what their handlers return.

        Raises AckTimeout, with the answers so far in `responses`, unless every other node that
        is alive answers within `timeout` seconds. A node without a handler, or whose handler
        fails, counts as missing at once. Without other nodes the list is empty.
        """
        check_seconds(timeout)
        return await server_ask(self.node, self.name, event, args, timeout)

    async def fetch_sockets(self) -> list[Socket | RemoteSocket]:
        """Return all sockets, of all nodes. As `Emitter.fetch_sockets`."""
        return await Emitter(self).fetch_sockets()

    async def sockets_join(self, *rooms: str) -> None:
        """Make all sockets join rooms."""
        await Emitter(self).sockets_join(*rooms)

    async def sockets_leave(self, *rooms: str) -> None:
        """Make all sockets leave rooms."""
        await Emitter(self).sockets_leave(*rooms)

    async def disconnect_sockets(self, close: bool = False) -> None:
        """Disconnect all sockets; with `close`, their whole connections."""
        await Emitter(self).disconnect_sockets(close)

    async def members(self, room: str) -> Members:
        """Return who is in a room that `presence` declares, on all nodes, at one cursor.

        `members` are in the order in which they joined, `count` says how many they are, and
        `cursor` where in the order of events this is true: a client that follows the room from
        there with `presence:join`, `presence:update` and `presence:leave` misses nothing.
        Raises ValueError for any other room, and BrokerUnavailable.
        """
        return await self.presences.members(room)


class Socket:
    """A client in a namespace, on whatever transport.

    `id` is public (20 characters); `session` is the client's secret for resuming. `data` belongs
    to the application and, like the rooms, survives a recovery. It holds plain data, which other
    nodes can take over; setting anything else in it raises TypeError or ValueError.
    """

    __slots__ = (
        "__weakref__",
        "_acks",
        "_early",
        "_ending",
        "attempt",
        "catching",
        "codec",
        "connected",
        "connection",
        "greeting",
        "handshake",
        "identity",
        "inbox",
        "namespace",
        "presence",
        "record",
        "recovered",
        "refused",
        "saving",
        "stage",
    )

    def __init__(
        self,
        namespace: Namespace,
        connection: Connection,
        codec: Codec,
        handshake: Handshake,
        record: Session,
        *,
        recovered: bool,
        identity: Identity | None = None,
        attempt: int = 0,
    ) -> None:
        self.namespace: Final = namespace
        self.connection: Final = connection
        self.codec: Final = codec
        self.handshake: Final = handshake
        # What the broker keeps of this client; the rooms and data here are the live ones.
        self.record: Session = record
        # The client resumed: same id, rooms and data, nothing lost.
        self.recovered: bool = recovered
        # Who it is, by its latest token. None for anonymous clients, and without `authenticate`.
        self.identity: Identity | None = identity
        # Numbers the attempts of one client to connect: a later one is higher.
        self.attempt: int = attempt
        # LIVE from the welcome until it leaves; `state` is more precise.
        self.stage: State = State.CONNECTING
        self.connected: bool = False
        # The application disconnected it before it was admitted.
        self.refused: bool = False
        # Resolved when its connect handlers have ended. None if none runs or waits to run.
        self.greeting: asyncio.Future[None] | None = None
        # None unless recorded events must still be sent before live ones.
        self.catching: CatchUp | None = None
        # None where the store shares `record` with this socket, and after it has left.
        self.saving: Saving | None = None
        # None until the first emit_with_ack.
        self._acks: Acks | None = None
        # Events it sent that are not handled yet.
        self.inbox: Final = Inbox()
        # Tasks that end with the client. None until the first of them.
        self._ending: set[asyncio.Task[Any]] | None = None
        # In which rooms it shows, as the broker was last told. None for no room.
        self.presence: Presence | None = None
        # Events emitted to it before its welcome. None after that, and while there are none.
        self._early: list[tuple[str, tuple[Any, ...]]] | None = None

    def __repr__(self) -> str:
        return f"<Socket {self.id} in {self.namespace.name!r} over {self.transport}>"

    def __str__(self) -> str:
        who = "" if self.identity is None else f" of user {self.identity.user!r}"
        address = self.handshake.address or "a unix socket"
        return f"{self.id}{who} in {self.namespace.name!r} over {self.transport} from {address}"

    @property
    def state(self) -> State:
        """Where this client is between its first byte and its last."""
        if self.stage is not State.LIVE:
            return self.stage
        if self.catching is not None and self.catching.begun:
            return State.CATCHING_UP
        return State.LIVE if self.greeting is None else State.WELCOMED

    @property
    def id(self) -> str:
        return self.record.sid

    @property
    def session(self) -> str:
        return self.record.key

    @property
    def data(self) -> dict[str, Any]:
        return self.record.data

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms this socket is in, including that of its own id."""
        return frozenset((self.record.sid, *self.record.rooms))

    @property
    def transport(self) -> str:
        """The current transport: "websocket", "polling" or "sse"."""
        return self.connection.transport

    @property
    def waiting(self) -> int:
        """The number of events it sent that wait to be handled or run besides others."""
        return self.inbox.waiting

    async def join(self, *rooms: str) -> None:
        """Join rooms. Raises EventError past the limit, EncodeError for an unusable name."""
        own = self.record.rooms
        for room in rooms:
            room = check_name(room, "a room name")
            if room == self.id or room in own:
                continue
            limit = self.namespace.node.settings.limits.rooms
            # The room of its own id counts too.
            if len(own) + 1 >= limit:
                raise EventError(f"A client may be in {limit} rooms", code="too_many_rooms")
            own.add(room)
            if self.connected:
                self.namespace.clients.enter(self, room)
        self._rooms_changed()

    def _rooms_changed(self) -> None:
        if self.connected:
            self.namespace.node.sessions.save(self.record)
            if self.namespace.presences.active:
                self.namespace.presences.show(self)

    async def update_presence(self) -> None:
        """Show this client as it is now, for instance after `socket.data` has changed.

        Calls the `member` function of `presence` for each of its rooms; where that returns other
        info, the others in the room get `presence:update`. Raises EncodeError for info that is
        too large or no JSON, TypeError for anything but a Member, and what the function raises.
        """
        if self.connected:
            self.namespace.presences.show(self)

    async def subscribe(self, *rooms: str) -> None:
        """Join rooms that the client asked for: as `join`, if `authorize` allows it.

        The hub asks again when the client sends a new token or comes back, and makes it leave
        rooms that are no longer allowed. It never asks about rooms joined by `join`. Raises
        EventError (`forbidden`) before any of them is joined.
        """
        await self.authorize("subscribe", *rooms)
        await self.join(*rooms)
        if self.namespace.access.authorize is not None:
            self.record.asked = self.record.asked.union(rooms)

    async def authorize(self, action: Action, *rooms: str | None) -> None:
        """Ask `Hub(authorize=…)` about an action, "subscribe" or "publish", on rooms.

        None means the whole namespace. Raises EventError (`forbidden`) for the first room that
        is not allowed.
        """
        for room in rooms:
            await self.namespace.access.demand(self.identity, action, room)

    async def leave(self, *rooms: str) -> None:
        """Leave rooms; nothing happens for those it is not in."""
        if self.record.asked:
            self.record.asked = self.record.asked.difference(rooms)
        for room in rooms:
            if room in self.record.rooms:
                self.record.rooms.discard(room)
                self.namespace.clients.exit(self, room)
        self._rooms_changed()

    def emit(self, event: str, *args: Any) -> Emission:
        """Send an event to this client. As `Emitter.emit`; recorded, so it can be resumed.

        Awaiting it waits for room in the client's outbox. An event emitted before the welcome
        (in a connect middleware) is sent after it, and its cursor is None.
        """
        if self.stage in (State.CONNECTING, State.ADMITTED):
            check_event(event)
            # Encode now, so that an error is raised here.
            payload.encode(args)
            if self._early is None:
                self._early = []
            self._early.append((event, args))
            return Emission(None)
        return self.namespace.fanout.publish(event, args, (self.id,), (), False)

    @property
    def roomy(self) -> bool:
        """Whether a writer to this client alone need not wait."""
        return self.connection.roomy and (self.catching is None or not self.catching.begun)

    async def room(self) -> None:
        """Wait for room in the outbox, or until the client has left.

        There is no room while the client still has to catch up.
        """
        catching = self.catching
        if catching is not None and catching.begun:
            await catching.ended()
        if self.connected:
            await self.connection.room()

    async def emit_with_ack(self, event: str, *args: Any, timeout: float = ACK_TIMEOUT) -> Any:
        """Send an event to this client and return its acknowledgement.

        Returns one value as it is, several as a list. The event is not recorded. Raises
        AckTimeout after `timeout` seconds, and Disconnected if the client leaves first.
        """
        if not self.connected:
            raise Disconnected("the client has left")
        event = check_event(event)
        ack_id = self.namespace.node.next_ack_id()
        publication = Publication(self.namespace.name, event, payload.encode(args))
        wire = self.codec.event(publication, ack_id=ack_id)
        answer = self.expect_ack(ack_id)
        self.ask(wire)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise AckTimeout(f"no acknowledgement of {event!r} within {timeout:g} s") from None
        finally:
            self.forget_ack(ack_id)

    def timeout(self, seconds: float) -> Deadline:
        """Wait this long for the acknowledgement: `socket.timeout(5).emit_with_ack(…)`."""
        check_seconds(seconds)
        return Deadline(self, seconds)

    @property
    def volatile(self) -> Emitter:
        """Send to this client without recording, and not at all if it is behind."""
        return Emitter(self.namespace, (self.id,), volatile=True)

    @property
    def broadcast(self) -> Emitter:
        """Choose everybody in the namespace but this client."""
        return Emitter(self.namespace, except_=(self.id,))

    def to(self, *rooms: str) -> Emitter:
        """Choose the sockets in any of these rooms, except this one."""
        return self.broadcast.to(*rooms)

    in_ = to

    def except_(self, *rooms: str) -> Emitter:
        """Choose everybody except this client and those in these rooms."""
        return self.broadcast.except_(*rooms)

    async def disconnect(self, close: bool = False) -> None:
        """Disconnect this client for good; with `close`, its whole connection.

        Official clients and Crossband's do not reconnect by themselves after this. A client that
        is not welcomed yet is refused; one whose connection was cut starts afresh if it comes
        back.
        """
        self.namespace.departures.part(self, close=close)

    # What follows is for the transports.

    def expect_ack(self, ack_id: int) -> asyncio.Future[Any]:
        """Return the future of an answer. Raises CrossbandError where there can be none."""
        if self.codec is PLAIN:
            raise CrossbandError("a plain namespace has no acknowledgements")
        if self._acks is None:
            self._acks = Acks(limit=self.namespace.node.settings.limits.pending_acks)
        answer = self._acks.expect(ack_id)
        self.inbox.look_again(self)
        return answer

    def forget_ack(self, ack_id: int) -> None:
        if self._acks is not None:
            self._acks.forget(ack_id)

    def owes(self, ack_id: int) -> bool:
        """Return whether this acknowledgement is expected, and so worth decoding."""
        return self._acks is not None and ack_id in self._acks

    def acknowledge(self, ack_id: int, answer: Any) -> bool:
        """Settle an acknowledgement the client sent; False if it was not expected."""
        return self._acks is not None and self._acks.resolve(ack_id, answer)

    def send(self, wire: Wire) -> None:
        """Send an unpublished message, after all that was sent before."""
        if self.catching is None:
            self.connection.push(wire)
        else:
            self.catching.buffer.keep(wire)

    def ask(self, wire: Wire) -> None:
        """Send a message that asks for an acknowledgement; a calling handler steps aside.

        The client may not answer before its own events are answered, so they go on.
        """
        self.inbox.step_aside(self)
        if self.catching is None or self.catching.begun:
            self.send(wire)
        else:
            # The replay waits for the connect handlers, which may wait for this answer.
            self.connection.push(wire)

    @property
    def owed(self) -> int:
        """The number of acknowledgements this client owes the server."""
        return self._acks.owed if self._acks is not None else 0

    def welcomed(self) -> None:
        """Send what was emitted before the welcome, now that the welcome is sent."""
        early, self._early = self._early, None
        for event, args in early or ():
            self.emit(event, *args)

    def greeted(self) -> None:
        """Note that its connect handlers have ended."""
        if self.greeting is not None:
            self.greeting.set_result(None)
            self.greeting = None

    def left(self) -> None:
        """Settle what the client leaves behind."""
        if self._acks is not None:
            self._acks.fail()
        me = asyncio.current_task()
        for task in self._ending or ():
            # A handler that disconnects its own client runs to its end.
            if task is not me:
                task.cancel()

    async def bind(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a handler; cancel it and raise Disconnected if the client leaves."""
        task = asyncio.get_running_loop().create_task(coroutine)
        if not self.connected:
            # The client sent the event and left.
            task.cancel()
        if self._ending is None:
            self._ending = set()
        self._ending.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if cancelling() or self.connected:
                raise
            raise Disconnected("the client has left") from None
        finally:
            self._ending.discard(task)
