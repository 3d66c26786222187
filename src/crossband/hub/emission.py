"""What `emit` returns: an event on its way, which may be awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from collections.abc import Awaitable, Generator
from typing import Any, Protocol

# The outcome of publishing an event: its cursor, None without one, or a future of either.
Outcome = str | asyncio.Future["str | None"] | concurrent.futures.Future["str | None"] | None

# Seconds; python-socketio's call() waits as long.
ACK_TIMEOUT = 60.0


class Writable(Protocol):
    """Something with room for writers: one client's outbox, or all of a hub's."""

    @property
    def roomy(self) -> bool:
        """Whether there is room now."""
        ...

    def room(self) -> Awaitable[None]:
        """Wait until there is room, or nobody left to write to."""
        ...


class Emission(Awaitable["str | None"]):
    """An event on its way: await it for its cursor, or do not.

    Awaiting an event for one client also waits for room in that client's outbox, as `drain`
    does on a stream, so that writing a file in chunks is never too fast. Cancelling the wait
    does not stop the event. In another thread, `result()` blocks until the event is published.
    Raises BrokerUnavailable if it cannot be.
    """

    __slots__ = ("_outcome", "_way", "awaited")

    def __init__(self, outcome: Outcome, way: Writable | None = None) -> None:
        self._outcome = outcome
        # What awaiting also waits for; None for nothing else.
        self._way = way
        # True if a caller will see its failure.
        self.awaited: bool = False

    def __await__(self) -> Generator[Any, None, str | None]:
        outcome = self._outcome
        if isinstance(outcome, concurrent.futures.Future):
            return (yield from self._published(asyncio.wrap_future(outcome)))
        if isinstance(outcome, asyncio.Future):
            outcome = yield from self._published(outcome)
        way = self._way
        if way is not None and not way.roomy:
            yield from way.room().__await__()
        return outcome

    def _published(self, outcome: asyncio.Future[str | None]) -> Generator[Any, None, str | None]:
        self.awaited = True
        try:
            return (yield from asyncio.shield(outcome).__await__())
        except asyncio.CancelledError:
            # The caller stopped waiting.
            self.awaited = False
            raise

    def result(self, timeout: float | None = None) -> str | None:
        """Return the cursor; in another thread, wait for it up to `timeout` seconds.

        Raises TimeoutError if it takes longer, and RuntimeError on the hub's own loop if the
        cursor is not known yet (await the emission there).
        """
        outcome = self._outcome
        if outcome is None or isinstance(outcome, str):
            return outcome
        if isinstance(outcome, concurrent.futures.Future):
            self.awaited = True
            try:
                return outcome.result(timeout)
            except TimeoutError:
                self.awaited = False
                raise
        if outcome.done():
            self.awaited = True
            return outcome.result()
        raise RuntimeError("await the emission: its cursor is not known yet")


def check_seconds(seconds: object) -> None:
    """Raise TypeError or ValueError for an unusable waiting time."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout() takes a number of seconds, not {seconds!r}")
    # Event loops cannot wait for an infinite time: uvloop raises OverflowError.
    if not 0 <= seconds < math.inf:
        raise ValueError(f"timeout() takes 0 or more seconds, not {seconds!r}")


class Askable(Protocol):
    """A client that acknowledges events."""

    async def emit_with_ack(self, event: str, *args: Any, timeout: float = ...) -> Any:
        """Send an event and return its acknowledgement."""


class Deadline:
    """A socket with a time limit for its acknowledgement."""

    __slots__ = ("_seconds", "_socket")

    def __init__(self, socket: Askable, seconds: float) -> None:
        self._socket = socket
        self._seconds = seconds

    async def emit_with_ack(self, event: str, *args: Any) -> Any:
        """Send an event and return its acknowledgement; see `Socket.emit_with_ack`."""
        return await self._socket.emit_with_ack(event, *args, timeout=self._seconds)
