"""One client as the hub sees it: its connection's bounded outbox, its acks, its handshake.

Knows no namespaces and no wire formats; the transports derive from Connection.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

from crossband.codecs import Wire
from crossband.errors import CloseCode, CrossbandError, Disconnected
from crossband.policies import shed
from crossband.rates import Meter
from crossband.seats import Seat

logger = logging.getLogger("crossband")


# How many outboxes may be queued within one tick for a client that is not behind.
BURST = 4
# Bytes that a writer over ASGI takes at a time: what still waits may be dropped.
BATCH = 65_536

_tag: Final = attrgetter("tag")
_size: Final = attrgetter("size")


@dataclass(frozen=True, slots=True)
class Handshake:
    """What is known of a client at connect."""

    # "websocket", "polling" or "sse": how the client came; it may upgrade later. "http" when
    # `authenticate` is asked about a publication over the HTTP API.
    transport: str
    # Names in lower case; several lines of one name are joined by ", ". Not in the repr, as
    # the query and `auth`: they hold tokens and session keys.
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, list[str]] = field(repr=False)
    # The peer's address, without port. None over a unix socket.
    address: str | None
    # Seconds since 1970.
    time: float
    # Below the mount point, such as "/ws/admin". Socket.IO's has no namespace in it: clients
    # name that later, and `socket.namespace` has it.
    path: str = "/"
    # Over TLS, as the server or a trusted proxy says.
    secure: bool = False
    # Socket.IO's auth payload; on the other doors empty, but for a token that was refreshed.
    auth: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Ticker:
    """Flushes every connection that was written to, once per event-loop tick."""

    __slots__ = ("_loop", "dirty", "pressed")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # In this tick some outbox was over its limit: who publishes on lets it be flushed first.
        self.pressed = False
        # Those to be flushed. Who appends to it calls `schedule` first.
        self.dirty: list[Connection] = []

    @property
    def roomy(self) -> bool:
        """Whether who publishes to several may go on within this tick."""
        return not self.pressed

    async def room(self) -> None:
        """Wait for the flush."""
        await asyncio.sleep(0)

    def schedule(self) -> list[Connection]:
        """See to it that there is a flush, and return the list it will flush."""
        if not self.dirty:
            self._loop.call_soon(self._flush)
        return self.dirty

    def _flush(self) -> None:
        dirty, self.dirty = self.dirty, []
        self.pressed = False
        for connection in dirty:
            connection.dirty = False
            try:
                connection.flush()
            except Exception:
                logger.exception("flushing a connection failed")


T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls back for each added item after one constant delay, all from one timer.

    The delay is constant, so insertion order is due order: adding and discarding are O(1).
    """

    __slots__ = ("_action", "_delay", "_due", "_loop", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, delay: float, action: Callable[[T], None]
    ) -> None:
        self._loop = loop
        self._delay = delay
        self._action = action
        self._due: dict[T, float] = {}
        # None while nothing is due.
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: T) -> None:
        """Start the item's delay, anew if it was running."""
        self._due.pop(item, None)
        self._due[item] = self._loop.time() + self._delay
        if self._timer is None:
            self._timer = self._loop.call_later(self._delay, self._run)

    def discard(self, item: T) -> bool:
        """Forget the item; False when it was not waiting."""
        return self._due.pop(item, None) is not None

    def close(self) -> None:
        """Forget all items."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        # Not None meanwhile: an action that adds its item again must not put off the others.
        now = self._loop.time()
        ready = []
        for item, due in self._due.items():
            if due > now:
                break
            ready.append(item)
        for item in ready:
            del self._due[item]
        for item in ready:
            try:
                self._action(item)
            except Exception:
                logger.exception("a deadline's action failed")
        self._timer = None
        if self._due:
            first = next(iter(self._due.values()))
            self._timer = self._loop.call_at(first, self._run)


class Alarms(Generic[T]):
    """Calls back for each added item at a time of its own, all from one timer.

    Times are those of `clock`, which may be set: it is looked at once a minute at least.
    """

    # Seconds.
    LONGEST_WAIT: Final = 60.0
    # Calls in one tick. All who connected after a restart may be due at once, and to end
    # one takes 0.1 ms.
    BATCH: Final = 100

    __slots__ = ("_action", "_clock", "_due", "_heap", "_loop", "_next", "_serial", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        action: Callable[[T], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._action = action
        self._clock = clock
        self._due: dict[T, float] = {}
        # (when, serial, item): also some that were discarded, or have another time by now.
        self._heap: list[tuple[float, int, T]] = []
        self._serial = itertools.count()
        # None while nothing is due; `_next` is what it waits for.
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def add(self, item: T, when: float) -> None:
        """Call back at `when`, instead of the item's time before."""
        self._due[item] = when
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(due, next(self._serial), other) for other, due in self._due.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (when, next(self._serial), item))
        if when < self._next:
            self._schedule()

    def discard(self, item: T) -> None:
        """Forget the item; nothing happens if it is not waiting."""
        self._due.pop(item, None)
        if not self._due:
            self.close()

    def close(self) -> None:
        """Forget all items."""
        self._due.clear()
        self._heap.clear()
        self._stop_timer()

    def _stop_timer(self) -> None:
        self._next = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._stop_timer()
        if self._heap:
            self._next = self._heap[0][0]
            wait = min(max(self._next - self._clock(), 0.0), self.LONGEST_WAIT)
            self._timer = self._loop.call_later(wait, self._run)

    def _run(self) -> None:
        now = self._clock()
        ready: list[T] = []
        while self._heap and self._heap[0][0] <= now and len(ready) < self.BATCH:
            when, _, item = heapq.heappop(self._heap)
            if self._due.get(item) == when:
                del self._due[item]
                ready.append(item)
        self._schedule()
        for item in ready:
            try:
                self._action(item)
            except Exception:
                logger.exception("an alarm's action failed")


