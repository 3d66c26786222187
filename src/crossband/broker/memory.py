"""The embedded broker: one process, everything in memory, every operation atomic."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

from crossband.broker import Broker, Deliver, Publication, Session
from crossband.broker.log import Log
from crossband.names import is_socket_id

# Namespaces made by pattern are named by clients: past this many that something was published
# in, the log that was idle longest is forgotten, and its cursors become unknown.
MAX_LOGS = 10_000
# Epochs that are kept to be told again: each connect asks for one.
EPOCHS = 1_000
# Seconds between two looks for what is too old: half the history's age, within these.
SHORTEST_SWEEP, LONGEST_SWEEP = 0.1, 60.0
# Seconds that a session may be out of the store until nobody can bring it back: longer than any
# client is let in for.
LONGEST_TAKE = 3_600.0


class MemoryBroker(Broker):
    """Order, record and deliver within one process.

    `history_size` counts publications per namespace, `history_bytes` the bytes of their data;
    `history_age` is in seconds and also how long a disconnected session is kept. What is sent to
    single clients is kept beside, within the same bounds: the size for each client, the bytes
    for all of a namespace together.
    """

    def __init__(
        self,
        *,
        history_size: int = 100_000,
        history_bytes: int = 67_108_864,
        history_age: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._size = history_size
        self._limit = history_bytes
        self._age = history_age
        self._clock = clock
        # None until started.
        self._deliver: Deliver | None = None
        # Of namespaces that something was recorded in; most recently used last.
        self._logs: OrderedDict[str, Log] = OrderedDict()
        # How many of them were forgotten, and what the epochs are made of besides.
        self._forgotten = 0
        self._epoch = lru_cache(EPOCHS)(partial(_epoch, secrets.token_bytes(16)))
        # Connected sessions never expire; the others are in order of their expiry.
        self._connected: dict[tuple[str, str], Session] = {}
        self._waiting: OrderedDict[tuple[str, str], tuple[float, Session]] = OrderedDict()
        # (namespace, socket id) of all sessions, those that were taken included, and of which
        # other ids each is in the room.
        self._ids: dict[tuple[str, str], frozenset[str]] = {}
        # How many sessions are in the room of an id that is not their own.
        self._visitors: Counter[tuple[str, str]] = Counter()
        # Of sessions that are not in the store: taken ones, which may be saved again, and
        # dropped ones. In order of taking; each with the time at which its id is forgotten.
        self._absent: OrderedDict[tuple[str, str], float] = OrderedDict()
        # None until started.
        self._loop: asyncio.AbstractEventLoop | None = None
        # Drops what is too old where nothing else happens. None while there is nothing.
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        self._deliver = None
        self._loop = None
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def publish(self, publication: Publication, *, record: bool = True) -> str | None:
        if record:
            publication = self._record(publication)
            if self._sweeping is None:
                self._sweep_later()
        if self._deliver is not None:
            self._deliver(publication)
        return publication.cursor

    def _record(self, publication: Publication) -> Publication:
        log = self._log(publication.namespace)
        if publication.private:
            name, visitors = publication.namespace, self._visitors
            if not visitors or not any((name, room) in visitors for room in publication.rooms):
                # Without a session nobody can come back for it.
                sids = [room for room in publication.rooms if (name, room) in self._ids]
                return log.append_private(publication, sids, self._clock())
        return log.append(publication, self._clock())

    def head(self, namespace: str) -> str:
        log = self._logs.get(namespace)
        if log is None:
            return f"{self._epoch(self._forgotten, namespace)}-0"
        self._logs.move_to_end(namespace)
        return log.head

    async def history(
        self, namespace: str, after: str, sid: str | None = None
    ) -> list[Publication]:
        log = self._logs.get(namespace) or self._new_log(namespace)
        return log.after(after, sid, self._clock())

    def save_session(self, session: Session, *, connected: bool) -> None:
        key = (session.namespace, session.key)
        before = self._pop(key)
        if before is not None and before.sid != session.sid:
            self._miss(before, 0.0)
        self._know(session)
        if connected:
            self._connected[key] = session
        else:
            self._waiting[key] = (self._clock() + self._age, session)
            self._expire()
            if self._sweeping is None:
                self._sweep_later()

    async def find_session(self, namespace: str, key: str) -> Session | None:
        self._expire()
        session = self._connected.get((namespace, key))
        if session is not None:
            return session
        waiting = self._waiting.get((namespace, key))
        return None if waiting is None else waiting[1]

    async def take_session(self, namespace: str, key: str) -> Session | None:
        self._expire()
        session = self._pop((namespace, key))
        if session is not None:
            self._miss(session, LONGEST_TAKE)
        return session

    def drop_session(self, namespace: str, key: str) -> None:
        self._drop((namespace, key))

    def drop_sessions(self, user: str) -> None:
        for key in [key for key, session in self._connected.items() if session.user == user]:
            self._drop(key)
        for key in [key for key, (_, session) in self._waiting.items() if session.user == user]:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        session = self._pop(key)
        if session is not None:
            # Not at once: a client that comes back twice drops and saves in one go.
            self._miss(session, 0.0)

    def _pop(self, key: tuple[str, str]) -> Session | None:
        session = self._connected.pop(key, None)
        if session is None and (waiting := self._waiting.pop(key, None)) is not None:
            session = waiting[1]
        return session

    # Socket ids: whose events are private, and for how long somebody may come back for them.

    def _know(self, session: Session) -> None:
        place = (session.namespace, session.sid)
        if self._absent:
            self._absent.pop(place, None)
        visits = frozenset([room for room in session.rooms if is_socket_id(room)])
        before = self._ids.get(place)
        if before != visits:
            self._ids[place] = visits
            before = before or frozenset()
            if before or visits:
                self._count_visits(session.namespace, visits - before, 1)
                self._count_visits(session.namespace, before - visits, -1)

    def _miss(self, session: Session, patience: float) -> None:
        place = (session.namespace, session.sid)
        self._absent.pop(place, None)
        self._absent[place] = self._clock() + patience
        if self._sweeping is None:
            self._sweep_later()

    def _forget(self, namespace: str, sid: str) -> None:
        self._count_visits(namespace, self._ids.pop((namespace, sid), ()), -1)
        log = self._logs.get(namespace)
        if log is not None:
            log.private.forget(sid)

    def _count_visits(self, namespace: str, sids: Iterable[str], change: int) -> None:
        for sid in sids:
            self._visitors[namespace, sid] += change
            if not self._visitors[namespace, sid]:
                del self._visitors[namespace, sid]

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
        """Return the log of a namespace that nothing was recorded in: not kept until then.

        So clients who only name namespaces take no place from one with a history. Its epoch is
        the same each time, until some log was forgotten, which this one may be.
        """
        epoch = self._epoch(self._forgotten, namespace)
        return Log(size=self._size, limit=self._limit, age=self._age, epoch=epoch)

    def _sweep_later(self) -> None:
        if self._loop is not None:
            delay = min(max(self._age / 2, SHORTEST_SWEEP), LONGEST_SWEEP)
            self._sweeping = self._loop.call_later(delay, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        self._expire()
        now = self._clock()
        for place in [place for place, until in self._absent.items() if until <= now]:
            del self._absent[place]
            self._forget(*place)
        for log in self._logs.values():
            log.evict(now)
        if self._waiting or self._absent or not all(log.empty for log in self._logs.values()):
            self._sweep_later()

    def _expire(self) -> None:
        now = self._clock()
        while self._waiting:
            key, (expiry, session) = next(iter(self._waiting.items()))
            if expiry > now:
                return
            del self._waiting[key]
            self._forget(session.namespace, session.sid)


def _epoch(secret: bytes, forgotten: int, namespace: str) -> str:
    """Return 40 bits that nobody guesses: an old cursor meets them again once in 10^12."""
    name = f"{forgotten} {namespace}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(name, key=secret, digest_size=5).hexdigest()
