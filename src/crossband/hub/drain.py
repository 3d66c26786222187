"""How a stopping hub closes its clients: one after another, spread over `drain_time`."""

from __future__ import annotations

import asyncio

from crossband.connection import Connection
from crossband.hub.departures import Departures
from crossband.hub.directory import Directory
from crossband.hub.namespace import Socket
from crossband.hub.node import Node

# Clients a second that a stopping hub closes at least: no server minds so many coming back, and
# a hub with few clients need not take its whole drain time.
DRAIN_PACE = 200
# The drain sleeps when it is this many seconds ahead: shorter sleeps cost more than they spread.
_DRAIN_STEP = 0.005


class Drain:
    """Closes all clients of a node, so that they do not all reconnect in the same second."""

    def __init__(self, node: Node, directory: Directory, departures: Departures) -> None:
        self._node = node
        self._directory = directory
        self._departures = departures

    def seconds(self, clients: int) -> float:
        """Return over how many seconds a stopping hub closes this many clients."""
        settings = self._node.settings
        return min(settings.drain_time, settings.shutdown_timeout / 2, clients / DRAIN_PACE)

    async def run(self, loop: asyncio.AbstractEventLoop, *, last_polls: bool) -> None:
        """Close the clients one after another, polling ones first if no more polls will come."""
        links: dict[Connection, list[Socket]] = {}
        for namespace in list(self._directory.namespaces.values()):
            for socket in namespace.sockets.values():
                links.setdefault(socket.connection, []).append(socket)
        if last_polls:
            for connection in [link for link in links if link.transport == "polling"]:
                self._departures.send_away(connection, links.pop(connection))
        pause = self.seconds(len(links)) / max(len(links), 1)
        due = loop.time()
        for connection, sockets in links.items():
            if not connection.closed:
                if due - loop.time() >= _DRAIN_STEP:
                    await asyncio.sleep(due - loop.time())
                due += pause
            self._departures.send_away(connection, sockets)
