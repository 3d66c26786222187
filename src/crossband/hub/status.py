"""What an operator sees of a hub: counts of this node, and of all nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from crossband.hub.directory import Directory
from crossband.hub.messages import Report
from crossband.hub.node import Node
from crossband.hub.others import ask
from crossband.version import __version__

# What adds up over nodes. A room that has members on two nodes is one room, so rooms do not.
_ADDED: Final = ("clients", "messages", "disconnects", "evictions", "refusals", "gaps")


class Status:
    """Counts what this node has, and asks the others for their counts."""

    def __init__(self, node: Node, directory: Directory) -> None:
        self._node = node
        self._directory = directory
        # The question to the other nodes, shared by all who want to know meanwhile. None if there
        # is none.
        self._asking: asyncio.Task[dict[str, Any]] | None = None

    def here(self) -> dict[str, Any]:
        """Return what `GET /api/status` answers. Looks at every client."""
        transports: Counter[str] = Counter(websocket=0, polling=0, sse=0)
        namespaces: dict[str, dict[str, int]] = {}
        seen: set[int] = set()
        for name, namespace in self._directory.namespaces.items():
            namespaces[name] = {
                "clients": len(namespace.sockets),
                "rooms": namespace.clients.room_count,
            }
            for socket in namespace.sockets.values():
                # A Socket.IO connection in several namespaces is one client.
                if id(socket.connection) not in seen:
                    seen.add(id(socket.connection))
                    transports[socket.transport] += 1
        traffic = self._node.traffic
        return {
            "node": self._node.id,
            "clients": {"total": len(seen), **transports},
            "messages": {
                "received": traffic.received,
                "published": traffic.published,
                "delivered": traffic.delivered,
            },
            "namespaces": namespaces,
            "rooms": sum(counts["rooms"] for counts in namespaces.values()),
            "disconnects": dict(traffic.disconnects),
            "evictions": dict(traffic.evictions),
            "refusals": dict(traffic.refusals),
            "gaps": dict(traffic.gaps),
            "uptime": round(self._node.uptime, 3),
            "version": __version__,
        }

    async def everywhere(self) -> dict[str, Any]:
        """Return what `GET /api/status?nodes=all` answers."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, asking: asyncio.Task[dict[str, Any]]) -> None:
        self._asking = None
        # Retrieved, in case that everybody has stopped waiting.
        if not asking.cancelled():
            asking.exception()

    async def _ask(self) -> dict[str, Any]:
        given, missing = await ask(self._node.bus, Report(), dict[str, Any])
        here = self.here()
        reports = {here["node"]: here, **dict(given)}
        return {"total": _total(reports.values()), "nodes": reports, "missing": sorted(missing)}


def _total(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Counter[str]] = {name: Counter() for name in _ADDED}
    namespaces: Counter[str] = Counter()
    for report in reports:
        for name, counts in total.items():
            counts.update(report[name])
        namespaces.update(
            {name: counts["clients"] for name, counts in report["namespaces"].items()}
        )
    return {
        **{name: dict(counts) for name, counts in total.items()},
        "namespaces": {name: {"clients": clients} for name, clients in namespaces.items()},
    }
