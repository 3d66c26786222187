"""How clients leave: cut, disconnected, refused, or at a stop; and what runs then."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Final

from crossband.connection import Connection
from crossband.errors import CloseCode, ConnectionRefused, EventError
from crossband.hub.data import Saving
from crossband.hub.dispatch import disconnected
from crossband.hub.expiry import REVOKED, Expiry
from crossband.hub.namespace import Namespace, Socket
from crossband.hub.node import Node
from crossband.hub.states import State

logger: Final = logging.getLogger("crossband")

# Seconds that a returning client's connect handlers wait for the disconnect handlers of its
# earlier connection, and those for their own connect handlers. A handler that hangs must not
# keep the client from being served.
DEPARTURE_TIME: Final = 5.0
# Reasons after which the client is not expected back, and its session is dropped.
FINAL_REASONS: Final = frozenset(
    {"client namespace disconnect", "server namespace disconnect", REVOKED}
)
_FAREWELL: Final = "Server shutting down"


class Departures:
    """Takes clients out of their namespaces, and knows which are still leaving."""

    def __init__(self, node: Node, expiry: Expiry, vacate: Callable[[Namespace], None]) -> None:
        self._node = node
        self._expiry = expiry
        # Called with each namespace that a client left.
        self._vacate = vacate
        # Departures under way, by namespace and session: connect handlers of a client that comes
        # back meanwhile run after them.
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def of(self, namespace: str, key: str) -> asyncio.Task[None] | None:
        """Return the departure of a session's last client; None if it is over."""
        return self._tasks.get((namespace, key))

    def leave(self, socket: Socket, reason: str, *, keep_session: bool = True) -> None:
        """Take a socket out of its namespace, and keep its session if it may come back."""
        if not socket.connected:
            return
        socket.connected = False
        self._node.traffic.left(socket, reason)
        namespace = socket.namespace
        namespace.clients.remove(socket)
        if socket.catching is not None:
            namespace.replays.end(socket, socket.catching)
        if socket.identity is not None:
            self._expiry.left(socket)
        kept = keep_session and reason not in FINAL_REASONS
        if kept:
            self._node.sessions.release(socket.record)
        else:
            self._node.sessions.drop(socket.record)
        if socket.presence is not None:
            if reason in FINAL_REASONS:
                namespace.presences.leave(socket)
            else:
                namespace.presences.cut(socket)
        if socket.saving is not None:
            socket.saving.stop()
            socket.saving = None
            if kept and namespace.registry.disconnect:
                release = functools.partial(self._node.sessions.release, socket.record)
                socket.saving = Saving(socket.record.data, self._node.soon, release)
        socket.left()
        socket.stage = State.GONE
        if namespace.registry.disconnect:
            socket.stage = State.LEAVING
            place = (namespace.name, socket.session)
            departure = self._node.run_to_end(self._depart(socket, reason, self._tasks.get(place)))
            self._tasks[place] = departure
            departure.add_done_callback(functools.partial(self._departed, place))
        self._vacate(namespace)

    async def _depart(
        self, socket: Socket, reason: str, earlier: asyncio.Task[None] | None
    ) -> None:
        """Run the disconnect handlers once the connect handlers have ended."""
        try:
            waits_for = [each for each in (earlier, socket.greeting) if each is not None]
            if waits_for:
                _, late = await asyncio.wait(waits_for, timeout=DEPARTURE_TIME)
                if late:
                    logger.warning(
                        "a connect handler takes more than %g s: the disconnect handlers run "
                        "before its end for %s",
                        DEPARTURE_TIME,
                        socket,
                    )
            await disconnected(socket, reason)
        finally:
            socket.stage = State.GONE
            if socket.saving is not None:
                # What the disconnect handlers have changed is kept, too.
                socket.saving.finish()
                socket.saving = None

    def _departed(self, place: tuple[str, str], departure: asyncio.Task[None]) -> None:
        if self._tasks.get(place) is departure:
            del self._tasks[place]

    def part(self, socket: Socket, *, close: bool) -> None:
        """Disconnect a socket from the server's side, for good."""
        if socket.stage in (State.CONNECTING, State.ADMITTED):
            socket.refused = True
            return
        name = socket.namespace.name
        if not socket.connected:
            if socket.saving is not None:
                socket.saving.stop()
                socket.saving = None
            # It was cut, and must start afresh if it comes back, unless it is already back.
            if socket.namespace.clients.live(socket.session) is None:
                self._node.sessions.drop(socket.record)
                socket.namespace.presences.leave(socket)
            return
        self.leave(socket, "server namespace disconnect")
        socket.connection.end_socket(
            name, CloseCode.DISCONNECTED, "server namespace disconnect", close=close
        )

    def replace(self, socket: Socket) -> None:
        """Close a client whose session has resumed elsewhere, on this or another node."""
        self.leave(socket, "transport close", keep_session=False)
        socket.connection.end_socket(
            socket.namespace.name, CloseCode.SESSION_TAKEN, "resumed elsewhere"
        )

    def refuse(self, socket: Socket, refusal: ConnectionRefused) -> None:
        """End a client that a connect handler refused, with the error it raised."""
        if not socket.connected:
            return
        self._node.traffic.refused(refusal, socket.handshake, socket.namespace.name)
        if refusal.status >= 500:
            # A temporary refusal: it may come back and resume.
            self.dismiss(socket, "forced close", CloseCode.TRY_AGAIN_LATER, refusal)
        else:
            self.dismiss(socket, "server namespace disconnect", CloseCode.DISCONNECTED, refusal)

    def dismiss(self, socket: Socket, reason: str, code: CloseCode, error: EventError) -> None:
        """Tell a client why it must go, and end it."""
        name = socket.namespace.name
        socket.connection.push(socket.codec.problem(name, error.to_dict(), None))
        self.leave(socket, reason)
        socket.connection.end_socket(name, code, error.message)

    def send_away(self, connection: Connection, sockets: Sequence[Socket]) -> None:
        """Tell all clients of a connection that the server is stopping, and close it."""
        for socket in sockets:
            if socket.connected:
                farewell = socket.codec.shutdown(socket.namespace.name, _FAREWELL)
                if farewell is not None:
                    connection.push(farewell)
                self.leave(socket, "server shutting down")
        connection.close(CloseCode.GOING_AWAY, _FAREWELL)
