"""One physical link to a client: its bounded outbox, flushed once per tick of the event loop.

Knows no namespaces and no wire formats; the transports derive from Connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Generic, TypeVar

from crossband.codecs import Wire
from crossband.errors import CloseCode
from crossband.policies import shed
from crossband.rates import Meter
from crossband.slots import Slot

logger: Final = logging.getLogger("crossband")

# A client that is not behind may have this many full outboxes queued within one tick.
BURST = 4
# Bytes that a writer over ASGI takes at a time: messages still in the queue may be dropped.
BATCH = 65_536

_tag: Final = attrgetter("tag")
_size: Final = attrgetter("size")

T = TypeVar("T")


class Ticker:
    """Flushes every connection that was written to, once per event-loop tick."""

    __slots__ = ("_loop", "dirty", "pressed")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # An outbox went over its limit in this tick: publishers should let it be flushed before
        # they go on.
        self.pressed: bool = False
        # Connections to flush. Call `schedule` before appending to it.
        self.dirty: list[Connection] = []

    @property
    def roomy(self) -> bool:
        """Whether a publisher to several clients may go on within this tick."""
        return not self.pressed

    async def room(self) -> None:
        """Wait for the flush."""
        await asyncio.sleep(0)

    def schedule(self) -> list[Connection]:
        """Schedule a flush if none is, and return the list that it will flush."""
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


@dataclass(slots=True)
class Eviction:
    """Why the server closed a connection that it would rather have kept."""

    # "slow_client": its outbox was full. "stalled": it read nothing for `limits.send_time`.
    # "rate_limited": it kept sending in spite of refusals.
    reason: str
    # Bytes that were waiting for it.
    backlog: int
    # True once the hub has counted and logged it.
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
        "slot",
    )

    def __init__(self, ticker: Ticker, *, limit: int) -> None:
        self._ticker = ticker
        # Messages waiting to be written, oldest first.
        self.queue: list[Wire] = []
        # Their size in bytes.
        self.queued: int = 0
        # Bytes; past this the client is disconnected.
        self.limit: int = limit
        # True while it is in the ticker's list.
        self.dirty: bool = False
        self.closed: bool = False
        # Bytes of the largest message found in a queue over its limit: one message of any size
        # may wait in addition to `limit` bytes of others.
        self._largest = 0
        # True while a caller waits in `drained` or `room`.
        self._waiting = False
        # None unless a replay waits for the outbox to empty.
        self._drained: asyncio.Future[None] | None = None
        # Writers waiting for room, in the order in which they came. None while there are none:
        # an empty deque takes 600 bytes.
        self._writers: deque[asyncio.Future[None]] | None = None
        # Limits how fast the client sends; None means no limit.
        self.meter: Meter | None = None
        # Monotonic time until which nothing more is read from a client that was too fast.
        self.resting_until: float = 0.0
        # Its slot among the connections that are counted; None before it has one.
        self.slot: Slot | None = None
        # None unless the server closed it.
        self.evicted: Eviction | None = None

    def push(self, wire: Wire) -> None:
        """Queue a message for the next tick; `Fanout.deliver` inlines the same."""
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
        """Check whether a client whose outbox is over its limit is slow."""
        if len(self.queue) > 1:
            # A burst does not make a client slow: what the transport takes at once is not
            # behind. Where that shows only at the next tick, there is room for a burst.
            self.flush()
            self._ticker.pressed = True
            room = self.limit if self.behind else BURST * self.limit
            if self.queued > room and len(self.queue) > 1:
                self._shorten()

    def _shorten(self) -> None:
        """Drop what may be dropped for a client that is behind, or else disconnect it."""
        # A queue has thousands of messages and searching it takes time: search only where it may
        # help, and free a quarter of the outbox so that the next search is far off.
        if self.queue[-1].tag is None and self.queued <= self.limit + self._largest:
            return
        self.drop(self.queued - self.limit // 2)
        if self.queued > self.limit * 3 // 4 and len(self.queue) > 1:
            self._largest = max(map(_size, self.queue))
            if self.queued - self._largest > self.limit * 3 // 4:
                self.overflow()

    def drop(self, excess: int = 0) -> None:
        """Drop events that newer ones replace, then droppable ones to free `excess` bytes."""
        kept, freed = shed(self.queue, _tag, _size, excess)
        if freed:
            self.queue[:] = kept
            self.queued -= freed

    def take_batch(self) -> list[Wire]:
        """Remove and return the oldest queued messages, about 64 KiB of them."""
        queue = self.queue
        size = count = 0
        most = min(BATCH, self.limit // 4)
        while size < most and count < len(queue):
            size += queue[count].size
            count += 1
        return self.take_first(count)

    def take_first(self, count: int) -> list[Wire]:
        """Remove and return the `count` oldest queued messages, to be written."""
        taken = self.queue[:count]
        del self.queue[:count]
        self.queued = self.queued - sum(map(_size, taken)) if self.queue else 0
        if self._waiting:
            self._progress()
        return taken

    def overflow(self, why: str = "slow_client") -> None:
        """Disconnect a client that cannot keep up; it resumes from its cursor."""
        self.evict(why, CloseCode.SLOW_CLIENT, "too slow", now=True)

    def evict(self, why: str, code: CloseCode, reason: str, *, now: bool = False) -> None:
        """Close the connection for its client's behaviour; `why` is for the operator."""
        if self.evicted is None and not self.closed:
            self.evicted = Eviction(why, self.queued)
        self.close(code, reason, now=now)

    def taken_all(self) -> None:
        """Empty the queue, which the transport now has. Hot: once per tick and client."""
        self.queue.clear()
        self.queued = 0
        if self._waiting:
            self._progress()

    async def drained(self) -> None:
        """Wait until the transport has all that is queued, or the connection closes."""
        if self.closed or not self.queued:
            return
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
            self._waiting = True
        await asyncio.shield(self._drained)

    @property
    def roomy(self) -> bool:
        """Whether a writer to this client may go on: half of the outbox is free."""
        return self.closed or self.queued <= self.limit // 2

    async def room(self) -> None:
        """Wait until half of the outbox is free, or the connection closes."""
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
                    # It was this writer's turn; give it to the next one.
                    self._progress()
                raise

    def discard_queue(self) -> None:
        """Drop what is queued, at the end of the connection."""
        self.queue.clear()
        self.queued = 0
        self._release()

    def _progress(self) -> None:
        """Wake whoever waits for room: writers one by one, as each may fill it again."""
        if not self.queue and self.queued <= 0:
            self._empty()
        writers = self._writers
        while writers and self.roomy:
            turn = writers.popleft()
            if not turn.done():
                turn.set_result(None)
                if writers:
                    # Check again after its next write.
                    asyncio.get_running_loop().call_soon(self._progress)
                break
        self._waiting = self._drained is not None or bool(writers)

    def _empty(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def _release(self) -> None:
        """Wake everyone who waits for room: the connection has ended."""
        self._empty()
        for turn in self._writers or ():
            if not turn.done():
                turn.set_result(None)
        self._writers = None
        self._waiting = False

    def rest(self, seconds: float) -> None:
        """Read nothing more from the client for this long: it is too fast."""
        self.resting_until = time.monotonic() + seconds

    def borrow(self, wait: float, size: int = 0, *, messages: int = 1) -> bool:
        """Take a message that the meter refused for `wait` seconds, then rest.

        Returns False if it stays refused.
        """
        assert self.meter is not None
        pause = self.meter.lend(time.monotonic(), wait, size=size, messages=messages)
        if pause:
            self.rest(pause)
        return bool(pause)

    async def rested(self) -> None:
        """Wait until more may be read from the client."""
        if (left := self.resting_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def free_slot(self) -> None:
        """Release the slot: the connection has ended, or was refused."""
        if self.slot is not None:
            self.slot.release()

    def end_socket(
        self, namespace: str, code: CloseCode, reason: str, *, close: bool = False
    ) -> None:
        """End one socket of the connection; only Socket.IO's can have several."""
        self.close(code, reason)

    @property
    @abstractmethod
    def transport(self) -> str:
        """The current transport: "websocket", "polling" or "sse"."""

    @property
    @abstractmethod
    def behind(self) -> bool:
        """Whether the client cannot keep up, so that volatile events skip it."""

    @abstractmethod
    def flush(self) -> None:
        """Write what is queued, or start writing it."""

    @abstractmethod
    def close(self, code: CloseCode, reason: str, *, now: bool = False) -> None:
        """End the connection once all that is queued is written, or `now`."""


class OpenConnections(Generic[T]):
    """The connections of a door; `emptied` is set while there are none."""

    __slots__ = ("_members", "emptied")

    def __init__(self) -> None:
        self._members: set[T] = set()
        self.emptied: Final = asyncio.Event()
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