@dataclass(slots=True)
class Eviction:
    """Why the server cut a connection that it would rather have kept."""

    # "slow_client": its outbox was full. "stalled": it took nothing for `limits.send_time`.
    # "rate_limited": it went on sending in spite of refusals.
    reason: str
    # Bytes that waited for it.
    backlog: int
    # It is in the hub's counts and its log.
    counted: bool = False


class Connection(ABC):
    """One physical link. The hub pushes wires; the transport writes them when flushed."""

    __slots__ = (
        "_drained",
        "_largest",
        "_ticker",
        "_waiting",
        "_writers",
        "closed",
        "dirty",
        "evicted",
        "limit",
        "meter",
        "queue",
        "queued",
        "resting_until",
        "seat",
    )

    def __init__(self, ticker: Ticker, *, limit: int) -> None:
        self._ticker = ticker
        # Waiting to be written, oldest first.
        self.queue: list[Wire] = []
        # Bytes waiting, or taken by the transport and not written yet.
        self.queued = 0
        # Bytes; past it the client is disconnected.
        self.limit = limit
        # In the ticker's list.
        self.dirty = False
        self.closed = False
        # Bytes of the largest message that was found in a queue over its limit: one of any size
        # may wait beside `limit` of others.
        self._largest = 0
        # Somebody waits in `drained` or `room`.
        self._waiting = False
        # None unless a replay waits for the outbox to empty.
        self._drained: asyncio.Future[None] | None = None
        # Who waits to write on, in the order in which they came. None while nobody does: an
        # empty deque has 600 bytes.
        self._writers: deque[asyncio.Future[None]] | None = None
        # What the client may send; None: as fast as it likes.
        self.meter: Meter | None = None
        # On the monotonic clock: until then nothing more is taken from a client that was faster.
        self.resting_until = 0.0
        # Its place among the connections that are counted; None before it has one.
        self.seat: Seat | None = None
        # None unless the server cut it.
        self.evicted: Eviction | None = None

    def push(self, wire: Wire) -> None:
        """Queue a message for the next tick; `Namespace.deliver` does the same in its loop."""
        if self.closed:
            return
        self.queue.append(wire)
        self.queued += wire.size
        if self.queued > self.limit:
            self.overfull()
        if not self.dirty:
            self.dirty = True
            self._ticker.schedule().append(self)

    def overfull(self) -> None:
        """Find out whether a client whose outbox is over its limit is slow."""
        if len(self.queue) > 1:
            # Much at once is not slowness: what the transport takes now is not behind, and
            # where that is known at the next tick only, there is room for a burst.
            self.flush()
            self._ticker.pressed = True
            room = self.limit if self.behind else BURST * self.limit
            if self.queued > room and len(self.queue) > 1:
                self._shorten()

    def _shorten(self) -> None:
        """Drop what may go for a client that is behind; disconnect it if that is too little."""
        # A queue has thousands of messages, and looking through it is not free: only where it
        # may help, and with a quarter of the outbox to the next time.
        if self.queue[-1].tag is None and self.queued <= self.limit + self._largest:
            return
        self.drop(self.queued - self.limit // 2)
        if self.queued > self.limit * 3 // 4 and len(self.queue) > 1:
            self._largest = max(map(_size, self.queue))
            if self.queued - self._largest > self.limit * 3 // 4:
                self.overflow()

    def drop(self, excess: int = 0) -> None:
        """Drop what newer events make worthless, and older ones that may go for `excess` bytes."""
        kept, freed = shed(self.queue, _tag, _size, excess)
        if freed:
            self.queue[:] = kept
            self.queued -= freed

    def take_batch(self) -> list[Wire]:
        """Remove and return the oldest that waits, some 64 KiB of it, to be written."""
        queue = self.queue
        size = count = 0
        most = min(BATCH, self.limit // 4)
        while size < most and count < len(queue):
            size += queue[count].size
            count += 1
        taken = queue[:count]
        del queue[:count]
        return taken

    def overflow(self, why: str = "slow_client") -> None:
        """Disconnect a client that does not keep up; it resumes from its cursor."""
        self.evict(why, CloseCode.SLOW_CLIENT, "too slow", now=True)

    def evict(self, why: str, code: CloseCode, reason: str, *, now: bool = False) -> None:
        """Close the connection for what its client does, as `why` says to the operator."""
        if self.evicted is None and not self.closed:
            self.evicted = Eviction(why, self.queued)
        self.close(code, reason, now=now)

    def wrote(self, size: int) -> None:
        """Account for written bytes."""
        self.queued -= size
        if self._waiting:
            self._progress()

    def taken_all(self) -> None:
        """Empty the queue: the transport has all of it."""
        self.queue.clear()
        self.queued = 0
        if self._waiting:
            self._progress()

    async def drained(self) -> None:
        """Wait until everything queued was written, or the connection closed."""
        if self.closed or not self.queued:
            return
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
            self._waiting = True
        await asyncio.shield(self._drained)

    @property
    def roomy(self) -> bool:
        """Whether who writes to this client alone may go on: half of its outbox is free."""
        return self.closed or self.queued <= self.limit // 2

    async def room(self) -> None:
        """Wait until half of the outbox is free, or the connection closed."""
        while not self.roomy:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._writers is None:
                self._writers = deque()
            self._writers.append(turn)
            self._waiting = True
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    # Its turn had come: it is the next one's.
                    self._progress()
                raise

    def discard_queue(self) -> None:
        """Drop what waits, at the end of the connection."""
        self.queue.clear()
        self.queued = 0
        self._release()

    def _progress(self) -> None:
        """Let those go on who wait for room: writers one by one, as each may fill it again."""
        if not self.queue and self.queued <= 0:
            self._empty()
        writers = self._writers
        while writers and self.roomy:
            turn = writers.popleft()
            if not turn.done():
                turn.set_result(None)
                if writers:
                    # Behind its next write.
                    asyncio.get_running_loop().call_soon(self._progress)
                break
        self._waiting = self._drained is not None or bool(writers)

    def _empty(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def _release(self) -> None:
        """Let all go on who wait for room: the connection has ended."""
        self._empty()
        for turn in self._writers or ():
            if not turn.done():
                turn.set_result(None)
        self._writers = None
        self._waiting = False

    def rest(self, seconds: float) -> None:
        """Take nothing more from the client for so long: it sends faster than it may."""
        self.resting_until = time.monotonic() + seconds

    def borrow(self, wait: float, size: int = 0, *, messages: int = 1) -> bool:
        """Take a message after all that the meter refused for `wait` seconds, and rest then.

        False when it stays refused.
        """
        assert self.meter is not None
        pause = self.meter.lend(time.monotonic(), wait, size=size, messages=messages)
        if pause:
            self.rest(pause)
        return bool(pause)

    async def rested(self) -> None:
        """Wait until more may be taken from the client."""
        if (left := self.resting_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def leave_seat(self) -> None:
        """Give the place back: the connection has ended, or was refused."""
        if self.seat is not None:
            self.seat.release()

    def end_socket(
        self, namespace: str, code: CloseCode, reason: str, *, close: bool = False
    ) -> None:
        """End one socket of the connection; it is the only one, except on Socket.IO's."""
        self.close(code, reason)

    @property
    @abstractmethod
    def transport(self) -> str:
        """The current transport: "websocket", "polling" or "sse"."""

    @property
    @abstractmethod
    def behind(self) -> bool:
        """Whether the client is not keeping up, so that volatile events skip it."""

    @abstractmethod
    def flush(self) -> None:
        """Write what is queued, or see to it that it is written."""

    @abstractmethod
    def close(self, code: CloseCode, reason: str, *, now: bool = False) -> None:
        """End the connection after what is queued was written, or `now`."""


class Roll(Generic[T]):
    """The connections of a door; `emptied` is set while there are none."""

    __slots__ = ("_members", "emptied")

    def __init__(self) -> None:
        self._members: set[T] = set()
        self.emptied = asyncio.Event()
        self.emptied.set()

    def add(self, member: T) -> None:
        self._members.add(member)
        self.emptied.clear()

    def discard(self, member: T) -> None:
        self._members.discard(member)
        if not self._members:
            self.emptied.set()

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._members))


class Acks:
    """Answers one socket owes the server."""

    __slots__ = ("_limit", "_waiting")

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    @property
    def owed(self) -> int:
        """The number of answers that are waited for."""
        return len(self._waiting)

    def __contains__(self, ack_id: int) -> bool:
        return ack_id in self._waiting

    def expect(self, ack_id: int) -> asyncio.Future[Any]:
        """Return the future that the answer with this id will resolve.

        Raises CrossbandError when the socket owes too many already.
        """
        if len(self._waiting) >= self._limit:
            raise CrossbandError(f"the client owes {self._limit} acknowledgements already")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[ack_id] = future
        return future

    def forget(self, ack_id: int) -> None:
        self._waiting.pop(ack_id, None)

    def resolve(self, ack_id: int, answer: Any) -> bool:
        """Settle an expected answer; False when nobody waits for it."""
        future = self._waiting.pop(ack_id, None)
        if future is None:
            return False
        if not future.done():
            future.set_result(answer)
        return True

    def fail(self) -> None:
        """Settle all answers: the client left."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Disconnected("the client left before it acknowledged"))
                # A broadcast that already timed out reads none of these.
                future.exception()
