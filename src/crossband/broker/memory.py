"""The embedded broker: one process, everything in memory, every operation atomic."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice

from crossband.broker import Broker, Deliver, Publication, Session
from crossband.errors import Gap

# Namespaces made by pattern are named by clients: past this many that something was published
# in, the log that was idle longest is forgotten, and its cursors become unknown.
MAX_LOGS = 10_000
# Seconds between two looks for what is too old: half the history's age, within these.
SHORTEST_SWEEP, LONGEST_SWEEP = 0.1, 60.0


class Log:
    """The history of one namespace: contiguous, bounded by count, bytes and age."""

    __slots__ = ("_age", "_bytes", "_entries", "_epoch", "_last", "_limit", "_size")

    def __init__(self, *, size: int, limit: int, age: float, epoch: str) -> None:
        self._size = size
        # Of the bytes, and how many there are.
        self._limit = limit
        self._bytes = 0
        self._age = age
        self._epoch = epoch
        # (time recorded, publication), oldest first; numbered up to _last without holes.
        self._entries: deque[tuple[float, Publication]] = deque()
        self._last = 0

    @property
    def empty(self) -> bool:
        return not self._entries

    @property
    def head(self) -> str:
        return f"{self._epoch}-{self._last}"

    def append(self, publication: Publication, now: float) -> Publication:
        """Record a publication under the next cursor."""
        self._last += 1
        recorded = publication.at(f"{self._epoch}-{self._last}")
        self._entries.append((now, recorded))
        self._bytes += recorded.size
        self.evict(now)
        return recorded

    def evict(self, now: float) -> None:
        """Drop what is over the size or the limit, or older than the age."""
        entries = self._entries
        oldest = now - self._age
        while entries and (
            len(entries) > self._size or self._bytes > self._limit or entries[0][0] < oldest
        ):
            self._bytes -= entries.popleft()[1].size

    def after(self, cursor: str, now: float) -> list[Publication]:
        """Return the publications after a cursor. Raises Gap."""
        epoch, _, number = cursor.rpartition("-")
        # 19 digits hold any count; int() of more is slow, and refused past 4,300.
        if epoch != self._epoch or not number.isascii() or not number.isdigit() or len(number) > 19:
            raise Gap("unknown")
        position = int(number)
        # One cursor, one spelling: "01" was never handed out.
        if position > self._last or str(position) != number:
            raise Gap("unknown")
        self.evict(now)
        missed = self._last - position
        if missed > len(self._entries):
            raise Gap("expired")
        start = len(self._entries) - missed
        return [publication for _, publication in islice(self._entries, start, None)]


class MemoryBroker(Broker):
    """Order, record and deliver within one process.

    `history_size` counts publications per namespace, `history_bytes` the bytes of their data;
    `history_age` is in seconds and also how long a disconnected session is kept.
    """

    def __init__(
        self,
        *,
        history_size: int = 1_000,
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
        self._secret = secrets.token_bytes(16)
        # Connected sessions never expire; the others are in order of their expiry.
        self._connected: dict[tuple[str, str], Session] = {}
        self._waiting: OrderedDict[tuple[str, str], tuple[float, Session]] = OrderedDict()
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
            publication = self._log(publication.namespace).append(publication, self._clock())
            if self._sweeping is None:
                self._sweep_later()
        if self._deliver is not None:
            self._deliver(publication)
        return publication.cursor

    def head(self, namespace: str) -> str:
        log = self._logs.get(namespace)
        if log is None:
            return self._new_log(namespace).head
        self._logs.move_to_end(namespace)
        return log.head

    async def history(
        self, namespace: str, after: str, sid: str | None = None
    ) -> list[Publication]:
        log = self._logs.get(namespace) or self._new_log(namespace)
        return log.after(after, self._clock())

    def save_session(self, session: Session, *, connected: bool) -> None:
        key = (session.namespace, session.key)
        if connected:
            self._waiting.pop(key, None)
            self._connected[key] = session
        else:
            self._connected.pop(key, None)
            self._waiting.pop(key, None)
            self._waiting[key] = (self._clock() + self._age, session)
            self._expire()
            if self._sweeping is None:
                self._sweep_later()

    async def take_session(self, namespace: str, key: str) -> Session | None:
        self._expire()
        session = self._connected.pop((namespace, key), None)
        if session is not None:
            return session
        waiting = self._waiting.pop((namespace, key), None)
        return None if waiting is None else waiting[1]

    def drop_session(self, namespace: str, key: str) -> None:
        self._connected.pop((namespace, key), None)
        self._waiting.pop((namespace, key), None)

    def drop_sessions(self, user: str) -> None:
        for key in [key for key, session in self._connected.items() if session.user == user]:
            del self._connected[key]
        for key in [key for key, (_, session) in self._waiting.items() if session.user == user]:
            del self._waiting[key]

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
        name = f"{self._forgotten} {namespace}".encode("utf-8", "surrogatepass")
        # 40 bits that nobody guesses: an old cursor meets the same epoch once in 10^12.
        epoch = hashlib.blake2b(name, key=self._secret, digest_size=5).hexdigest()
        return Log(size=self._size, limit=self._limit, age=self._age, epoch=epoch)

    def _sweep_later(self) -> None:
        if self._loop is not None:
            delay = min(max(self._age / 2, SHORTEST_SWEEP), LONGEST_SWEEP)
            self._sweeping = self._loop.call_later(delay, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        self._expire()
        now = self._clock()
        for log in self._logs.values():
            log.evict(now)
        if self._waiting or not all(log.empty for log in self._logs.values()):
            self._sweep_later()

    def _expire(self) -> None:
        now = self._clock()
        while self._waiting:
            key, (expiry, _) = next(iter(self._waiting.items()))
            if expiry > now:
                return
            del self._waiting[key]
