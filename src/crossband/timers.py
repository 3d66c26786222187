"""Many deadlines on one timer: all after the same delay, or each at a time of its own."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

logger: Final = logging.getLogger("crossband")

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls back for each added item after the same delay, all from one timer.

    The delay is constant, so items fall due in order of insertion: adding and discarding are
    O(1).
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
        """Start the item's delay, or restart it."""
        self._due.pop(item, None)
        self._due[item] = self._loop.time() + self._delay
        if self._timer is None:
            self._timer = self._loop.call_later(self._delay, self._run)

    def discard(self, item: T) -> bool:
        """Forget the item; return False if it was not waiting."""
        return self._due.pop(item, None) is not None

    def close(self) -> None:
        """Forget all items."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        # `_timer` stays set meanwhile: an action that adds its item again must not start another.
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

    Times are those of `clock`. As a clock may be set, it is read at least once a minute.
    """

    # Seconds.
    LONGEST_WAIT: Final = 60.0
    # Calls in one tick. All clients that connected after a restart may be due at once, and
    # ending one takes 0.1 ms.
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
        # (when, serial, item). Some of the items were discarded or have a new time by now.
        self._heap: list[tuple[float, int, T]] = []
        self._serial = itertools.count()
        # None while nothing is due; `_next` is the time it is set to.
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf

    def add(self, item: T, when: float) -> None:
        """Call back at `when`; replaces the item's earlier time."""
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
