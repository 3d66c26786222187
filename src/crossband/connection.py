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

logger = logging.getLogger("crossband")

# How many outboxes may be queued within one tick for a client that is not behind.
BURST = 4
# Bytes that a writer over ASGI takes at a time: what still waits may be dropped.
BATCH = 65_536

_tag: Final = attrgetter("tag")
_size: Final = attrgetter("size")

T = TypeVar("T")


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
        "slot",
    )

    def __init__(self, ticker: Ticker, *, limit: int) -> None:
        self._ticker = ticker
        # Waiting to be written, oldest first.
        self.queue: list[Wire] = []
        # Bytes of them.
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
        self.slot: Slot | None = None
        # None unless the server cut it.
        self.evicted: Eviction | None = None

    def push(self, wire: Wire) -> None:
        """Queue a message for the next tick; `Fanout.deliver` does the same in its loop."""
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
        """Remove and return the oldest that waits, some 64 KiB of it."""
        queue = self.queue
        size = count = 0
        most = min(BATCH, self.limit // 4)
        while size < most and count < len(queue):
            size += queue[count].size
            count += 1
        return self.take_first(count)

    def take_first(self, count: int) -> list[Wire]:
        """Remove and return the oldest messages that wait, to be written."""
        taken = self.queue[:count]
        del self.queue[:count]
        self.queued = self.queued - sum(map(_size, taken)) if self.queue else 0
        if self._waiting:
            self._progress()
        return taken

    def overflow(self, why: str = "slow_client") -> None:
        """Disconnect a client that does not keep up; it resumes from its cursor."""
        self.evict(why, CloseCode.SLOW_CLIENT, "too slow", now=True)

    def evict(self, why: str, code: CloseCode, reason: str, *, now: bool = False) -> None:
        """Close the connection for what its client does, as `why` says to the operator."""
        if self.evicted is None and not self.closed:
            self.evicted = Eviction(why, self.queued)
        self.close(code, reason, now=now)

    def taken_all(self) -> None:
        """Empty the queue: the transport has all of it. Hot: once per tick and client."""
        self.queue.clear()
        self.queued = 0
        if self._waiting:
            self._progress()

    async def drained(self) -> None:
        """Wait until the transport has everything queued, or the connection closed."""
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

    def free_slot(self) -> None:
        """Give the place back: the connection has ended, or was refused."""
        if self.slot is not None:
            self.slot.release()

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


class OpenConnections(Generic[T]):
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
