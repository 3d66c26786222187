"""A door's sessions by id, with their heartbeats and deadlines."""

from __future__ import annotations

import asyncio
from typing import Final

from crossband.codecs import Wire
from crossband.connection import Connection, OpenConnections
from crossband.errors import CloseCode
from crossband.hub.core import Core
from crossband.protocol import engineio
from crossband.timers import Deadlines
from crossband.transports.engineio.session import EngineConnection, Keeper

# Seconds an ended polling session waits for the poll that will tell its client.
LINGER_TIME: Final = 5.0
LINGER_TIME_AT_STOP: Final = 1.0
# Seconds for which one request that reached another node shows that a balancer spreads them. With
# sticky sessions there are none but in the minutes after their rules change.
SPREAD_TIME: Final = 600.0
_PING = Wire(engineio.PING)


class Registry(Keeper):
    """Keeps a door's sessions, and ends those that miss a deadline."""

    def __init__(self, hub: Core) -> None:
        self._hub = hub
        self._connections: dict[str, EngineConnection] = {}
        # Sessions whose WebSocket is not closed yet, and those that linger.
        self._open = OpenConnections[Connection]()
        self.emptied: Final = self._open.emptied
        # Until then requests of one client count as reaching several nodes.
        self._spread_until = 0.0
        # All sessions were told to end; a new one is ended at once.
        self.emptying: bool = False
        loop = asyncio.get_running_loop()
        settings = hub.settings
        # One timer each, whatever the number of connections.
        self._pings = Deadlines[EngineConnection](loop, settings.ping_interval, self._ping)
        self._pongs = Deadlines[EngineConnection](loop, settings.ping_timeout, self._give_up)
        self._connects = Deadlines[EngineConnection](
            loop, settings.limits.handshake_time, self._end_idle
        )
        # Ended sessions whose clients are told at their next poll.
        self._lingering: dict[str, EngineConnection] = {}
        self._lingers = Deadlines[EngineConnection](loop, LINGER_TIME, self.forget)

    def find(self, sid: str, *, lingering: bool = False) -> EngineConnection | None:
        """Return the session with this id, or None; with `lingering` an ended one counts."""
        connection = self._connections.get(sid)
        return self._lingering.get(sid) if connection is None and lingering else connection

    def add(self, connection: EngineConnection) -> None:
        """Keep a new session."""
        self._connections[connection.sid] = connection
        self._connects.add(connection)
        self._pings.add(connection)

    def websocket_opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def websocket_closed(self, connection: Connection) -> None:
        self._open.discard(connection)

    @property
    def spread(self) -> bool:
        return asyncio.get_running_loop().time() < self._spread_until

    def note_spread(self) -> None:
        """Note that a client's request reached a node that has not got its session."""
        self._spread_until = asyncio.get_running_loop().time() + SPREAD_TIME

    def joined(self, connection: EngineConnection) -> None:
        self._connects.discard(connection)

    def _end_idle(self, connection: EngineConnection) -> None:
        # Joining a namespace has a time limit of its own.
        if connection.joining:
            self._connects.add(connection)
        else:
            connection.end("forced close")

    def pong(self, connection: EngineConnection) -> None:
        # A pong without a ping does not count.
        if self._pongs.discard(connection):
            self._pings.add(connection)

    def _give_up(self, connection: EngineConnection) -> None:
        # Its pong may be waiting behind events that are handled slowly or held back.
        polling = connection.polling
        posting = polling is not None and polling.posting
        if posting or connection.held_within(self._hub.settings.ping_timeout):
            self._pings.add(connection)
        else:
            connection.end("ping timeout", now=True)

    def _ping(self, connection: EngineConnection) -> None:
        connection.push(_PING)
        self._pongs.add(connection)

    def forget(self, connection: EngineConnection) -> None:
        self._connections.pop(connection.sid, None)
        connection.free_slot()
        if self._lingering.pop(connection.sid, None) is not None:
            self._lingers.discard(connection)
            self._open.discard(connection)
        self._pings.discard(connection)
        self._pongs.discard(connection)
        self._connects.discard(connection)

    def linger(self, connection: EngineConnection) -> None:
        self._open.add(connection)
        self._lingering[connection.sid] = connection
        self._lingers.add(connection)

    def close(self, code: CloseCode, reason: str) -> None:
        """End all sessions."""
        self.emptying = True
        for deadlines in (self._pings, self._pongs, self._connects, self._lingers):
            deadlines.close()
        # A live client polls again within a round trip; a dead one must not delay the stop.
        self._lingers = Deadlines[EngineConnection](
            asyncio.get_running_loop(), LINGER_TIME_AT_STOP, self.forget
        )
        for connection in self._lingering.values():
            self._lingers.add(connection)
        for connection in list(self._connections.values()):
            connection.end("server shutting down", code, reason, linger=True)
