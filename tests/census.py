"""What a hub holds at a moment: after every client has gone it must be what it was before."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable

from crossband import Hub, Socket
from crossband.broker.memory import MemoryBroker
from crossband.connection import Connection
from crossband.hub.acks import Acks
from crossband.hub.attempt import Admission
from crossband.hub.catchup import CatchUp, ReplayBuffer
from crossband.hub.incoming import Incoming
from crossband.transports.asgi import ASGILane
from crossband.transports.http import Request
from tests.clients.base import WAIT

# Objects there must be none left of.
_MORTAL = (
    Socket,
    Connection,
    Admission,
    CatchUp,
    ReplayBuffer,
    Incoming,
    Acks,
    Request,
    ASGILane,
)


def census(hub: Hub) -> Counter[str]:
    """Count everything that comes and goes with clients; absent means none."""
    counts: Counter[str] = Counter()
    for name, namespace in hub.namespaces.items():
        counts[f"namespace {name}"] = 1
        counts["sockets"] += len(namespace.sockets)
        counts["sessions of sockets"] += len(namespace.clients.by_session)
        counts["rooms"] += namespace.clients.room_count
        counts["catching up"] += namespace.replays.count
    counts["tasks of the hub"] = len(hub._core.node._tasks)
    counts["slots"] = hub._core.quotas.slots.taken
    counts["addresses with slots"] = hub._core.quotas.slots.addresses
    routes = hub._routes
    if routes._doors:
        engine, websockets, streams = routes._engine, routes._websockets, routes._streams
        sessions = engine.registry
        counts["engine sessions"] = len(sessions._connections)
        counts["lingering sessions"] = len(sessions._lingering)
        counts["streams by id"] = len(streams._by_id)
        for door in (sessions._open, websockets._connections, streams._connections):
            counts["connections"] += len(list(door))
        for deadlines in (sessions._pings, sessions._pongs, sessions._connects, sessions._lingers):
            counts["deadlines"] += len(deadlines._due)
        counts["deadlines"] += len(streams._keepalive._due)
    broker = hub.broker
    assert isinstance(broker, MemoryBroker)
    counts["connected sessions"] = len(broker._memory.sessions._connected)
    presence = broker._memory.presence
    counts["clients that show"] = len(presence._clients)
    counts["rooms with members"] = len(presence._rooms)
    # Those in reserve are bounded, and stay.
    spare = hub._core.node.spare_runners.tasks if hub.started else set()
    for task in asyncio.all_tasks() - spare:
        coroutine = task.get_coro()
        counts[f"task {getattr(coroutine, '__qualname__', coroutine)}"] += 1
    return +counts


def survivors() -> Counter[str]:
    """Count the objects of clients that are still alive."""
    gc.collect()
    return Counter(
        type(item).__name__ for item in gc.get_objects() if issubclass(type(item), _MORTAL)
    )


async def returns_to(start: Counter[str], take: Callable[[], Counter[str]]) -> None:
    """Wait until a count is what it was; say what differs when it does not become so."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT
    while (now := take()) != start:
        if loop.time() > until:
            break
        # Ends of connections are noticed in their own time, and by no one event.
        await asyncio.sleep(0.01)
    assert now == start, f"left behind: {now - start}; missing: {start - now}"
