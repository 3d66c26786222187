"""The embedded broker: one process, everything in memory, every operation atomic."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Self

from crossband.broker import HISTORY_PAGE, Broker, Page, Publication, Receiver
from crossband.broker.bus import Bus
from crossband.broker.log import Log
from crossband.broker.memory_bus import MemoryBus
from crossband.broker.memory_presence import MemoryPresence
from crossband.broker.memory_sessions import MemorySessions
from crossband.broker.presence import PresenceStore
from crossband.broker.sessions import Session, SessionStore
from crossband.names import new_id

# At most this many logs, as clients choose the names of namespaces that match a pattern. The
# least recently used is dropped, and its cursors become unknown.
MAX_LOGS = 10_000
# Cached epochs: each connect asks for one.
EPOCHS = 1_000
# Seconds between two sweeps: half the history's age, within these bounds.
SHORTEST_SWEEP, LONGEST_SWEEP = 0.1, 60.0


class MemoryBroker(Broker):
    """Orders, records and delivers within one process.

    `history_size` counts publications per namespace, `history_bytes` the bytes of their data.
    `history_age` is in seconds, and also how long a disconnected session is kept. Events sent to
    single clients are kept separately, within the same bounds: the size for each client, the
    bytes for all clients of a namespace together.
    """

    publishes_at_once = True

    def __init__(
        self,
        *,
        history_size: int = 100_000,
        history_bytes: int = 67_108_864,
        history_age: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._join(Memory(size=history_size, limit=history_bytes, age=history_age, clock=clock))

    def _join(self, memory: Memory) -> None:
        self._memory = memory
        # None until started.
        self._receiver: Receiver | None = None
        self.sessions: SessionStore = memory.sessions
        self.bus: Bus = MemoryBus(new_id(), memory.hall)
        self.presence: PresenceStore = memory.presence

    def peer(self) -> Self:
        """Return a broker for another hub in this process: to clients, the two are one.

        For tests with several nodes. All of them run on one event loop.
        """
        other = object.__new__(type(self))
        other._join(self._memory)
        return other

    async def start(self, receiver: Receiver) -> None:
        """Start carrying publications. Raises RuntimeError if its peers' loop differs."""
        self._memory.start(self.bus.node, receiver, asyncio.get_running_loop())
        self._receiver = receiver

    async def stop(self) -> None:
        if self._receiver is not None:
            self._receiver = None
            self._memory.stop(self.bus.node)

    def attach(self, namespace: str) -> None:
        return None

    def detach(self, namespace: str) -> None:
        return None

    def publish(self, publication: Publication, *, record: bool = True) -> str | None:
        memory = self._memory
        if record:
            publication = memory.record(publication)
        # Before the first start it is recorded too; after a stop it reaches nobody.
        if self._receiver is not None:
            for receiver in memory.receivers:
                receiver.deliver(publication)
        return publication.cursor

    def head(self, namespace: str) -> str:
        return self._memory.head(namespace)

    async def history(
        self, namespace: str, after: str, sid: str | None = None, *, limit: int = HISTORY_PAGE
    ) -> Page:
        return self._memory.history(namespace, after, sid, limit)


