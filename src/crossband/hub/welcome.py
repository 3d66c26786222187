"""How admitted clients become live: the welcome and the connect handlers; or are undone."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Sequence
from typing import Final

from crossband.errors import ConnectionRefused
from crossband.hub.attempt import Admission
from crossband.hub.catchup import CatchUp
from crossband.hub.data import Saving
from crossband.hub.departures import DEPARTURE_TIME, Departures
from crossband.hub.directory import Directory
from crossband.hub.dispatch import connected
from crossband.hub.expiry import Expiry
from crossband.hub.namespace import Socket
from crossband.hub.node import Node
from crossband.hub.resumption import Resumptions
from crossband.hub.states import State

logger: Final = logging.getLogger("crossband")

# Seconds that a client with a cursor but without a session waits for its connect handlers to
# join its rooms. Meanwhile its events are held; after that, it is told of a gap.
CONNECT_HANDLER_TIME: Final = 5.0


class Welcomes:
    """Ends admissions: the client is in its namespace, or was never there."""

    def __init__(
        self,
        node: Node,
        directory: Directory,
        expiry: Expiry,
        resumptions: Resumptions,
        departures: Departures,
    ) -> None:
        self._node = node
        self._directory = directory
        self._expiry = expiry
        self._resumptions = resumptions
        self._departures = departures

    def welcome(self, admission: Admission) -> None:
        """Let the client receive everything it should, in order, from here on."""
        socket = admission.socket
        namespace = socket.namespace
        session = admission.session
        self._resumptions.opened(admission)
        # Departures that the connect handlers wait for.
        earlier: list[asyncio.Task[None]] = []
        # The same client is back before its old connection was found dead.
        for key in {socket.session, *([session.key] if session is not None else [])}:
            live = namespace.clients.live(key)
            if live is not None and live.record.user != socket.record.user:
                # Another user took the key while it was not in the broker.
                socket.record.key = secrets.token_urlsafe(24)
                socket.record.take = 0
                continue
            if live is not None:
                self._resumptions.follow(admission, live.record)
                self._departures.replace(live)
            departure = self._departures.of(namespace.name, key)
            if departure is not None:
                earlier.append(departure)
        if admission.taking is not None and namespace.registry.connect:
            departure = self._resumptions.departure(admission.taking, session)
            if departure is not None:
                earlier.append(departure)
        catch_up = admission.catch_up
        # A pattern's namespace may have been dropped meanwhile, even just now.
        self._directory.enlist(namespace)
        socket.connected = True
        socket.stage = State.LIVE
        namespace.clients.add(socket)
        self._directory.settled(namespace)
        if socket.identity is not None:
            self._expiry.entered(socket)
        self._node.traffic.joined(socket, admission.gap)
        self._node.sessions.save(socket.record)
        if not self._node.publishes_at_once:
            save = functools.partial(self._node.sessions.save, socket.record)
            socket.saving = Saving(socket.record.data, self._node.soon, save)
        head = self._node.broker.head(namespace.name)
        offset: str | None = head
        if catch_up is not None:
            offset = admission.cursor
        elif admission.gap is not None:
            # Its cursor must stay where it was until it is told of the gap.
            offset = None
        codec = socket.codec
        welcome = codec.welcome(
            namespace.name,
            sid=socket.id,
            session=socket.session,
            recovered=catch_up is not None,
            offset=offset,
        )
        if welcome is not None:
            socket.connection.push(welcome)
        if admission.gap is not None:
            notice = codec.gap(namespace.name, reason=admission.gap, offset=head)
            if notice is not None:
                socket.connection.push(notice)
        # Without a session, the connect handlers decide its rooms.
        unknown = catch_up is not None and session is None and bool(namespace.registry.connect)
        if catch_up is not None:
            socket.catching = catch_up
            if not unknown:
                namespace.replays.advance(socket)
        socket.welcomed()
        if namespace.presences.active:
            namespace.presences.enter(socket, returning=socket.recovered)
            if session is not None and session.sid != socket.id:
                namespace.presences.forget(session.sid, session.take)
        if namespace.registry.connect:
            socket.greeting = asyncio.get_running_loop().create_future()
            socket.inbox.begin(socket, self._greet(socket, earlier, catch_up if unknown else None))
        self._expiry.check_admitted(socket, admission.revocations)
        if socket.refused:
            self._departures.part(socket, close=False)
        if self._node.stopping:
            # Admitted before the hub stopped, and answered since: nothing else closes it.
            self._departures.send_away(socket.connection, [socket])

    def undo(self, admission: Admission) -> None:
        """Restore everything as if the client had never connected."""
        socket = admission.socket
        self._node.traffic.cut(socket)
        socket.stage = State.GONE
        if admission.catch_up is not None:
            socket.namespace.replays.release(admission.catch_up)
        self._resumptions.give_back(admission)
        self._directory.settled(socket.namespace)

    async def _greet(
        self,
        socket: Socket,
        earlier: Sequence[asyncio.Task[None]],
        catch_up: CatchUp | None,
    ) -> None:
        """Run the connect handlers; then start `catch_up`, if any."""
        timer = None
        if catch_up is not None:
            timer = asyncio.get_running_loop().call_later(
                CONNECT_HANDLER_TIME, self._connect_is_late, socket, catch_up
            )
        try:
            if earlier:
                _, late = await asyncio.wait(earlier, timeout=DEPARTURE_TIME)
                if late:
                    logger.warning(
                        "a disconnect handler takes more than %g s: %s is greeted before its end",
                        DEPARTURE_TIME,
                        socket,
                    )
            await connected(socket)
        except ConnectionRefused as refusal:
            self._departures.refuse(socket, refusal)
        finally:
            socket.greeted()
            if timer is not None:
                timer.cancel()
                socket.namespace.replays.advance(socket)

    def _connect_is_late(self, socket: Socket, catch_up: CatchUp) -> None:
        # After a stall of the loop, timers come first: let handlers that were ready go ahead.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._give_up_catching_up, socket, catch_up)

    def _give_up_catching_up(self, socket: Socket, catch_up: CatchUp) -> None:
        if socket.catching is not catch_up or catch_up.begun:
            return
        namespace = socket.namespace
        socket.catching = None
        namespace.replays.release(catch_up)
        logger.warning(
            "a connect handler of namespace %r takes more than %g s: a client that came back "
            "is told of a gap",
            namespace.name,
            CONNECT_HANDLER_TIME,
        )
        self._node.traffic.gap("timeout")
        head = self._node.broker.head(namespace.name)
        notice = socket.codec.gap(namespace.name, reason="timeout", offset=head)
        if notice is not None:
            socket.connection.push(notice)
