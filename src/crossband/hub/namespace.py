"""A namespace: its sockets, its rooms, and the fan-out of what is published in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from crossband.broker import Publication
from crossband.codecs import PLAIN, Codec, Wire, tag_of
from crossband.errors import (
    AckTimeout,
    CrossbandError,
)
from crossband.handlers.events import Handler
from crossband.handlers.registry import Handlers, Registry
from crossband.hub.access import Access
from crossband.hub.catchup import TURN, CatchUp, ReplayBuffer, concerns
from crossband.hub.emitter import ACK_TIMEOUT, Emission, Emitter
from crossband.hub.node import Node
from crossband.hub.places import Places
from crossband.hub.socket import Socket
from crossband.names import check_event
from crossband.protocol import payload

if TYPE_CHECKING:
    from crossband.connection import Connection
    from crossband.hub.departures import Departures

logger = logging.getLogger("crossband")

# Events that may come while a client that comes back is let in, however short the history.
FEWEST_HELD = 16


class Namespace(Handlers):
    """A channel of its own over the same connections: handlers, sockets, rooms, one order."""

    def __init__(
        self,
        node: Node,
        access: Access,
        departures: Departures,
        reserved: Mapping[str, Handler],
        name: str,
        *,
        plain: bool = False,
        registry: Registry | None = None,
    ) -> None:
        self.registry = registry if registry is not None else Registry()
        super().__init__(self.registry)
        self.node = node
        self.access = access
        self.departures = departures
        # The hub's own handlers, by reserved event.
        self.reserved = reserved
        # All namespaces of a hub count together: those of patterns come and go.
        self.traffic = node.traffic
        self.name = name
        # The raw WebSocket door speaks bare frames here, no envelopes.
        self.plain = plain
        # By socket id; the room of a socket's own id is this, not an entry of _rooms.
        self._sockets: dict[str, Socket] = {}
        # Dicts for their order: fan-out is in order of joining.
        self._rooms: dict[str, dict[Socket, None]] = {}
        # By session key, connected sockets only.
        self._by_session: dict[str, Socket] = {}
        # Everything recorded is also given to these while somebody catches up.
        self._buffers: list[ReplayBuffer] = []
        self.places = Places()

    @property
    def hub(self) -> Any:
        """The hub it belongs to."""
        return self.node.hub

    def __repr__(self) -> str:
        return f"<Namespace {self.name!r}: {len(self._sockets)} sockets>"

    @property
    def sockets(self) -> Mapping[str, Socket]:
        """The connected sockets of this node, by id."""
        return MappingProxyType(self._sockets)

    @property
    def rooms(self) -> Mapping[str, Collection[str]]:
        """The rooms of this node and the ids in each; a snapshot."""
        rooms: dict[str, Collection[str]] = {sid: frozenset((sid,)) for sid in self._sockets}
        for room, members in self._rooms.items():
            ids = {socket.id for socket in members}
            rooms[room] = frozenset(ids.union(rooms.get(room, ())))
        return rooms

    @property
    def room_count(self) -> int:
        """The number of rooms that were joined by name."""
        return len(self._rooms)

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
        return self.publish(event, args, (), (), False)

    async def emit_with_ack(self, event: str, *args: Any) -> list[Any]:
        """Send an event to everybody here and gather the answers. As `Emitter.emit_with_ack`."""
        return await self.gather(event, args, (), (), timeout=ACK_TIMEOUT)

    async def fetch_sockets(self) -> list[Socket]:
        """Return all sockets."""
        return self.match((), ())

    async def sockets_join(self, *rooms: str) -> None:
        """Make all sockets join rooms."""
        await Emitter(self).sockets_join(*rooms)

    async def sockets_leave(self, *rooms: str) -> None:
        """Make all sockets leave rooms."""
        await Emitter(self).sockets_leave(*rooms)

    async def disconnect_sockets(self, close: bool = False) -> None:
        """Disconnect all sockets; with `close`, their whole connections."""
        await Emitter(self).disconnect_sockets(close)

    # Fan-out.

    def publish(
        self,
        event: str,
        args: Sequence[Any],
        rooms: tuple[str, ...],
        except_: tuple[str, ...],
        volatile: bool,
    ) -> Emission:
        event = check_event(event)
        data = payload.encode(args)
        policy = self.registry.policies.get(event)
        if policy is None or policy.dropping is None or volatile:
            record = not volatile
            publication = Publication(self.name, event, data, rooms, except_)
        else:
            record = False
            publication = Publication(
                self.name, event, data, rooms, except_, None, policy.dropping, policy.key(args)
            )
        self.traffic.published += 1
        outcome = self.node.post(publication, record=record)
        # Of all, the slowest does not decide how fast is written: that would stop the others.
        only = self._sockets.get(rooms[0]) if len(rooms) == 1 else None
        return Emission(outcome, self.node.pace if only is None else only)

    def deliver(self, publication: Publication) -> None:
        """Give a publication to its recipients. Hot: the loop is once per recipient.

        What `Connection.push` does stands in the loop: a call for each recipient was a
        quarter of its cost.
        """
        recorded = publication.cursor is not None
        # Volatile, else.
        lasting = recorded or publication.policy is not None
        if lasting:
            for buffer in self._buffers:
                buffer.take(publication)
        recipients = self.match(publication.rooms, publication.except_)
        if not recipients:
            return
        self.traffic.delivered += len(recipients)
        if not recorded and self.places.has_one(publication):
            self.places.note(publication, self.node.broker.head(self.name))
        ticker = self.node.ticker
        wires: dict[Codec, Wire | None] = {}
        current: Codec | None = None
        wire: Wire | None = None
        size = 0
        for socket in recipients:
            connection = socket.connection
            # What a client that catches up gets is in its replay buffer, in its place.
            if socket.catching is not None or connection.closed:
                continue
            if not lasting and connection.behind:
                continue
            codec = socket.codec
            if codec is not current:
                if codec not in wires:
                    wires[codec] = self._encode(codec, publication)
                current, wire = codec, wires[codec]
                size = 0 if wire is None else wire.size
            # None: this codec cannot carry it.
            if wire is None:
                continue
            connection.queue.append(wire)
            connection.queued += size
            if connection.queued > connection.limit:
                connection.overfull()
            if not connection.dirty:
                connection.dirty = True
                ticker.schedule().append(connection)

    def _encode(self, codec: Codec, publication: Publication) -> Wire | None:
        try:
            wire = codec.event(publication)
            wire.tag = tag_of(publication)
            return wire
        except Exception as error:
            # What one door cannot carry the others still get.
            logger.error(
                "%r of namespace %r has no form for %s: %s",
                publication.event,
                self.name,
                type(codec).__name__,
                error,
                exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
            )
        if publication.cursor is None:
            return None
        # Its clients go on from behind it, and are to know that there was something.
        self.traffic.gap("unencodable")
        return codec.gap(self.name, reason="unencodable", offset=publication.cursor)

    def match(self, rooms: Iterable[str], except_: Iterable[str]) -> list[Socket]:
        """Return the sockets in any of the rooms (none: all) and in none of `except_`."""
        if rooms:
            chosen: dict[Socket, None] = {}
            for room in rooms:
                members = self._rooms.get(room)
                if members is not None:
                    chosen = chosen | members if chosen else members
                own = self._sockets.get(room)
                if own is not None:
                    chosen = {**chosen, own: None}
            found = list(chosen)
        else:
            found = list(self._sockets.values())
        if except_:
            left_out = set(self.match(except_, ()))
            return [socket for socket in found if socket not in left_out]
        return found

    async def gather(
        self,
        event: str,
        args: Sequence[Any],
        rooms: tuple[str, ...],
        except_: tuple[str, ...],
        *,
        timeout: float,
    ) -> list[Any]:
        event = check_event(event)
        publication = Publication(self.name, event, payload.encode(args), rooms, except_)
        # One id for all, so that the packet is encoded once.
        ack_id = self.node.next_ack_id()
        wires: dict[Codec, Wire] = {}
        answers: list[asyncio.Future[Any]] = []
        asked: list[tuple[Socket, Wire]] = []
        for socket in self.match(rooms, except_):
            codec = socket.codec
            if codec is PLAIN:
                continue
            wire = wires.get(codec)
            if wire is None:
                wire = wires[codec] = codec.event(publication, ack_id=ack_id)
            try:
                answers.append(socket.expect_ack(ack_id))
            except CrossbandError:
                lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                lost.cancel()
                answers.append(lost)
                continue
            asked.append((socket, wire))
        for socket, wire in asked:
            socket.ask(wire)
        if not answers:
            return []
        try:
            await asyncio.wait(answers, timeout=timeout)
        finally:
            for socket, _ in asked:
                socket.forget_ack(ack_id)
        responses = [
            answer.result()
            for answer in answers
            if answer.done() and not answer.cancelled() and answer.exception() is None
        ]
        if len(responses) < len(answers):
            raise AckTimeout(
                f"{len(responses)} of {len(answers)} clients acknowledged {event!r} "
                f"within {timeout:g} s",
                responses,
            )
        return responses

    # Membership; called by the hub and by sockets.

    def live(self, key: str) -> Socket | None:
        """Return the connected socket of a session."""
        return self._by_session.get(key)

    def add(self, socket: Socket) -> None:
        self._sockets[socket.id] = socket
        self._by_session[socket.session] = socket
        for room in socket.record.rooms:
            self.enter(socket, room)

    def remove(self, socket: Socket) -> None:
        if self._sockets.get(socket.id) is socket:
            del self._sockets[socket.id]
        if self._by_session.get(socket.session) is socket:
            del self._by_session[socket.session]
        for room in socket.record.rooms:
            self.exit(socket, room)
        if socket.catching is not None:
            self.end_catching(socket, socket.catching)

    def enter(self, socket: Socket, room: str) -> None:
        self._rooms.setdefault(room, {})[socket] = None

    def exit(self, socket: Socket, room: str) -> None:
        members = self._rooms.get(room)
        if members is not None:
            members.pop(socket, None)
            if not members:
                del self._rooms[room]

    # Catching up.

    @property
    def catching_up(self) -> int:
        """The number of clients that are being caught up."""
        return len(self._buffers)

    def open_buffer(self, connection: Connection, rooms: Iterable[str] = ()) -> ReplayBuffer:
        """Collect all that is recorded here from now on, until released.

        What is for single clients only if its room is one of these.
        """
        settings = self.node.settings
        buffer = ReplayBuffer(
            connection,
            count=max(2 * settings.history_size, FEWEST_HELD),
            size=max(2 * settings.history_bytes, settings.limits.outbox),
        )
        buffer.ids = frozenset(rooms)
        self._buffers.append(buffer)
        return buffer

    def release(self, catch_up: CatchUp) -> None:
        self.close_buffer(catch_up.buffer)
        catch_up.end()

    def end_catching(self, socket: Socket, catch_up: CatchUp) -> None:
        """Note that a client has nothing more to catch up with."""
        socket.catching = None
        self.release(catch_up)

    def close_buffer(self, buffer: ReplayBuffer) -> None:
        # By identity: two empty deques are equal.
        self._buffers = [other for other in self._buffers if other is not buffer]

    def advance(self, socket: Socket) -> None:
        """Send a returning client the next of what it missed; at the end it is live.

        Half an outbox at a time, so that even a long history fits, and so many publications
        that the loop is not held up; without a pause where there are fewer.
        """
        catch_up = socket.catching
        if catch_up is None or catch_up.pausing or not socket.connected:
            return
        connection = socket.connection
        if connection.closed:
            return
        catch_up.begun = True
        rooms = socket.rooms
        for _ in range(TURN):
            if not connection.roomy:
                catch_up.pausing = True
                self.node.run_to_end(self._advance_later(socket, catch_up))
                return
            item = catch_up.next()
            if item is None:
                self.end_catching(socket, catch_up)
                return
            if isinstance(item, Wire):
                connection.push(item)
            elif concerns(item, rooms):
                wire = self._encode(socket.codec, item)
                if wire is not None:
                    connection.push(wire)
        catch_up.pausing = True
        self.node.turns.add(lambda: self._go_on(socket, catch_up))

    async def _advance_later(self, socket: Socket, catch_up: CatchUp) -> None:
        await socket.connection.drained()
        self._go_on(socket, catch_up)

    def _go_on(self, socket: Socket, catch_up: CatchUp) -> None:
        catch_up.pausing = False
        if socket.catching is catch_up:
            self.advance(socket)


class NamespacePattern(Handlers):
    """Handlers for every namespace whose name matches; each exists while it has sockets."""

    def __init__(
        self, namespaces: Mapping[str, Namespace], matches: Callable[[str], bool], *, plain: bool
    ) -> None:
        self.registry = Registry()
        super().__init__(self.registry)
        self._namespaces = namespaces
        self.matches = matches
        self.plain = plain

    def emit(self, event: str, *args: Any) -> None:
        """Publish an event in each of these namespaces that has sockets now."""
        for namespace in list(self._namespaces.values()):
            if namespace.registry is self.registry:
                namespace.emit(event, *args)