class Memory:
    """What the memory brokers of one process share: logs, sessions, presence and the bus."""

    def __init__(self, *, size: int, limit: int, age: float, clock: Callable[[], float]) -> None:
        self._size = size
        self._limit = limit
        self._age = age
        self._clock = clock
        # Receivers of running nodes, by node id; and without ids, as every publication needs them.
        self._nodes: dict[str, Receiver] = {}
        self.receivers: tuple[Receiver, ...] = ()
        self.hall: dict[str, MemoryBus] = {}
        self.sessions: MemorySessions = MemorySessions(
            age=age,
            clock=clock,
            forget=self._forget_private,
            sweep_later=self._sweep_later,
            taken=self._tell_taken,
        )
        self.presence: MemoryPresence = MemoryPresence(
            clock=clock, publish=self._announce, head=self._end
        )
        # Logs of namespaces in which something was recorded; most recently used last.
        self._logs: OrderedDict[str, Log] = OrderedDict()
        # The number of dropped logs, from which epochs are made, and the function that makes them.
        self._forgotten = 0
        self._epoch = lru_cache(EPOCHS)(partial(_epoch, secrets.token_bytes(16)))
        # None until started.
        self._loop: asyncio.AbstractEventLoop | None = None
        # Drops what is too old even if nothing else happens. None while there is nothing.
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self, node: str, receiver: Receiver, loop: asyncio.AbstractEventLoop) -> None:
        if self._nodes and self._loop is not None and self._loop is not loop:
            if not self._loop.is_closed():
                raise RuntimeError("a MemoryBroker and its peers run on one event loop")
            # The nodes were not stopped, but have gone with their loop.
            self._nodes.clear()
            self._sweeping = None
        self._loop = loop
        self._nodes[node] = receiver
        self.receivers = tuple(self._nodes.values())
        self.sessions.node_started(node)
        self.presence.node_started(node, loop)

    def stop(self, node: str) -> None:
        del self._nodes[node]
        self.receivers = tuple(self._nodes.values())
        self.sessions.node_stopped(node)
        self.presence.node_stopped(node)
        if not self._nodes:
            self._loop = None
            if self._sweeping is not None:
                self._sweeping.cancel()
                self._sweeping = None

    def record(self, publication: Publication) -> Publication:
        if self._sweeping is None:
            self._sweep_later()
        log = self._log(publication.namespace)
        if publication.private:
            name, sessions = publication.namespace, self.sessions
            visitors = sessions.visitors
            if not visitors or not any((name, room) in visitors for room in publication.rooms):
                # Without a session, no client can come back for it.
                sids = [room for room in publication.rooms if sessions.knows(name, room)]
                return log.append_private(publication, sids, self._clock())
        return log.append(publication, self._clock())

    def head(self, namespace: str) -> str:
        log = self._logs.get(namespace)
        if log is None:
            return f"{self._epoch(self._forgotten, namespace)}-0"
        self._logs.move_to_end(namespace)
        return log.head

    def history(self, namespace: str, after: str, sid: str | None, limit: int) -> Page:
        log = self._logs.get(namespace) or self._new_log(namespace)
        return log.after(after, sid, self._clock(), limit)

    def _tell_taken(self, session: Session) -> None:
        receiver = self._nodes.get(session.owner)
        if receiver is not None and self._loop is not None:
            # Not at once: who saves is in the middle of something.
            self._loop.call_soon(receiver.taken, session.namespace, session.key, session.take)

    def _announce(self, publication: Publication) -> Publication:
        """Record and deliver what the presence store publishes."""
        recorded = self.record(publication)
        for receiver in self.receivers:
            receiver.deliver(recorded)
        return recorded

    def _end(self, namespace: str) -> tuple[str, int]:
        """Return the last cursor of a namespace, and its position."""
        cursor = self.head(namespace)
        return cursor, int(cursor.rpartition("-")[2])

    def _forget_private(self, namespace: str, sid: str) -> None:
        log = self._logs.get(namespace)
        if log is not None:
            log.private.forget(sid)

    def _log(self, namespace: str) -> Log:
        log = self._logs.get(namespace)
        if log is None:
            log = self._new_log(namespace)
            self._logs[namespace] = log
            if len(self._logs) > MAX_LOGS:
                self._logs.popitem(last=False)
                self._forgotten += 1
        else:
            self._logs.move_to_end(namespace)
        return log

    def _new_log(self, namespace: str) -> Log:
        """Return a log for a namespace in which nothing was recorded, without keeping it.

        So clients that only name namespaces do not displace logs with a history. Its epoch is the
        same each time until some log is dropped, because that may have been this one.
        """
        epoch = self._epoch(self._forgotten, namespace)
        return Log(size=self._size, limit=self._limit, age=self._age, epoch=epoch)

    def _sweep_later(self) -> None:
        if self._loop is not None and self._sweeping is None:
            delay = min(max(self._age / 2, SHORTEST_SWEEP), LONGEST_SWEEP)
            self._sweeping = self._loop.call_later(delay, self._sweep)

    def _sweep(self) -> None:
        self.sessions.expire()
        self._sweeping = None
        now = self._clock()
        for log in self._logs.values():
            log.evict(now)
        if not self.sessions.idle or not all(log.empty for log in self._logs.values()):
            self._sweep_later()


def _epoch(secret: bytes, forgotten: int, namespace: str) -> str:
    """Return 40 unguessable bits: an old cursor matches them once in 10^12."""
    name = f"{forgotten} {namespace}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(name, key=secret, digest_size=5).hexdigest()
