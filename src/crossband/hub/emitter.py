"""Who gets an event: the chain of `to`, `except_`, `volatile` and `timeout` before `emit`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from collections.abc import Awaitable, Generator
from typing import TYPE_CHECKING, Any, Protocol

from crossband.names import check_name

if TYPE_CHECKING:
    from crossband.hub.namespace import Namespace
    from crossband.hub.socket import Socket

# Seconds; python-socketio's call() waits as long.
ACK_TIMEOUT = 60.0


class Writable(Protocol):
    """What may be full: the way to one client, or to all of a hub."""

    @property
    def roomy(self) -> bool:
        """Whether there is nothing to wait for."""

    def room(self) -> Awaitable[None]:
        """Wait until there is room again, or nobody is left to write to."""


class Emission(Awaitable["str | None"]):
    """An event on its way: await it for its cursor, or leave it be.

    Awaited, an event for one client also waits for room in that client's outbox, as `drain`
    does on a stream: who writes a file in chunks is never too fast. From another thread,
    `result()` blocks until the event is published.
    """

    __slots__ = ("_outcome", "_way")

    def __init__(
        self,
        outcome: str | Awaitable[str | None] | concurrent.futures.Future[str | None] | None,
        way: Writable | None = None,
    ) -> None:
        self._outcome = outcome
        # What awaiting waits for besides. None: nothing.
        self._way = way

    def __await__(self) -> Generator[Any, None, str | None]:
        outcome = self._outcome
        if isinstance(outcome, concurrent.futures.Future):
            return (yield from asyncio.wrap_future(outcome).__await__())
        if outcome is not None and not isinstance(outcome, str):
            outcome = yield from outcome.__await__()
        way = self._way
        if way is not None and not way.roomy:
            yield from way.room().__await__()
        return outcome

    def result(self, timeout: float | None = None) -> str | None:
        """Return the cursor; in another thread, wait for it up to `timeout` seconds.

        Raises TimeoutError when it takes longer, and RuntimeError on the hub's own loop when
        the cursor is not known yet (await the emission there).
        """
        outcome = self._outcome
        if outcome is None or isinstance(outcome, str):
            return outcome
        if isinstance(outcome, concurrent.futures.Future):
            return outcome.result(timeout)
        raise RuntimeError("await the emission: its cursor is not known yet")


def check_seconds(seconds: object) -> None:
    """Raise TypeError or ValueError for what is no time to wait."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout() takes a number of seconds, not {seconds!r}")
    # Event loops know no infinite time: uvloop raises OverflowError.
    if not 0 <= seconds < math.inf:
        raise ValueError(f"timeout() takes 0 or more seconds, not {seconds!r}")


class Emitter:
    """A choice of recipients within one namespace; each step returns a new one."""

    __slots__ = ("_except", "_namespace", "_rooms", "_timeout", "_volatile")

    def __init__(
        self,
        namespace: Namespace,
        rooms: tuple[str, ...] = (),
        except_: tuple[str, ...] = (),
        volatile: bool = False,
        timeout: float = ACK_TIMEOUT,
    ) -> None:
        self._namespace = namespace
        self._rooms = rooms
        self._except = except_
        self._volatile = volatile
        self._timeout = timeout

    def to(self, *rooms: str) -> Emitter:
        """Choose the sockets in any of these rooms (a socket's id is a room).

        Raises ValueError without rooms: an empty list must not mean everybody.
        """
        if not rooms:
            raise ValueError("to() needs at least one room; emit() alone reaches everybody")
        names = [check_name(room, "a room name") for room in rooms]
        chosen = tuple(dict.fromkeys((*self._rooms, *names)))
        return Emitter(self._namespace, chosen, self._except, self._volatile, self._timeout)

    in_ = to

    def except_(self, *rooms: str) -> Emitter:
        """Leave out the sockets in any of these rooms (a socket's id is a room)."""
        names = [check_name(room, "a room name") for room in rooms]
        left_out = tuple(dict.fromkeys((*self._except, *names)))
        return Emitter(self._namespace, self._rooms, left_out, self._volatile, self._timeout)

    @property
    def volatile(self) -> Emitter:
        """Do not record the event, and drop it for clients that are behind."""
        return Emitter(self._namespace, self._rooms, self._except, True, self._timeout)

    def timeout(self, seconds: float) -> Emitter:
        """Wait this long for acknowledgements. Raises TypeError or ValueError for no time."""
        check_seconds(seconds)
        return Emitter(self._namespace, self._rooms, self._except, self._volatile, seconds)

    def emit(self, event: str, *args: Any) -> Emission:
        """Publish an event to the chosen sockets, on every transport.

        It is encoded, ordered and recorded at once; awaiting the result gives its cursor
        (None if volatile), and waits for room in the outbox of an event's only recipient.
        Safe from any thread. Raises EncodeError, and RuntimeError on a hub that never
        started.
        """
        return self._namespace.publish(event, args, self._rooms, self._except, self._volatile)

    async def emit_with_ack(self, event: str, *args: Any) -> list[Any]:
        """Send an event to the chosen sockets and gather their acknowledgements.

        Not recorded. Raises AckTimeout, with the answers there are in `responses`, unless all
        answer within the timeout.
        """
        return await self._namespace.gather(
            event, args, self._rooms, self._except, timeout=self._timeout
        )

    async def fetch_sockets(self) -> list[Socket]:
        """Return the chosen sockets."""
        return self._namespace.match(self._rooms, self._except)

    async def sockets_join(self, *rooms: str) -> None:
        """Make the chosen sockets join rooms."""
        for socket in self._namespace.match(self._rooms, self._except):
            await socket.join(*rooms)

    async def sockets_leave(self, *rooms: str) -> None:
        """Make the chosen sockets leave rooms."""
        for socket in self._namespace.match(self._rooms, self._except):
            await socket.leave(*rooms)

    async def disconnect_sockets(self, close: bool = False) -> None:
        """Disconnect the chosen sockets; with `close`, their whole connections."""
        for socket in self._namespace.match(self._rooms, self._except):
            await socket.disconnect(close)
